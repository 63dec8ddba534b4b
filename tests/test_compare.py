"""`mifuse compare`: the same figures as by the single commands, resumed exactly, and blind to labels."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from comparing import config, predictions
from conftest import CLASSES, read_rows, write_csv

import mifuse_cli as m
from mifuse_cli import artifacts, evaluation, fusion, splits
from mifuse_cli.artifacts import Compared, Predictions
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.methods import adaptation
from mifuse_cli.methods.adaptation import WITHOUT_STUDENT
from mifuse_cli.steps.compare import _run
from mifuse_cli.steps.compare.planning import plan
from mifuse_cli.steps.compare.systems import SYSTEMS


class TestFigures:
    @pytest.mark.parametrize(
        ("system", "options"),
        [
            ("mifuse-mi", {}),
            ("mifuse-cross-fit", {}),
            ("nrc+lalm", {"method": "nrc+lalm"}),
            ("shot", {"method": "shot"}),
            ("prode", {"method": "prode"}),
            ("t3a+lalm", {"method": "t3a+lalm"}),
            ("rcl", {"method": "rcl"}),
            ("mifuse-mi/no-diversity", {"diversity_weight": 0}),
            ("mifuse-mi/no-ema", {"ema": 0}),
        ],
    )
    def test_a_student_is_that_of_the_single_commands(self, world, compared, tmp_path, system, options):
        model, manifest = world / "models/a/seed0", world / "data/b/manifest.csv"
        source, fused, lalm = (tmp_path / f"{name}.h5" for name in ("source", "fused", "lalm"))
        answers = artifacts.Lalm.load(world / "lalm/b.h5")
        first = {
            name: value[:, :3]
            for name, value in answers.arrays().items()
            if name in ("probs", "status", "order", "usage", "raw_end")
        }
        replace(answers, **first).save(lalm)
        m.sample_source(m.SampleSourceConfig(model=model, manifest=manifest, out=source, n_samples=3))
        settings = SYSTEMS[system].fusion.parameters()
        m.fuse(m.FuseConfig(lalm=lalm, source=source, out=fused, **settings))
        m.train(
            m.TrainConfig(
                fused=fused, model=model, manifest=manifest, out=tmp_path / "student", epochs=2, **options
            )
        )
        expected = Predictions.load(tmp_path / "student/predictions.h5").probs
        found = predictions(compared.out)
        np.testing.assert_array_equal(found[system], expected)
        labels = f"labels-{settings['weighting']}"
        np.testing.assert_array_equal(found[labels], artifacts.Fused.load(fused).probs)
        np.testing.assert_array_equal(found["source-only"], artifacts.Source.load(source).point)

    def test_figures_are_those_of_evaluate(self, world, compared, tmp_path):
        found = predictions(compared.out)
        row = next(
            row
            for row in compared.results["scores"]
            if (row["system"], row["source"]) == ("mifuse-cross-fit", "a")
        )
        header = artifacts.Header(classes=CLASSES)
        ids = Compared.load(compared.out / "runs/a/b/seed0.h5").utt_id
        file = tmp_path / "p.h5"
        Predictions(header=header, utt_id=ids, probs=found["mifuse-cross-fit"]).save(file)
        result = m.evaluate(
            m.EvaluateConfig(predictions=file, manifest=world / "data/b/labels.csv", out=tmp_path / "e.h5")
        )
        for metric in evaluation.METRICS:
            assert row[metric] == pytest.approx(result.metrics[metric], abs=1e-5), metric
        average = compared.results["systems"]["mifuse-cross-fit"]["ua"]
        assert average["a>b"]["mean"] == pytest.approx(100 * row["ua"], abs=1e-3)
        assert average["average"]["mean"] == pytest.approx(
            (average["a>b"]["mean"] + average["b>a"]["mean"]) / 2, abs=1e-2
        )

    def test_the_best_baseline_is_neither_ours_nor_the_paper_s(self, compared):
        systems = compared.results["systems"]
        rivals = [
            name for name, one in systems.items()
            if one["group"] in ("teachers", "baselines") and not name.startswith("labels")
        ]  # fmt: skip
        best = compared.results["best_baseline"]
        assert systems[best]["ua"]["average"]["mean"] == max(
            systems[name]["ua"]["average"]["mean"] for name in rivals
        )
        gap = systems["mifuse-cross-fit"]["against"][best]
        assert gap["difference"] == pytest.approx(
            systems["mifuse-cross-fit"]["ua"]["average"]["mean"] - systems[best]["ua"]["average"]["mean"],
            abs=2e-3,
        )
        assert gap["low"] <= gap["difference"] <= gap["high"]

    def test_several_seeds(self, world, tmp_path):
        result = m.compare(config(world, tmp_path / "out", systems="source-only,lalm", seeds="0,1"))
        ua = result.results["systems"]["source-only"]["ua"]["a>b"]
        assert len(ua["seeds"]) == 2 and ua["mean"] == pytest.approx(np.mean(ua["seeds"]), abs=1e-3)
        assert ua["std"] == pytest.approx(np.std(ua["seeds"], ddof=1), abs=2e-3)
        assert result.results["systems"]["lalm"]["ua"]["a>b"]["std"] == 0
        assert result.runs == result.made == 2 * 2 * 2

    def test_answers_are_the_first_of_each_clip(self, compared, world):
        probs = artifacts.Lalm.load(world / "lalm/b.h5").probs.astype(float)
        with np.errstate(invalid="ignore"):
            expected = np.nanmean(probs[:, :3], axis=1)
        np.testing.assert_allclose(predictions(compared.out)["lalm"], expected, atol=1e-6)
        assert not np.allclose(expected, np.nanmean(probs, axis=1))

    def test_ablations_that_ask_for_more_answers_than_there_are_are_told_of(self, compared):
        assert any(note.startswith("mifuse-mi/10-answers: left out") for note in compared.notes)
        assert "mifuse-mi/10-answers" not in compared.results["systems"]
        assert "mifuse-mi/1-answer" in compared.results["systems"]
        assert "mifuse-mi/3-answers" not in compared.results["systems"]  # it is the comparison's own


class TestSourcesAndTargets:
    @pytest.fixture
    def foreign(self, world, tmp_path):
        """The same corpora, and a source model whose corpus is not there."""
        root = shutil.copytree(world, tmp_path / "world")
        shutil.copytree(root / "models/a", root / "models/c")
        return root

    def test_a_source_needs_a_model_alone(self, foreign, compared, tmp_path):
        shutil.rmtree(foreign / "models/b")
        settings = {"systems": "source-only,lalm", "sources": "a,c", "targets": "a,b"}
        result = m.compare(config(foreign, tmp_path / "out", **settings))
        assert result.results["transfers"] == ["a>b", "c>a", "c>b"]
        assert result.results["clips"] == {"a": 24, "b": 24}
        first, again = (predictions(tmp_path / "out", f"{source}/b/seed0") for source in ("a", "c"))
        np.testing.assert_array_equal(first["source-only"], again["source-only"])
        np.testing.assert_array_equal(first["source-only"], predictions(compared.out)["source-only"])

    def test_a_target_needs_no_model(self, foreign, tmp_path):
        shutil.rmtree(foreign / "models/b")
        result = m.compare(config(foreign, tmp_path / "out", systems="lalm", sources="c", targets="b"))
        assert result.results["transfers"] == ["c>b"]

    @pytest.mark.parametrize(
        ("given", "transfers"),
        [
            ({"sources": "c"}, ["c>a", "c>b"]),
            ({"targets": "b"}, ["a>b", "c>b"]),
            ({"names": "a,b"}, ["a>b", "b>a"]),
            ({}, ["a>b", "b>a"]),
        ],
    )
    def test_what_is_not_given_is_found(self, foreign, tmp_path, given, transfers):
        assert plan(config(foreign, tmp_path / "out", **given)).transfers == [
            tuple(transfer.split(">")) for transfer in transfers
        ]


class TestLabels:
    @pytest.fixture
    def planted(self, world, tmp_path):
        """The same corpora with the labels of b dealt out anew."""
        root = shutil.copytree(world, tmp_path / "planted")
        rows = read_rows(root / "data/b/labels.csv")
        emotions = [row["emotion"] for row in rows]
        rows = [
            {**row, "emotion": emotion}
            for row, emotion in zip(rows, emotions[7:] + emotions[:7], strict=True)
        ]
        write_csv(root / "data/b/labels.csv", rows)
        return root

    def test_planted_labels_change_the_oracle_alone(self, compared, planted, tmp_path):
        other = m.compare(config(planted, tmp_path / "out", systems="main,oracle,ablations"))
        found, expected = predictions(other.out), predictions(compared.out)
        assert found.keys() == expected.keys()
        for name, probs in expected.items():
            same = np.array_equal(found[name], probs, equal_nan=True)
            assert same == (name != "oracle"), name
        assert (
            other.results["systems"]["lalm"]["ua"]["a>b"] != compared.results["systems"]["lalm"]["ua"]["a>b"]
        )

    def test_no_task_but_the_oracle_s_carries_labels(self, world, tmp_path):
        assert all(task.truth is None for task in plan(config(world, tmp_path)).tasks.values())
        with_oracle = plan(config(world, tmp_path, systems="oracle")).tasks
        assert all(task.truth is not None for task in with_oracle.values())


class TestResume:
    def test_finished_runs_are_kept(self, world, tmp_path):
        out = tmp_path / "out"
        settings = {"systems": "source-only,lalm,shot", "seeds": "0,1"}
        first = m.compare(config(world, out, **settings))
        assert first.made == 2 * 2 * 3 and not first.up_to_date
        again = m.compare(config(world, out, **settings, update=True))
        assert again.made == 0 and again.up_to_date and again.results == first.results
        (out / "runs/b/a/seed1.h5").unlink()
        assert m.compare(config(world, out, **settings, update=True)).made == 3
        more = m.compare(config(world, out, **{**settings, "systems": "lalm,aad"}))
        assert more.made == 2 * 2 and list(more.results["systems"]) == ["lalm", "aad"]
        # What is not asked for now is kept all the same.
        assert m.compare(config(world, out, **settings, update=True)).made == 0
        tables = m.compare(config(world, out, **settings, resamples=101, update=True))
        assert tables.made == 0 and not tables.up_to_date
        # Those that are named are made anew, the others kept.
        assert m.compare(config(world, out, **{**settings, "systems": "shot"}, force=True)).made == 4
        assert m.compare(config(world, out, **{**settings, "systems": "lalm,aad,shot"})).made == 0

    def test_of_an_older_version_nothing_is_kept(self, world, tmp_path, monkeypatch):
        out = tmp_path / "out"
        m.compare(config(world, out, systems="lalm,shot"))
        monkeypatch.setitem(adaptation.METHODS, "shot", 2)
        assert m.compare(config(world, out, systems="lalm,shot")).made == 2
        for module in (adaptation, fusion):
            monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
            assert m.compare(config(world, out, systems="lalm,shot")).made == 4

    @pytest.mark.parametrize(
        "changes", [{"epochs": 3}, {"n_answers": 2}, {"n_samples": 4}, {"normalize": "target"}]
    )
    def test_other_settings_make_all_anew(self, world, tmp_path, changes):
        out, settings = tmp_path / "out", {"systems": "shot+lalm"}
        m.compare(config(world, out, **settings))
        assert m.compare(config(world, out, **settings, **changes, update=True)).made == 2

    def test_other_inputs_make_anew_what_depends_on_them(self, world, tmp_path):
        root, out = shutil.copytree(world, tmp_path / "world"), tmp_path / "out"
        m.compare(config(root, out, systems="shot"))
        shutil.rmtree(root / "models/a/seed0")
        shutil.copytree(root / "models/a/seed1", root / "models/a/seed0")
        before = predictions(out)["shot"]
        result = m.compare(config(root, out, systems="shot", update=True))
        assert result.made == 1 and not np.array_equal(predictions(out)["shot"], before)

    def test_a_damaged_run_is_made_anew(self, world, tmp_path):
        out = tmp_path / "out"
        m.compare(config(world, out, systems="lalm"))
        file = out / "runs/a/b/seed0.h5"
        file.write_bytes(file.read_bytes()[:-200])
        assert m.compare(config(world, out, systems="lalm", update=True)).made == 1

    @pytest.mark.slow
    def test_processes_give_the_same(self, world, compared, tmp_path):
        """Two processes, which load torch anew; all other tests run in this one."""
        m.compare(
            config(world, tmp_path / "out", systems="mifuse-mi,mifuse-cross-fit,labels-cross-fit", jobs=2)
        )
        for name, probs in predictions(tmp_path / "out").items():
            np.testing.assert_allclose(probs, predictions(compared.out)[name], atol=1e-5)

    @pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_errors_of_a_process_are_told(self, world, tmp_path, jobs):
        """Here and, which is slow as they load torch, by processes of their own."""
        root = shutil.copytree(world, tmp_path / "world")
        planned = plan(config(root, tmp_path / "out", systems="lalm"))
        assert len(planned.tasks) == 2
        (root / "lalm/b.h5").unlink()
        with pytest.raises(InputError, match=r"b\.h5: no such file"):
            list(_run(list(planned.tasks.values()), jobs=jobs))


class TestInductive:
    def test_it_says_so(self, inductive):
        assert "protocol:inductive|folds:3(speakers)|checkpoint" in inductive.protocol
        assert "inductive" in (inductive.out / "table.md").read_text()

    def test_nothing_is_heard_of_a_fold_that_is_scored(self, world, inductive, tmp_path):
        """Other answers about the clips of one speaker change no student's prediction for them."""
        root = shutil.copytree(world, tmp_path / "world")
        answers = artifacts.Lalm.load(root / "lalm/b.h5")
        clips = plan(config(root, tmp_path / "x")).corpora["b"].clips
        theirs = np.array([clip.speaker == "s1" for clip in clips])
        probs = answers.probs.copy()
        probs[theirs] = np.roll(probs[theirs], 1, axis=-1)
        replace(answers, probs=probs).save(root / "lalm/b.h5")
        m.compare(config(root, tmp_path / "out", protocol="inductive", folds=3))
        before, after = predictions(inductive.out), predictions(tmp_path / "out")
        heard = {
            "lalm-sfuda",
            "nrc+lalm",
            "shot+lalm",
            "aad+lalm",
            "t3a+lalm",
            "duet",
            "rcl",
            "dine",
            "prode",
            "mifuse-uniform",
            "mifuse-mi",
            "mifuse-cross-fit",
        }
        for name in heard:
            np.testing.assert_array_equal(after[name][theirs], before[name][theirs], err_msg=name)
            assert not np.array_equal(after[name][~theirs], before[name][~theirs]), name
        assert not np.array_equal(after["lalm"][theirs], before["lalm"][theirs])

    def test_together_is_a_system_of_its_own(self, world, inductive, compared, tmp_path):
        name = "mifuse-cross-fit/together"
        joined = m.compare(config(world, tmp_path / "a", protocol="inductive", folds=3, systems=name))
        assert "together:scored-fold" in joined.protocol
        assert not np.array_equal(
            predictions(tmp_path / "a")[name], predictions(inductive.out)["mifuse-cross-fit"]
        )
        assert f"{name}: left out, the mean of these clips is subtracted already" in compared.notes

    def test_every_clip_is_predicted(self, inductive):
        found = predictions(inductive.out)
        assert not any(np.isnan(probs).any() for name, probs in found.items() if name != "lalm")
        assert not found.keys() & {"labels-cross-fit", *WITHOUT_STUDENT}
        for name in WITHOUT_STUDENT:
            assert f"{name}: left out, it predicts only the clips that it is given" in inductive.notes

    def test_folds_are_of_whole_speakers(self, world, tmp_path):
        clips = plan(config(world, tmp_path)).corpora["b"].clips
        fold = splits.speaker_folds([clip.speaker for clip in clips], 3, np.random.default_rng(0))
        assert sorted(np.bincount(fold)) == [8, 8, 8]
        for name in ("s0", "s1", "s2"):
            assert len({f for f, clip in zip(fold, clips, strict=True) if clip.speaker == name}) == 1

    def test_folds_of_unknown_speakers_are_of_clips(self):
        fold = splits.speaker_folds([None] * 24, 5, np.random.default_rng(0))
        assert sorted(np.bincount(fold)) == [4, 5, 5, 5, 5]


