"""`mifuse predict`: the same as `evaluate`, over files, directories, manifests and windows; resumed after a kill."""

import csv
import io
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import (
    CLASSES,
    HANG_SECONDS,
    RATE,
    mifuse,
    read_rows,
    refused,
    start,
    tone,
    train_config,
    until,
    write_csv,
)

import mifuse_cli as m
from mifuse_cli import artifacts, evaluation
from mifuse_cli.artifacts import Predictions
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import ArtifactError, InputError, UsageError
from mifuse_cli.steps.predict import kept as keeping
from mifuse_cli.steps.predict.parts import Part, parts_of


@pytest.fixture(scope="module")
def cross_fit(pipeline, corpora, tmp_path_factory):
    """A student of cross-fit labels."""
    root = tmp_path_factory.mktemp("cross-fit")
    m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=root / "fused.h5"))
    m.train(train_config(pipeline, corpora, root / "student", fused=root / "fused.h5"))
    return root / "student"


def predicted(path):
    """Probabilities by id in a CSV of predictions."""
    return {row["utt_id"]: [float(row[name]) for name in CLASSES] for row in read_rows(path)}


def scored(tmp_path, **options):
    """Probabilities (U, K) that evaluate gives."""
    out = tmp_path / "evaluated.h5"
    m.evaluate(m.EvaluateConfig(out=out, force=True, **options))
    found = artifacts.read(out)
    return found.utt_id.tolist(), found.probs


class TestEqualToEvaluate:
    @pytest.mark.parametrize(
        "options",
        [{}, {"normalize": "target"}, {"normalize": "speaker"}, {"normalize": "source"}],
        ids=lambda one: one.get("normalize", "own"),
    )
    def test_of_any_statistics(self, pipeline, corpora, tmp_path, options):
        ids, probs = scored(tmp_path, model=pipeline.model, manifest=corpora.labels, **options)
        out = tmp_path / "p.csv"
        manifest = corpora.target
        m.predict(m.PredictConfig(model=pipeline.model, manifest=manifest, out=out, **options))
        found = predicted(out)
        np.testing.assert_allclose([found[name] for name in ids], probs, atol=1e-5)
        assert list(found) == [Path(row["file"]).stem for row in read_rows(manifest)]  # the order given

    @pytest.mark.parametrize(("pooling", "tune"), [("mean+deviation", "head"), ("attentive", "top-1")])
    def test_of_any_pooling(self, corpora, encoders, tmp_path, pooling, tune):
        model, out = tmp_path / "m", tmp_path / "p.csv"
        options = {"pooling": pooling, "tune": tune, "layers": "0-1", "epochs": 3, "learning_rate": 1e-1}
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["wavlm"]), out=model, validation=0.0, **options
        )
        m.train_source(config)
        ids, probs = scored(tmp_path, model=model, manifest=corpora.labels)
        m.predict(m.PredictConfig(model=model, manifest=corpora.target, out=out))
        found = predicted(out)
        np.testing.assert_allclose([found[name] for name in ids], probs, atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"centre": True}, {"centre": True, "normalize": "speaker"}])
    def test_of_a_student_of_cross_fit(self, cross_fit, corpora, tmp_path, monkeypatch, options):
        from mifuse_cli.steps.predict import predicting

        monkeypatch.setattr(predicting, "_BLOCK", 5)  # statistics of several blocks
        ids, probs = scored(tmp_path, model=cross_fit, manifest=corpora.source, **options)
        out = tmp_path / "p.h5"
        m.predict(m.PredictConfig(model=cross_fit, manifest=corpora.source, out=out, **options))
        made = Predictions.load(out)
        assert made.utt_id.tolist() == ids and made.header.classes == CLASSES
        np.testing.assert_allclose(made.probs, probs, atol=1e-5)

    def test_the_artifact_is_scored_as_the_model(self, pipeline, cross_fit, corpora, tmp_path):
        for number, model in enumerate((pipeline.model, pipeline.student, cross_fit)):
            out = tmp_path / f"{number}.h5"
            m.predict(m.PredictConfig(model=model, manifest=corpora.target, out=out))
            scores = [
                m.evaluate(
                    m.EvaluateConfig(
                        manifest=corpora.labels, out=tmp_path / f"{number}{name}.h5", **{name: of}
                    )
                )
                for name, of in (("model", model), ("predictions", out))
            ]
            assert scores[0].signature == scores[1].signature
            assert scores[0].confusion == scores[1].confusion
            parents = {one.role: one for one in Predictions.load(out).header.parents}
            assert parents.keys() == {"model", "clips", "speakers"}

    def test_centred_predictions_say_so(self, cross_fit, corpora, tmp_path):
        out = tmp_path / "p.h5"
        m.predict(m.PredictConfig(model=cross_fit, manifest=corpora.source, out=out, centre=True))
        score = m.evaluate(m.EvaluateConfig(predictions=out, manifest=corpora.source, out=tmp_path / "e.h5"))
        assert "centred:these-clips" in score.signature and "inductive" in score.signature

    def test_centring_needs_a_student_of_cross_fit(self, pipeline, corpora):
        with pytest.raises(UsageError, match="holds no mean features of the classes"):
            m.predict(m.PredictConfig(model=pipeline.student, manifest=corpora.target, centre=True))

    def test_speakers_have_to_be_known(self, pipeline, corpora):
        with pytest.raises(InputError, match="24 of 24 clips have no speaker"):
            m.predict(m.PredictConfig(model=pipeline.model, wav_dir=corpora.wav_dir, normalize="speaker"))


