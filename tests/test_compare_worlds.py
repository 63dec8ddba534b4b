"""`mifuse compare-worlds`: averages, paired intervals, ranks and harm over comparisons that are made up here."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparing import config as compare_config
from conftest import CLASSES, mifuse, refused

import mifuse_cli as m
from mifuse_cli import evaluation
from mifuse_cli.artifacts import Compared, Header, Target
from mifuse_cli.errors import ArtifactError

GROUPS = {
    "source-only": "teachers",
    "lalm": "teachers",
    "shot": "baselines",
    "nrc": "baselines",
    "labels-mi": "teachers",
    "mifuse-cross-fit": "cross-fit",
}
SPEAKERS, EACH = 10, 8  # every speaker has two clips of each class
OURS = "mifuse-cross-fit"


def rights(number: int) -> np.ndarray:
    """Which clips (S, EACH) are predicted rightly: the first ``number`` of every speaker, over all classes alike."""
    return np.tile(np.arange(EACH) < number, (SPEAKERS, 1))


def made(root: Path, transfers, *, seeds=(0,), classes=CLASSES, speakers=True, leave_out=()) -> Path:
    """The output of a comparison.

    Args:
        root: to write.
        transfers: by source and target, which clips (S, EACH), or (N, S, EACH), are right by system.
        seeds: N.
        classes: K.
        speakers: whether they are known.
        leave_out: keys of results.json that an earlier version lacks.
    """
    ids = np.array([f"s{s}-{n}" for s in range(SPEAKERS) for n in range(EACH)])
    truth = np.tile(np.arange(EACH) % len(classes), SPEAKERS)
    header, scores = Header(classes=classes), []
    for (source, target), systems in transfers.items():
        known = np.repeat([f"s{s}" for s in range(SPEAKERS)], EACH) if speakers else None
        Target(header=header, utt_id=ids, truth=truth.astype(np.uint8), speaker=known).save(
            root / f"targets/{target}.h5"
        )
        for run, seed in enumerate(seeds):
            names = sorted(systems)
            right = [
                np.broadcast_to(systems[name], (len(seeds), SPEAKERS, EACH))[run].ravel() for name in names
            ]
            predicted = [np.where(one, truth, (truth + 1) % len(classes)) for one in right]
            probs = np.stack([0.8 * np.eye(len(classes))[one] + 0.2 / len(classes) for one in predicted])
            Compared(header=header, utt_id=ids, systems=np.array(names), probs=probs.astype(np.float32)).save(
                root / f"runs/{source}/{target}/seed{seed}.h5"
            )
            for name, one in zip(names, probs, strict=True):
                rates = evaluation.rates(truth, one)
                scores.append({"system": name, "source": source, "target": target, "seed": seed, **rates})
    names = list(next(iter(transfers.values())))
    methods = [name for name in names if not name.startswith("labels")]
    results = {
        "protocol": "UA|protocol:transductive",
        "classes": list(classes),
        "seeds": list(seeds),
        "drawn": "speakers" if speakers else "clips",
        "ours": OURS,
        "baselines": [name for name in methods if name != OURS],
        "systems": {
            name: {"group": GROUPS[name], "rank": 1.0 if name in methods else None} for name in names
        },
        "standing": {},
        "scores": scores,
    }
    results = {key: value for key, value in results.items() if key not in leave_out}
    (root / "results.json").write_text(json.dumps(results))
    return root


def config(*worlds, out, **changes):
    return m.CompareWorldsConfig(worlds=worlds, out=out, **{"resamples": 300, **changes})


@pytest.fixture
def two(tmp_path):
    """Two worlds with two and one transfers, of which a hand can compute the figures."""
    a = {
        ("x", "y"): {"source-only": rights(4), "lalm": rights(2), "shot": rights(6), OURS: rights(8)},
        ("y", "x"): {"source-only": rights(4), "lalm": rights(4), "shot": rights(6), OURS: rights(6)},
    }
    b = {("z", "y"): {"source-only": rights(2), "lalm": rights(4), "shot": rights(2), OURS: rights(4)}}
    return made(tmp_path / "a", a), made(tmp_path / "b", b)


class TestFigures:
    def test_every_world_counts_the_same(self, two, tmp_path):
        found = m.compare_worlds(config(*two, out=tmp_path / "out")).results
        ua = {name: one["ua"] for name, one in found["systems"].items()}
        assert ua[OURS] == {"worlds": {"a": 87.5, "b": 50}, "mean": 68.75}
        assert ua["shot"] == {"worlds": {"a": 75, "b": 25}, "mean": 50}
        assert ua["lalm"]["mean"] == (37.5 + 50) / 2
        assert found["systems"][OURS]["wa"]["mean"] == 68.75
        assert found["worlds"]["a"]["transfers"] == ["x>y", "y>x"]

    def test_the_best_baseline_is_that_of_the_mean_over_worlds(self, two, tmp_path):
        found = m.compare_worlds(config(*two, out=tmp_path / "out")).results
        gap = found["against_best"]["ua"]
        assert gap["baseline"] == "shot" and gap["mean"]["difference"] == 18.75
        assert gap["worlds"]["b"] == {"difference": 25, "low": 25, "high": 25}  # all speakers are alike
        # Confidence is 0.85: the error of calibration is lowest where 85 % are right.
        assert found["against_best"]["ece"]["baseline"] == "shot"

    def test_ranks_by_hand(self, two, tmp_path):
        systems = m.compare_worlds(config(*two, out=tmp_path / "out")).results["systems"]
        assert systems[OURS]["rank"] == pytest.approx((1 + 1.5 + 1.5) / 3, abs=1e-3)
        assert systems["shot"]["rank"] == pytest.approx((2 + 1.5 + 3.5) / 3, abs=1e-3)
        assert systems["lalm"]["rank"] == pytest.approx((4 + 3.5 + 1.5) / 3, abs=1e-3)

    def test_labels_are_shown_but_neither_ranked_nor_a_baseline(self, tmp_path):
        world = made(
            tmp_path / "a", {("x", "y"): {"labels-mi": rights(8), "lalm": rights(2), OURS: rights(4)}}
        )
        found = m.compare_worlds(config(world, out=tmp_path / "out")).results
        assert found["systems"]["labels-mi"]["rank"] is None and found["systems"][OURS]["rank"] == 1
        assert found["against_best"]["ua"]["baseline"] == "lalm"

    def test_seeds_are_averaged_and_may_differ_between_worlds(self, two, tmp_path):
        both = np.stack([rights(8), rights(4)])
        systems = {"source-only": rights(4), "lalm": rights(4), "shot": rights(6), OURS: both}
        third = made(tmp_path / "c", {("x", "y"): systems}, seeds=(0, 3))
        found = m.compare_worlds(config(*two, third, out=tmp_path / "out")).results
        assert found["systems"][OURS]["ua"]["worlds"] == {"a": 87.5, "b": 50, "c": 75}
        assert found["worlds"]["c"]["seeds"] == [0, 3]

    def test_another_system_may_be_ours(self, two, tmp_path):
        found = m.compare_worlds(config(*two, out=tmp_path / "out", ours="shot")).results
        # Then it is no baseline.
        assert found["ours"] == "shot" and found["against_best"]["ua"]["baseline"] == "lalm"

    def test_one_world_has_the_intervals_of_its_own_table(self, compared, tmp_path):
        found = m.compare_worlds(config(compared.out, out=tmp_path / "out", resamples=100)).results
        own = compared.results["systems"][OURS]
        for metric, name in compared.results["best_baselines"].items():
            gap = found["against_best"][metric]
            assert gap["baseline"] == name
            assert gap["mean"] == gap["worlds"]["out"] == own["against_best"][metric], metric
            assert found["systems"][OURS][metric]["mean"] == pytest.approx(
                own[metric]["average"]["mean"], abs=2e-3
            )


class TestHarm:
    def systems(self, shot):
        return {"source-only": rights(4), "lalm": rights(2), "shot": shot, OURS: rights(4)}

    def test_planted(self, tmp_path):
        worse = rights(2)
        # For two speakers better, for three worse: on average worse, but nobody can be sure.
        unsure = rights(4)
        unsure[:2], unsure[2:5] = rights(8)[:2], rights(0)[:3]
        assert unsure.sum() < rights(4).sum()
        a = {
            ("x", "y"): self.systems(worse),
            ("y", "x"): self.systems(unsure),
            ("z", "x"): self.systems(rights(6)),
        }
        b = {("x", "y"): self.systems(worse), ("z", "y"): self.systems(rights(4))}
        found = m.compare_worlds(
            config(made(tmp_path / "a", a), made(tmp_path / "b", b), out=tmp_path / "out")
        ).results["systems"]
        assert found["shot"]["harm"] == {"transfers": 2, "of": 5, "which": ["a: x>y", "b: x>y"]}
        assert found[OURS]["harm"]["transfers"] == found["source-only"]["harm"]["transfers"] == 0
        assert found["lalm"]["harm"]["transfers"] == 5  # source-only is better
        text = (tmp_path / "out/table.md").read_text()
        row = next(line for line in text.splitlines() if line.startswith("| shot |"))
        assert row.startswith("| shot | 48.3 | 37.5 | 42.9 |") and row.endswith("| 2 of 5 |")

    @pytest.mark.parametrize("missing", ["lalm", "source-only"])
    def test_without_both_teachers_it_is_not_counted(self, tmp_path, missing):
        systems = {name: one for name, one in self.systems(rights(2)).items() if name != missing}
        world = made(tmp_path / "a", {("x", "y"): systems})
        result = m.compare_worlds(config(world, out=tmp_path / "out"))
        assert all(one["harm"] is None for one in result.results["systems"].values())
        assert f"harm is not counted: {missing} not in every world" in result.notes
        assert "Harm is not counted" in (tmp_path / "out/table.md").read_text()


class TestIntervals:
    def test_they_cover_the_difference_over_worlds(self):
        """Two worlds about the same speakers, to whom a method is kind or not: both errors go the same way."""
        rng, covered, trials = np.random.default_rng(0), 0, 200
        truth, speakers = np.tile(np.arange(8) % 2, 30), np.repeat([f"s{n}" for n in range(30)], 8)
        for _ in range(trials):
            kind = np.repeat(rng.normal(0, 0.25, 30), 8)
            tallies = []
            for _ in range(2):
                rates = np.stack([0.6 + kind, np.full(240, 0.5)])[:, None]
                right = rng.random((2, 1, 240)) < np.clip(rates, 0, 1)
                tallies.append(
                    evaluation.tally("y", truth, np.eye(2)[np.where(right, truth, 1 - truth)], speakers)
                )
            draws = evaluation.bootstrap_metrics(tallies, ["ua"], resamples=200, rng=rng)["ua"]
            low, high = evaluation.interval((draws[0] - draws[1]).mean(axis=0))
            covered += low <= 0.1 <= high
        assert 0.88 * trials < covered <= 0.99 * trials

    def test_a_difference_between_clips_alone_is_drawn_over_clips(self, tmp_path):
        systems = {"source-only": rights(4), "lalm": rights(4), OURS: rights(6)}
        by_speaker = made(tmp_path / "a", {("x", "y"): systems})
        by_clip = made(tmp_path / "b", {("x", "y"): systems}, speakers=False)
        first, second = (
            m.compare_worlds(config(one, out=tmp_path / f"out-{one.name}")).results
            for one in (by_speaker, by_clip)
        )
        assert first["drawn"] == "speakers" and second["drawn"] == "clips"
        gap = second["against_best"]["ua"]["mean"]
        assert gap["low"] < gap["difference"] == 25 < gap["high"]
        assert first["against_best"]["ua"]["mean"] == {"difference": 25, "low": 25, "high": 25}


class TestTables:
    def test_files(self, two, tmp_path):
        result = m.compare_worlds(config(*two, out=tmp_path / "out"))
        assert json.loads((tmp_path / "out/results.json").read_text()) == result.results
        text = (tmp_path / "out/table.md").read_text()
        assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == [
            *evaluation.METRICS.values()
        ]
        tables = [part.split("\n\n")[1].splitlines() for part in text.split("### ")[1:]]
        assert all(len({line.count("|") for line in table}) == 1 for table in tables)
        assert tables[0][0] == "| system | a | b | mean | rank | harm |"
        assert f"| {OURS} | **87.5** | 50.0 | **68.8** | 1.3 | 0 of 3 |" in tables[0]
        assert (
            tables[0][-1]
            == f"| {OURS} less shot | +12.5 [12.5, 12.5] | +25.0 [25.0, 25.0] | +18.8 [18.8, 18.8] |  |  |"
        )
        with (tmp_path / "out/scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * 4 and rows[0]["world"] == "a" and rows[-1]["world"] == "b"
        assert float(rows[0]["ua"]) == pytest.approx(0.25)  # lalm, x>y

    def test_what_not_every_world_has_is_left_out_and_told_of(self, two, tmp_path):
        systems = {"source-only": rights(4), "lalm": rights(4), "nrc": rights(6), OURS: rights(6)}
        third = made(tmp_path / "c", {("x", "y"): systems})
        result = m.compare_worlds(config(*two, third, out=tmp_path / "out"))
        assert list(result.results["systems"]) == ["source-only", "lalm", OURS]
        assert "shot: left out, since it is missing in c" in result.notes
        assert "nrc: left out, since it is missing in a, b" in result.notes

    def test_update(self, two, tmp_path):
        out = tmp_path / "out"
        m.compare_worlds(config(*two, out=out))
        assert m.compare_worlds(config(*two, out=out, update=True)).up_to_date
        assert not m.compare_worlds(config(*two, out=out, update=True, seed=1, ours="shot")).up_to_date
        again = m.compare_worlds(config(two[0], out=out, force=True))
        assert not again.up_to_date and list(again.results["worlds"]) == ["a"]

    def test_update_after_a_run_that_was_killed(self, two, tmp_path):
        config = m.CompareWorldsConfig(worlds=two, out=tmp_path / "out", resamples=100, update=True)
        config.out.mkdir()
        (config.out / ".results.json.0123abcd.tmp").write_text("{")
        m.compare_worlds(config)
        whole = {file.name: file.read_text() for file in config.out.iterdir()}
        for lost in ("scores.csv", "table.md"):
            (config.out / lost).unlink()
            assert not m.compare_worlds(config).up_to_date
            assert {file.name: file.read_text() for file in config.out.iterdir()} == whole

    def test_names(self, two, tmp_path):
        worlds = (f"first={two[0]}", two[1])
        assert list(m.compare_worlds(config(*worlds, out=tmp_path / "out")).results["worlds"]) == [
            "first",
            "b",
        ]
        # A directory may have a '=' in its name.
        strange = shutil.copytree(two[0], tmp_path / "tau=0.1")
        assert config(strange, out=tmp_path).named() == [("tau=0.1", strange)]


class TestCommand:
    def test_prints_the_table(self, two, tmp_path):
        done = mifuse("compare-worlds", *two, "--out", tmp_path / "out", "--resamples", "100")
        assert done.exit_code == 0, done.stderr
        assert f"{OURS} less shot" in done.stdout and "+18.8 [18.8, 18.8] points of UA" in done.stdout
        row = next(
            line for line in done.stdout.splitlines() if line.startswith(f"{OURS} ") and "less" not in line
        )
        assert row.split() == [OURS, "87.5", "50.0", "68.8", "1.3", "0", "of", "3"]
        again = mifuse("compare-worlds", *two, "--out", tmp_path / "out")
        refused(again, 3, "exists already", "--force")

    def refuse(self, code, *words, worlds, tmp_path, options=()):
        refused(mifuse("compare-worlds", *worlds, "--out", tmp_path / "out", *options), code, *words)
        assert not (tmp_path / "out").exists()

    def test_what_is_no_comparison(self, two, tmp_path):
        (tmp_path / "empty").mkdir()
        for place in ("nowhere", "empty"):
            self.refuse(
                3, f"{place}: holds no comparison", worlds=(two[0], tmp_path / place), tmp_path=tmp_path
            )
        (tmp_path / "empty/results.json").write_text('{"rows": {}}')
        self.refuse(3, "of something else", worlds=(tmp_path / "empty",), tmp_path=tmp_path)

    def test_its_own_output_is_no_comparison(self, two, tmp_path):
        m.compare_worlds(config(*two, out=tmp_path / "tables"))
        self.refuse(3, "holds no comparison", worlds=(tmp_path / "tables",), tmp_path=tmp_path)

    def test_one_of_an_earlier_version(self, two, tmp_path):
        old = made(tmp_path / "c", {("x", "y"): {OURS: rights(2)}}, leave_out=("baselines", "ours"))
        self.refuse(4, "earlier mifuse", "compare again", worlds=(two[0], old), tmp_path=tmp_path)
        shutil.rmtree(two[1] / "targets")
        self.refuse(4, "earlier mifuse", worlds=(two[1],), tmp_path=tmp_path)

    def test_other_classes(self, two, tmp_path):
        systems = {"lalm": rights(2), OURS: rights(2)}
        third = made(tmp_path / "c", {("x", "y"): systems}, classes=("happy", "sad"))
        self.refuse(4, "classes are happy, sad, those of", worlds=(*two, third), tmp_path=tmp_path)

    def test_runs_that_changed_since(self, two, tmp_path):
        file = two[0] / "runs/y/x/seed0.h5"
        run = Compared.load(file)
        replace(run, probs=run.probs[:, :, ::-1]).save(file)
        self.refuse(4, "y>x have other scores than its tables", worlds=two, tmp_path=tmp_path)
        replace(run, systems=run.systems[:2], probs=run.probs[:2]).save(file)
        self.refuse(4, "has no predictions of", worlds=two, tmp_path=tmp_path)
        file.unlink()
        self.refuse(3, "no such file", worlds=two, tmp_path=tmp_path)

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (("--ours", "shott"), 3, ("has no system 'shott' (did you mean 'shot'?)",)),
            (("--resamples", "3"), 2, ("--resamples 3",)),
        ],
    )
    def test_options(self, two, tmp_path, options, code, words):
        self.refuse(code, *words, worlds=two, tmp_path=tmp_path, options=options)

    def test_names_of_worlds(self, two, tmp_path):
        self.refuse(2, "a: name of several worlds", "NAME=DIR", worlds=(two[0], two[0]), tmp_path=tmp_path)
        self.refuse(2, "expected a name before '='", worlds=(f"={two[0]}",), tmp_path=tmp_path)

    def test_a_directory_of_something_else_is_left_alone(self, two, tmp_path):
        refused(
            mifuse("compare-worlds", *two, "--out", two[0], "--force"),
            3,
            "something else than tables of worlds",
        )


def test_compare_keeps_what_it_scored_by(world, compared, tmp_path):
    target = Target.load(compared.out / "targets/b.h5")
    assert target.header.classes == CLASSES and set(target.speaker) == {"s0", "s1", "s2"}
    out = shutil.copytree(compared.out, tmp_path / "out")
    settings = compare_config(world, out, systems="main,oracle,ablations", update=True)
    assert m.compare(settings).up_to_date
    (out / "targets/b.h5").unlink()
    again = m.compare(settings)
    assert again.made == 0 and not again.up_to_date and (out / "targets/b.h5").is_file()
    # A run of the kept predictions by other labels is seen.
    flipped = replace(target, truth=target.truth[::-1].copy())
    flipped.save(out / "targets/b.h5")
    with pytest.raises(ArtifactError, match="other scores than its tables"):
        m.compare_worlds(config(out, out=tmp_path / "tables"))