class TestFewGold:
    @pytest.fixture(scope="class")
    def gold(self, world, tmp_path_factory):
        out = tmp_path_factory.mktemp("gold")
        systems = "lalm,source-only,mifuse-cross-fit,mifuse-cross-fit/gold-12"
        return config(world, out, systems=systems, protocol="few-gold")

    @pytest.fixture(scope="class")
    def result(self, gold):
        return m.compare(gold)

    def test_clips_whose_class_may_be_given_are_scored_for_no_system(self, gold, result):
        clips, pool = plan(gold).corpora["b"].clips, plan(gold).pool["b"]
        assert len(pool) == len(clips) // 2 and result.results["clips"]["b"] == len(clips) - len(pool)
        scored = artifacts.Target.load(gold.out / "targets/b.h5").utt_id
        assert set(scored) == {clip.utt_id for clip in clips} - {clips[at].utt_id for at in pool}
        assert f"b:{len(pool)}" in result.protocol and "few-gold" in result.protocol

    def test_it_is_what_fuse_and_train_make_of_these_labels(self, world, gold, result, tmp_path):
        made, pool = plan(gold), plan(gold).pool["b"][:12]
        rows = {row["file"].rpartition("/")[2]: row for row in read_rows(world / "data/b/labels.csv")}
        given = [rows[made.corpora["b"].clips[at].path.name] for at in pool]
        write_csv(tmp_path / "gold.csv", [{"file": r["file"], "emotion": r["emotion"]} for r in given])
        model, manifest = world / "models/a/seed0", world / "data/b/manifest.csv"
        answers = artifacts.Lalm.load(world / "lalm/b.h5")
        first = {
            name: value[:, :3]
            for name, value in answers.arrays().items()
            if name in ("probs", "status", "order", "usage", "raw_end")
        }
        lalm, source, fused = (tmp_path / f"{name}.h5" for name in ("lalm", "source", "fused"))
        replace(answers, **first).save(lalm)
        m.sample_source(m.SampleSourceConfig(model=model, manifest=manifest, out=source, n_samples=3))
        m.fuse(m.FuseConfig(lalm=(lalm,), source=source, gold=tmp_path / "gold.csv", out=fused))
        m.train(
            m.TrainConfig(fused=fused, model=model, manifest=manifest, out=tmp_path / "student", epochs=2)
        )
        found = Compared.load(gold.out / "runs/a/b/seed0.h5")
        probs = dict(zip(found.systems.tolist(), found.probs, strict=True))
        expected = Predictions.load(tmp_path / "student/predictions.h5").probs
        np.testing.assert_array_equal(probs["mifuse-cross-fit/gold-12"], expected)
        assert np.abs(probs["mifuse-cross-fit"] - expected).max() > 1e-3

    def test_other_systems_see_no_class(self, gold):
        tasks = plan(replace(gold, systems="lalm,mifuse-cross-fit", force=True)).tasks.values()
        assert all((task.gold == -1).all() and task.truth is None for task in tasks)

    def test_elsewhere_such_a_system_is_left_out(self, world, tmp_path):
        found = plan(config(world, tmp_path, systems="lalm,few-gold"))
        assert [one.name for one in found.systems] == ["lalm"]
        assert "compare it with --protocol few-gold" in " ".join(found.notes)

    def test_worlds_of_it_are_put_side_by_side(self, gold, result, tmp_path):
        m.compare_worlds(m.CompareWorldsConfig(worlds=(gold.out,), out=tmp_path / "w"))
        scores = read_rows(tmp_path / "w/scores.csv")
        told = [row for row in scores if row["system"] == "mifuse-cross-fit/gold-12"]
        own = {
            (row["source"], row["target"]): row["ua"]
            for row in read_rows(gold.out / "scores.csv")
            if row["system"] == "mifuse-cross-fit/gold-12"
        }
        assert len(told) == len(own) == 2
        assert all(float(row["ua"]) == float(own[row["source"], row["target"]]) for row in told)