class TestInputs:
    def test_the_same_clips_by_any_way(self, pipeline, corpora, tmp_path, monkeypatch):
        names = sorted(corpora.wav_dir.glob("*.wav"))
        ways = {
            "directory": {"wav_dir": corpora.wav_dir},
            "manifest": {"manifest": corpora.target},
            "files": {"files": names},
            "named directory": {"files": [corpora.wav_dir]},
            "lines": {"files": "-"},
            "zeros": {"files": ["-"]},
        }
        found = {}
        for way, options in ways.items():
            separator = "\0" if way == "zeros" else "\n"
            text = io.BytesIO(separator.join(map(str, names)).encode() + separator.encode())
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
            result = m.predict(m.PredictConfig(model=pipeline.student, **options))
            assert (result.clips, result.recordings, result.skipped, result.out) == (24, 24, 0, None)
            assert sum(result.predicted.values()) == 24
            found[way] = {one["utt_id"]: one["probs"] for one in result.predictions}
        for probs in found.values():
            assert probs == found["files"]

    def test_ids_are_paths_where_stems_are_not_unique(self, pipeline, corpora, tmp_path):
        name = sorted(corpora.wav_dir.glob("*.wav"))[0]
        for place in ("a", "b"):
            (tmp_path / place).mkdir()
            (tmp_path / place / "x.wav").write_bytes(name.read_bytes())
        files = [tmp_path / place / "x.wav" for place in ("a", "b", "a")]
        result = m.predict(m.PredictConfig(model=pipeline.student, files=files))
        assert [one["utt_id"] for one in result.predictions] == [str(file) for file in files[:2]]
        assert result.predictions[0]["probs"] == result.predictions[1]["probs"]

    def test_no_name_on_stdin(self, pipeline, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        with pytest.raises(InputError, match="names no file"):
            m.predict(m.PredictConfig(model=pipeline.student, files=["-"]))


@pytest.fixture
def bad(corpora, tmp_path):
    """Three good clips, and three that cannot be read."""
    root = tmp_path / "recordings"
    root.mkdir()
    for path in sorted(corpora.wav_dir.glob("*.wav"))[:3]:
        (root / path.name).write_bytes(path.read_bytes())
    (root / "text.wav").write_text("no audio")
    (root / "empty.wav").touch()
    soundfile.write(root / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    return root


class TestSkipped:
    def test_what_cannot_be_read_is_told(self, pipeline, bad, tmp_path):
        out = tmp_path / "p.csv"
        table = write_csv(
            tmp_path / "m.csv", [{"file": path} for path in (*sorted(bad.iterdir()), bad / "absent.wav")]
        )
        result = mifuse("predict", "--model", pipeline.student, "--out", out, "--manifest", table)
        assert result.exit_code == 0 and "note: 4 of 7 clips are skipped, such as empty" in result.stderr
        assert "clips      3 of 7\n" in result.stdout
        rows = read_rows(out)
        assert len(rows) == 7
        for row in rows:
            given = Path(row["file"]).stem in ("text", "empty", "nan", "absent")
            assert bool(row["skipped"]) == given and bool(row["predicted"]) != given
            assert bool(row["angry"]) != given
        (absent,) = (row["skipped"] for row in rows if row["utt_id"] == "absent")
        assert "absent.wav: no such file" in absent
        assert not list(tmp_path.glob("*.part"))

    def test_names_given_have_to_be_there(self, pipeline, bad, tmp_path):
        out = tmp_path / "p.csv"
        result = mifuse("predict", "--model", pipeline.student, "--out", out, bad, bad / "absent.wav", "wavs")
        refused(result, 3, "absent.wav, wavs: no such file or directory")
        assert not out.exists()

    def test_an_artifact_counts_them_as_missing(self, pipeline, bad, tmp_path):
        out = tmp_path / "p.h5"
        m.predict(m.PredictConfig(model=pipeline.student, wav_dir=bad, out=out))
        made = Predictions.load(out)
        assert np.isnan(made.probs).all(axis=1).sum() == 3
        labels = write_csv(
            tmp_path / "labels.csv",
            [{"utt_id": name, "file": "x.wav", "emotion": "sad"} for name in made.utt_id],
        )
        score = m.evaluate(m.EvaluateConfig(predictions=out, manifest=labels, out=tmp_path / "e.h5"))
        assert score.metrics["missing"] == 3

    @pytest.mark.parametrize("name", ["p.csv", "p.h5", None])
    def test_nothing_that_can_be_predicted(self, pipeline, tmp_path, name):
        (tmp_path / "text.wav").write_text("no audio")
        out = ["--out", tmp_path / name] if name else []
        result = mifuse("predict", "--model", pipeline.student, tmp_path / "text.wav", *out)
        refused(result, 3, "none of 1 clips can be predicted", "cannot be decoded as audio")
        assert [path.name for path in tmp_path.iterdir()] == ["text.wav"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """7.3 s at 22,050 Hz, two channels, which change every second."""
    rng, rate = np.random.default_rng(0), 22_050
    time = np.arange(int(7.3 * rate)) / rate
    pitch = np.array([150, 400, 200, 300, 120, 350, 250, 180])[time.astype(int)]
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * rng.standard_normal(len(time))
    path = tmp_path_factory.mktemp("recording") / "talk.wav"
    soundfile.write(path, np.stack([sound, 0.5 * sound], axis=1), rate, subtype="FLOAT")
    return path


class TestWindows:
    def windows(self, path, segments, hop=None):
        config = m.PredictConfig(model="m", files=[path], segments=segments, hop=hop)
        return [(part.utt_id, part.excerpt.start, part.excerpt.end) for part in parts_of(config)]

    def test_they_cover_the_recording_and_are_of_one_length(self, recording, tmp_path):
        assert self.windows(recording, 3) == [
            ("talk_0-3", 0, 3), ("talk_3-6", 3, 6), ("talk_4.3-7.3", 4.3, 7.3),
        ]  # fmt: skip
        assert [start for _, start, _ in self.windows(recording, 3, 1.5)] == [0, 1.5, 3, 4.3]
        assert self.windows(recording, 7.3) == self.windows(recording, 60) == [("talk_0-7.3", 0, 7.3)]
        (tmp_path / "text.wav").write_text("no audio")
        assert self.windows(tmp_path / "text.wav", 3) == [("text", 0, None)]

    @pytest.mark.parametrize("seconds", [0.3, 1.0, 2.999, 3.0, 3.001, 6.0, 10.7])
    def test_of_any_length(self, tmp_path, seconds):
        soundfile.write(tmp_path / "a.wav", tone(200, 0.3, np.random.default_rng(0), seconds), RATE)
        for hop in (0.7, 1.3, 3):
            bounds = [(a, b) for _, a, b in self.windows(tmp_path / "a.wav", 3, hop)]
            end = len(soundfile.read(tmp_path / "a.wav")[0]) / RATE
            assert bounds[0][0] == 0 and bounds[-1][1] == pytest.approx(end, abs=1e-5)
            assert all(b - a == pytest.approx(min(3, end), abs=1e-5) for a, b in bounds)
            assert all(0 < after[0] - before[0] <= hop + 1e-5 for before, after in pairwise(bounds))

    def test_they_are_predicted_as_clips_of_their_own(self, pipeline, recording, tmp_path):
        out = tmp_path / "p.jsonl"
        result = m.predict(
            m.PredictConfig(model=pipeline.student, files=[recording], segments=2, hop=1, out=out)
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert (result.clips, result.recordings) == (len(rows), 1) == (7, 1)
        samples, rate = soundfile.read(recording)
        for row in rows:
            part = tmp_path / f"{row['utt_id']}.wav"
            cut = samples[round(row["start"] * rate) : round(row["end"] * rate)]
            soundfile.write(part, cut, rate, subtype="FLOAT")
        alone = m.predict(
            m.PredictConfig(model=pipeline.student, files=[tmp_path / f"{row['utt_id']}.wav" for row in rows])
        )
        for row, other in zip(rows, alone.predictions, strict=True):
            assert row["probs"] == pytest.approx(other["probs"], abs=2e-6)
        assert len({tuple(row["probs"].values()) for row in rows}) == 7

    def test_formats_have_their_times(self, pipeline, recording, tmp_path):
        base = {"model": pipeline.student, "files": [recording], "segments": 3.0}
        for name, kind in (("p.csv", ""), ("p.rttm", ""), ("p.h5", ""), ("a.csv", "audformat")):
            m.predict(m.PredictConfig(**base, out=tmp_path / name, format=kind))
        rows = read_rows(tmp_path / "p.csv")
        assert [(row["start"], row["end"]) for row in rows] == [
            ("0.0", "3.0"),
            ("3.0", "6.0"),
            ("4.3", "7.3"),
        ]
        lines = [line.split() for line in (tmp_path / "p.rttm").read_text().splitlines()]
        assert [line[:5] for line in lines] == [
            ["SPEAKER", "talk", "1", start, "3.000"] for start in ("0.000", "3.000", "4.300")
        ]
        assert [line[7] for line in lines] == [row["predicted"] for row in rows] and len(lines[0]) == 10
        made = Predictions.load(tmp_path / "p.h5")
        assert made.start.tolist() == [0, 3, 4.3] and made.end.tolist() == [3, 6, 7.3]
        assert made.file.tolist() == [str(recording)] * 3
        table = read_rows(tmp_path / "a.csv")
        assert [(row["start"], row["end"]) for row in table] == [
            ("0 days 00:00:00.000000", "0 days 00:00:03.000000"),
            ("0 days 00:00:03.000000", "0 days 00:00:06.000000"),
            ("0 days 00:00:04.300000", "0 days 00:00:07.300000"),
        ]
        assert [row["emotion"] for row in table] == [row["predicted"] for row in rows]


class TestDecisions:
    def test_prior_corrected_by_the_target_of_the_student(self, pipeline, corpora, tmp_path):
        prior = Predictions.load(pipeline.student / "predictions.h5").probs.astype(float).mean(axis=0)
        one = {"model": pipeline.student, "manifest": corpora.source}
        plain = m.predict(m.PredictConfig(**one))
        corrected = m.predict(m.PredictConfig(**one, decision="prior-corrected"))
        probs = np.array([[row["probs"][name] for name in CLASSES] for row in plain.predictions])
        for result, expected in (
            (plain, evaluation.predicted_classes(probs)),
            (corrected, evaluation.prior_corrected_classes(probs, prior)),
        ):
            assert [CLASSES.index(row["predicted"]) for row in result.predictions] == expected.tolist()
            assert {row["decision"] for row in result.predictions} == {result.decision}
        assert plain.prior == {} and corrected.prior == pytest.approx(dict(zip(CLASSES, prior, strict=True)))
        assert not corrected.notes

    def test_of_a_source_model_by_the_clips_at_hand(self, pipeline, corpora):
        result = m.predict(
            m.PredictConfig(model=pipeline.model, manifest=corpora.target, decision="prior-corrected")
        )
        probs = np.array([[row["probs"][name] for name in CLASSES] for row in result.predictions])
        assert list(result.prior.values()) == pytest.approx(probs.mean(axis=0), abs=1e-5)
        assert "mean prediction for these 24 clips" in result.notes[0]


def test_mutual_information_depends_on_the_clip_alone(pipeline, corpora, tmp_path):
    names = sorted(corpora.wav_dir.glob("*.wav"))
    base = {"model": pipeline.student, "n_samples": 6}
    every = m.predict(m.PredictConfig(**base, files=names)).predictions
    some = m.predict(m.PredictConfig(**base, files=names[5:7])).predictions
    assert [row["mi"] for row in some] == [row["mi"] for row in every[5:7]]
    assert all(0 < row["mi"] < np.log(4) for row in every)
    other = m.predict(m.PredictConfig(**base, files=names[5:7], seed=1)).predictions
    assert [row["mi"] for row in other] != [row["mi"] for row in some]
    together = m.predict(
        m.PredictConfig(**{**base, "model": pipeline.model}, files=names, normalize="target")
    )
    assert all(row["mi"] > 0 for row in together.predictions)
    m.predict(m.PredictConfig(**base, files=names, out=tmp_path / "p.h5"))
    assert Predictions.load(tmp_path / "p.h5").mi.tolist() == pytest.approx(
        [row["mi"] for row in every], abs=1e-5
    )


class TestResumed:
    @pytest.fixture
    def stops(self, monkeypatch):
        """Interrupts the run after so many clips were kept."""
        add = keeping.Kept.add

        def stop(count):
            left = [count]

            def counted(self, part, values):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                add(self, part, values)

            monkeypatch.setattr(keeping.Kept, "add", counted)

        return stop

    @pytest.mark.parametrize("options", [{}, {"normalize": "target"}], ids=["at once", "together"])
    @pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.h5"])
    def test_it_goes_on(self, pipeline, corpora, tmp_path, stops, monkeypatch, name, options):
        base = {"model": pipeline.model, "wav_dir": corpora.wav_dir, **options}
        whole, out = tmp_path / f"whole-{name}", tmp_path / name
        m.predict(m.PredictConfig(**base, out=whole))
        stops(7)
        with pytest.raises(KeyboardInterrupt):
            m.predict(m.PredictConfig(**base, out=out))
        assert {path.name for path in tmp_path.iterdir()} == {whole.name, f"{name}.part"}
        stops(17)  # as many as are left
        result = m.predict(m.PredictConfig(**base, out=out))
        assert (result.clips, result.continued) == (24, 7)
        assert {path.name for path in tmp_path.iterdir()} == {whole.name, name}
        if name == "p.h5":
            np.testing.assert_allclose(Predictions.load(out).probs, Predictions.load(whole).probs, atol=1e-6)
        else:
            assert out.read_text().count("\n") == whole.read_text().count("\n")

    def test_not_with_another_model_or_other_settings(self, pipeline, corpora, tmp_path, stops, monkeypatch):
        out = tmp_path / "p.csv"
        stops(7)
        with pytest.raises(KeyboardInterrupt):
            m.predict(m.PredictConfig(model=pipeline.student, wav_dir=corpora.wav_dir, out=out))
        for other, word in (({"model": pipeline.model}, "model"), ({"n_samples": 3}, "settings")):
            options = {"model": pipeline.student, "wav_dir": corpora.wav_dir, **other}
            with pytest.raises(ArtifactError, match=f"interrupted run with another {word}"):
                m.predict(m.PredictConfig(**options, out=out))
        monkeypatch.undo()
        # What the decision is, and the format, does not matter.
        options = {"model": pipeline.student, "wav_dir": corpora.wav_dir, "decision": "prior-corrected"}
        assert m.predict(m.PredictConfig(**options, out=out, format="jsonl")).continued == 7

    def test_changed_and_mended_files_are_predicted_anew(self, pipeline, bad, tmp_path, stops, monkeypatch):
        out, good = tmp_path / "p.csv", sorted(bad.glob("*-2.wav"))
        options = {"model": pipeline.student, "wav_dir": bad, "out": out}
        stops(2)
        with pytest.raises(KeyboardInterrupt):
            m.predict(m.PredictConfig(**options))
        monkeypatch.undo()
        loud, _ = soundfile.read(good[0])
        for path in (*good, bad / "text.wav"):
            soundfile.write(path, loud[::-1] * 0.5, RATE)
        result = m.predict(m.PredictConfig(**options))
        assert (result.clips, result.skipped, result.continued) == (4, 2, 0)
        assert len({tuple(row[name] for name in CLASSES) for row in read_rows(out) if row["predicted"]}) == 1

    def test_a_damaged_part_is_told(self, pipeline, corpora, tmp_path):
        (tmp_path / "p.csv.part").write_text("no database " * 100)
        with pytest.raises(InputError, match=r"p\.csv\.part: is damaged.*Delete it"):
            m.predict(
                m.PredictConfig(model=pipeline.student, wav_dir=corpora.wav_dir, out=tmp_path / "p.csv")
            )

    def test_a_part_that_another_program_holds_is_told(self, pipeline, corpora, tmp_path, monkeypatch):
        real = sqlite3.connect
        monkeypatch.setattr(keeping.sqlite3, "connect", lambda path: real(path, timeout=0.1))
        with closing(real(tmp_path / "p.csv.part")) as other:
            other.execute("BEGIN EXCLUSIVE")
            result = mifuse("predict", "--model", pipeline.student, "--wav-dir", corpora.wav_dir, "--out",
                            tmp_path / "p.csv")  # fmt: skip
            refused(result, 3, "p.csv.part: another program has been writing", "choose another --out")

    def test_one_run_at_a_time(self, pipeline, corpora, tmp_path):
        out = tmp_path / "p.csv"
        config = m.PredictConfig(model=pipeline.student, manifest=corpora.target, out=out)
        with (
            keeping.alone(tmp_path / "p.csv.part"),
            pytest.raises(InputError, match="another mifuse predict"),
        ):
            m.predict(config)
        m.predict(config)
        assert out.exists() and not (tmp_path / "p.csv.part").exists()

    def test_a_part_that_vanishes_is_told(self, tmp_path):
        part, clip = tmp_path / "p.csv.part", Part("a", Excerpt(tmp_path / "a.wav"))
        with pytest.raises(InputError, match=r"p\.csv\.part: is no longer there.*choose another --out"):  # noqa: SIM117
            with keeping.kept_in(part, {"model": "m"}) as found:
                part.unlink()
                found.add(clip, np.zeros(4))
                found.write()

    @pytest.mark.slow
    def test_killed(self, pipeline, corpora, tmp_path):
        """A real process, killed once something was written."""
        out, part = tmp_path / "p.csv", tmp_path / "p.csv.part"
        names = sorted(corpora.wav_dir.glob("*.wav"))
        root = tmp_path / "many"
        root.mkdir()
        for number in range(600):
            os.link(names[number % len(names)], root / f"{number:04}.wav")
        process = start(
            "predict", "--model", pipeline.student, "--wav-dir", root, "--out", out, "--workers", "1"
        )

        def rows():
            import sqlite3

            if not part.exists():
                return 0
            try:
                with sqlite3.connect(f"file:{part}?mode=ro", uri=True, timeout=5) as store:
                    return store.execute("SELECT COUNT(*) FROM clip").fetchone()[0]
            except sqlite3.OperationalError:
                return 0

        try:
            until(lambda: rows() or process.poll() is not None)
            process.send_signal(signal.SIGKILL)
        finally:
            process.communicate(timeout=HANG_SECONDS)
        assert not out.exists() and 0 < rows() < 600
        done = rows()
        result = m.predict(m.PredictConfig(model=pipeline.student, wav_dir=root, out=out))
        assert (result.clips, result.continued) == (600, done)
        assert len(predicted(out)) == 600


class TestCommand:
    def test_a_table_on_the_terminal(self, pipeline, corpora):
        names = sorted(corpora.wav_dir.glob("*.wav"))[:2]
        result = mifuse("predict", "--model", pipeline.student, *names)
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["clip", *CLASSES, "predicted"]
        assert [line.split()[0] for line in lines[1:3]] == [name.stem for name in names]
        assert "decision   plain" in result.stdout and "clips      2 of 2\n" in result.stdout

    def test_json(self, pipeline, corpora):
        names = sorted(corpora.wav_dir.glob("*.wav"))[:2]
        found = json.loads(mifuse("predict", "--model", pipeline.student, *names, "--json").stdout)
        assert [one["file"] for one in found["predictions"]] == list(map(str, names))
        assert sum(found["predictions"][0]["probs"].values()) == pytest.approx(1, abs=1e-5)

    def test_an_output_that_exists(self, pipeline, corpora, tmp_path):
        out = tmp_path / "p.h5"
        arguments = ["predict", "--model", pipeline.student, "--wav-dir", corpora.wav_dir, "--out", out]
        first = mifuse(*arguments)
        assert first.exit_code == 0
        refused(mifuse(*arguments), 3, "exists already")
        again = mifuse(*arguments, "--update")
        assert "up to date" in again.stderr and again.stdout == first.stdout
        other = mifuse(*arguments, "--update", "--decision", "prior-corrected")
        assert "up to date" not in other.stderr and "prior" in other.stdout
        assert "up to date" in mifuse(*arguments, "--update", "--decision", "prior-corrected").stderr

    def test_csv_has_one_header_and_plain_numbers(self, pipeline, corpora, tmp_path):
        out = tmp_path / "p.csv"
        mifuse("predict", "--model", pipeline.student, "--wav-dir", corpora.wav_dir, "--out", out)
        with out.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["utt_id", "file", *CLASSES, "predicted", "decision", "skipped"]
        assert all(sum(map(float, row[2:6])) == pytest.approx(1, abs=1e-5) for row in rows)