class TestSpeakers:
    """What needs speakers is refused where they are not known, before anything is run."""

    @pytest.fixture
    def without(self, world, tmp_path):
        def make(column):
            root = shutil.copytree(world, tmp_path / "world")
            rows = [{**row, **column} for row in read_rows(root / "data/b/manifest.csv")]
            write_csv(root / "data/b/manifest.csv", rows)
            return root

        return make

    @pytest.mark.parametrize(
        ("options", "needs"),
        [
            ({"protocol": "inductive", "folds": 3}, "--protocol inductive"),
            ({"normalize": "speaker"}, "--normalize speaker"),
        ],
    )
    def test_unknown(self, without, tmp_path, options, needs):
        with pytest.raises(InputError, match=f"b: 24 of 24 clips have no speaker, which {needs} needs"):
            m.compare(config(without({"speaker": ""}), tmp_path / "out", **options))

    def test_too_few(self, world, tmp_path):
        with pytest.raises(InputError, match="has 3 speakers, fewer than --folds 4"):
            m.compare(config(world, tmp_path / "out", protocol="inductive", folds=4))

    def test_without_speakers_clips_are_drawn_and_the_tables_say_so(self, without, tmp_path):
        result = m.compare(config(without({"speaker": ""}), tmp_path / "out", systems="lalm,source-only"))
        assert "ci:95%/paired/speakers+clips/" in result.protocol
        assert "bootstrap over speakers or clips" in (tmp_path / "out/table.md").read_text()
        assert any(note.startswith("b: intervals are over clips") for note in result.notes)


class TestAnswers:
    def changed(self, world, tmp_path, **parameters):
        root = shutil.copytree(world, tmp_path / "world")
        answers = artifacts.Lalm.load(root / "lalm/b.h5")
        header = replace(answers.header, parameters={**answers.header.parameters, **parameters})
        return root, replace(answers, header=header)

    def test_a_part_of_them_is_refused(self, world, tmp_path):
        root, answers = self.changed(world, tmp_path, complete=False)
        answers.save(root / "lalm/b.h5")
        with pytest.raises(ArtifactError, match=r"b\.h5: some questions are unanswered"):
            m.compare(config(root, tmp_path / "out"))

    def test_clips_without_a_valid_one_are_told_of(self, world, tmp_path):
        root, answers = self.changed(world, tmp_path)
        probs = answers.probs.copy()
        probs[[2, 5], :3] = np.nan
        replace(answers, probs=probs).save(root / "lalm/b.h5")
        result = m.compare(config(root, tmp_path / "out"))
        assert "b: 2 clips have no valid answer among the first 3" in result.notes
        found = predictions(tmp_path / "out")
        assert np.isnan(found["lalm"][[2, 5]]).all() and not np.isnan(found["mifuse-cross-fit"]).any()

    def test_no_system_is_left(self, world, tmp_path):
        with pytest.raises(
            InputError, match=r"none of them can be run.*mifuse-cross-fit/20-answers: left out"
        ):
            m.compare(config(world, tmp_path / "out", systems="mifuse-cross-fit/20-answers"))

    def test_one_answer_has_no_temperature(self, world, tmp_path):
        systems = "mifuse-mi/lalm-by-self-agreement,mifuse-mi/lalm-by-source-agreement"
        result = m.compare(config(world, tmp_path / "out", systems=systems, n_answers=1))
        assert list(result.results["systems"]) == ["mifuse-mi/lalm-by-source-agreement"]
        assert any("cannot agree with others" in note for note in result.notes)


def test_bootstrap_is_over_speakers(world, tmp_path):
    planned = plan(config(world, tmp_path))
    assert planned.corpora["b"].speakers is not None and len(set(planned.corpora["b"].speakers)) == 3
    assert (
        m.CompareConfig(data=world, models=world, lalm=world, out=tmp_path).resamples == evaluation.RESAMPLES
    )
