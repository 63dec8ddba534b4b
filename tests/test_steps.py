import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES, KEY, read_rows, tone, write_csv

import mifuse_cli as m
from mifuse_cli import artifacts, fusion
from mifuse_cli.artifacts import Fused, Lalm, Predictions, Source, Training
from mifuse_cli.errors import ArtifactError, InputError, RemoteError, UsageError
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lalm.parsing import Status
from mifuse_cli.steps.query_lalm import journal_path
from mifuse_cli.steps.train_source import fit_temperature, pick_layers, split_speakers


def weights(checkpoint):
    return (checkpoint / "model.safetensors").read_bytes()


def encoder_weights(checkpoint):
    from safetensors.numpy import load_file

    return load_file(checkpoint / "encoder" / "model.safetensors")


def train_config(run, corpora, out, **changes):
    values = {"fused": run.fused, "model": run.model, "manifest": corpora.target, "epochs": 2}
    return m.TrainConfig(out=out, **{**values, **changes})


class TestPipeline:
    def test_train_source(self, pipeline):
        result = pipeline.results["train_source"]
        assert (result.clips, result.validation_clips, result.validation_speakers) == (24, 8, 1)
        assert 1 <= result.epochs <= 8 and 0 <= result.validation_ua <= 1
        assert 0.05 <= result.temperature <= 20 and not result.notes
        made = Training.load(pipeline.model / "train.h5")
        assert made.history.shape == (8, 3)
        assert made.history[:, 1].argmin() + 1 == result.epochs
        assert [parent.role for parent in made.header.parents] == ["clips", "labels", "encoder"]

    def test_query_lalm(self, pipeline):
        result = pipeline.results["query_lalm"]
        assert (result.clips, result.samples, result.asked) == (24, 3, 72)
        assert result.statuses == {"ok": 72} and result.without_answer == 0
        assert 0 < result.mean_mi < np.log(4) and result.tokens == {"prompt": 720, "completion": 360}
        made = Lalm.load(pipeline.lalm)
        assert (np.sort(made.order, axis=-1) == np.arange(4)).all()
        assert (made.order[:, 0] != made.order[:, 1]).any(axis=-1).all()  # rotated from sample to sample
        assert made.raw_answer(5, 2).startswith("{") and made.header.parameters["model"] == "m"

    def test_sample_source(self, pipeline):
        result, made = pipeline.results["sample_source"], Source.load(pipeline.source)
        assert (result.clips, result.samples) == (24, 4) == made.probs.shape[:2]
        assert 0 < result.mean_mi < np.log(4) and sum(result.marginal.values()) == pytest.approx(1, abs=1e-5)
        assert tuple(result.marginal) == CLASSES
        assert made.header.parameters == {"normalize": "source", "calibrate": False}

    def test_fuse_gives_the_numbers_of_fusion(self, pipeline):
        result, made = pipeline.results["fuse"], Fused.load(pipeline.fused)
        teachers = [Lalm.load(pipeline.lalm), Source.load(pipeline.source)]
        stats = [fusion.mean_and_mi(teacher.probs.astype(float)) for teacher in teachers]
        mean, mi = (np.stack(part, axis=1) for part in zip(*stats, strict=True))
        weight, probs = fusion.fuse(mean, mi, weighting="mi", tau=0.1)
        np.testing.assert_allclose(made.probs, probs, atol=1e-6)
        np.testing.assert_allclose(made.weights, weight, atol=1e-6)
        np.testing.assert_allclose(made.mi, mi, atol=1e-6)
        best = mean.argmax(axis=-1)
        assert result.agreement == pytest.approx((best[:, 0] == best[:, 1]).mean())
        assert result.mean_weight["lalm"] == pytest.approx(weight[:, 0].mean())
        assert result.fallbacks == 0 and not result.notes

    def test_train(self, pipeline):
        result = pipeline.results["train"]
        assert (result.method, result.clips, result.epochs, result.resumed_from) == ("mifuse", 24, 4, 0)
        assert set(result.losses) == {"cross_entropy", "diversity"}
        assert np.isfinite(list(result.losses.values())).all()
        assert sum(result.marginal.values()) == pytest.approx(1, abs=1e-5)
        history = Training.load(pipeline.student / "train.h5").history
        assert history.shape == (4, 2) and history[-1, 0] < history[0, 0]
        assert weights(pipeline.student) != weights(pipeline.model)
        assert not list(pipeline.root.glob("*.partial"))

    def test_evaluate_model_equals_its_predictions(self, pipeline, corpora, tmp_path):
        model = m.EvaluateConfig(model=pipeline.student, manifest=corpora.labels, out=tmp_path / "a.h5")
        first = m.evaluate(model)
        left = pipeline.student / "predictions.h5"
        second = m.evaluate(
            m.EvaluateConfig(predictions=left, manifest=corpora.labels, out=tmp_path / "b.h5")
        )
        probs = artifacts.read(tmp_path / "a.h5").probs
        np.testing.assert_allclose(probs, Predictions.load(left).probs, atol=1e-6)
        assert first.confusion == second.confusion and first.metrics["ua"] == second.metrics["ua"]
        assert "transductive" in first.signature and "mifuse" in first.signature
        source = m.EvaluateConfig(model=pipeline.model, manifest=corpora.source, out=tmp_path / "c.h5")
        assert "seen-in-training" in m.evaluate(source).signature
        other = m.EvaluateConfig(model=pipeline.student, manifest=corpora.source, out=tmp_path / "d.h5")
        assert "inductive" in m.evaluate(other).signature

    @pytest.mark.parametrize("name", ["lalm.h5", "source.h5", "fused.h5"])
    def test_evaluate_artifact(self, pipeline, corpora, tmp_path, name):
        out = tmp_path / "eval.h5"
        result = m.evaluate(
            m.EvaluateConfig(predictions=pipeline.root / name, manifest=corpora.labels, out=out)
        )
        confusion = np.array(result.confusion)
        assert confusion.sum() == 24 and (confusion.sum(axis=1) == 6).all()
        recall = confusion[:, :4].diagonal() / 6
        assert result.metrics["recall"] == pytest.approx(recall.tolist())
        assert result.metrics["ua"] == pytest.approx(recall.mean())
        assert result.metrics["ua_low"] <= result.metrics["ua"] <= result.metrics["ua_high"]
        assert result.metrics["interval"] == "speakers" and result.classes == CLASSES
        if name == "lalm.h5":
            assert result.metrics["ua"] == 1  # the stand-in hears pitch and level, and joins are by id
            assert "lalm=m" in result.signature.replace(":", "=")

    @pytest.mark.parametrize("name", ["lalm.h5", "source.h5", "fused.h5", "model", "student"])
    def test_show(self, pipeline, name):
        result = m.show(m.ShowConfig(file=pipeline.root / name))
        assert result.classes == CLASSES and len(result.sha256) == 64
        assert {parent["state"] for parent in result.parents} <= {"unchanged", "not compared"}
        if name == "lalm.h5":
            assert result.counts == {"ok": 72, "clips without a valid answer": 0}
            assert result.datasets["probs"]["axes"] == "U N K"
            assert result.datasets["probs"]["shape"] == [24, 3, 4]
        if name == "student":
            assert result.kind == "checkpoint" and result.parameters["method"] == "mifuse"

    def test_show_tells_of_changed_parents(self, copy):
        shutil.rmtree(copy.model)
        lalm = Lalm.load(copy.lalm)
        replace(lalm, probs=lalm.probs[:, ::-1]).save(copy.lalm)
        states = {p["role"]: p["state"] for p in m.show(m.ShowConfig(file=copy.fused)).parents}
        assert states == {"lalm": "changed", "source": "unchanged"}
        states = {p["role"]: p["state"] for p in m.show(m.ShowConfig(file=copy.source)).parents}
        assert states == {"model": "absent", "clips": "not compared"}

    def test_wrong_labels_change_nothing(self, pipeline, corpora, tmp_path):
        rows = read_rows(corpora.labels)
        wrong = [row | {"emotion": CLASSES[(CLASSES.index(row["emotion"]) + 1) % 4]} for row in rows]
        planted = write_csv(corpora.target.parent / "planted.csv", wrong)
        samples = m.SampleSourceConfig(
            model=pipeline.model, manifest=planted, out=tmp_path / "source.h5", n_samples=4
        )
        m.sample_source(samples)
        config = m.FuseConfig(lalm=pipeline.lalm, source=tmp_path / "source.h5", out=tmp_path / "fused.h5")
        m.fuse(config)
        m.train(
            m.TrainConfig(
                fused=tmp_path / "fused.h5",
                model=pipeline.model,
                manifest=planted,
                out=tmp_path / "student",
                epochs=4,
            )
        )
        assert weights(tmp_path / "student") == weights(pipeline.student)

    def test_wav_dir_in_place_of_a_manifest(self, pipeline, corpora, tmp_path):
        out = tmp_path / "source.h5"
        config = m.SampleSourceConfig(model=pipeline.model, wav_dir=corpora.wav_dir, out=out, n_samples=4)
        m.sample_source(config)
        np.testing.assert_array_equal(Source.load(out).probs, Source.load(pipeline.source).probs)

    def test_evaluate_needs_labels(self, pipeline, corpora, tmp_path):
        out = tmp_path / "eval.h5"
        for system in ({"predictions": pipeline.fused}, {"model": pipeline.student}):
            with pytest.raises(InputError, match="emotion"):
                m.evaluate(m.EvaluateConfig(manifest=corpora.target, out=out, **system))
        assert not out.exists()

    def test_calibration_divides_the_logits(self, pipeline, corpora, tmp_path):
        out = tmp_path / "source.h5"
        config = m.SampleSourceConfig(
            model=pipeline.model, manifest=corpora.target, out=out, n_samples=4, calibrate=True
        )
        m.sample_source(config)
        plain = np.log(Source.load(pipeline.source).point)
        scaled = plain / pipeline.results["train_source"].temperature
        expected = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(Source.load(out).point, expected, atol=1e-4)


class TestTuning:
    def test_lalm_sfuda(self, pipeline, corpora, tmp_path):
        result = m.train(train_config(pipeline, corpora, tmp_path / "s", method="lalm-sfuda"))
        assert result.method == "lalm-sfuda" and (result.clips, result.epochs) == (24, 2)
        assert encoder_weights(tmp_path / "s").keys() == encoder_weights(pipeline.model).keys()

    @pytest.mark.parametrize("tune", ["top-1", "all"])
    def test_encoder(self, pipeline, corpora, tmp_path, tune):
        out = tmp_path / "student"
        config = train_config(
            pipeline, corpora, out, tune=tune, epochs=1, encoder_learning_rate=1e-2, batch_size=8
        )
        m.train(config)
        before, after = encoder_weights(pipeline.model), encoder_weights(out)
        prefix = "model." if any(name.startswith("model.") for name in before) else ""
        names = {name.removeprefix(prefix): name for name in before}
        changed = {
            name
            for name, tensor in after.items()
            if name.startswith("encoder.")
            and not np.array_equal(tensor, before[names.get(name, prefix + name)])
        }
        assert any(name.startswith("encoder.layers.1.") for name in changed)
        if tune == "top-1":
            assert all(name.startswith("encoder.layers.1.") for name in changed)
        else:
            assert any(name.startswith("encoder.layers.0.") for name in changed)
            assert "encoder.conv1.weight" in changed
        found = m.evaluate(m.EvaluateConfig(model=out, manifest=corpora.labels, out=tmp_path / "eval.h5"))
        assert found.metrics["missing"] == 0
        evaluated, left = artifacts.read(tmp_path / "eval.h5"), Predictions.load(out / "predictions.h5")
        np.testing.assert_allclose(evaluated.probs, left.probs, atol=1e-5)

    def test_more_blocks_than_there_are(self, pipeline, corpora, tmp_path):
        with pytest.raises(UsageError, match="2 blocks"):
            m.train(train_config(pipeline, corpora, tmp_path / "s", tune="top-3"))
        assert not (tmp_path / "s").exists()

    def test_source_from_scratch(self, corpora, tmp_path):
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder="logmel", out=tmp_path / "m", epochs=2, batch_size=8
        )
        result = m.train_source(config)
        assert result.clips == 24 and 1 <= result.epochs <= 2
        with pytest.raises(UsageError, match="tune all"):
            m.train_source(replace(config, tune="head", out=tmp_path / "n"))

    def test_train_is_repeatable(self, pipeline, corpora, tmp_path):
        for name in ("a", "b"):
            m.train(train_config(pipeline, corpora, tmp_path / name))
        assert weights(tmp_path / "a") == weights(tmp_path / "b")
        m.train(train_config(pipeline, corpora, tmp_path / "c", seed=1))
        assert weights(tmp_path / "c") != weights(tmp_path / "a")


class TestSourceTraining:
    def test_validation_holds_out_whole_speakers(self, corpora):
        from mifuse_cli.manifest import read_labelled

        labelled = read_labelled(corpora.source, CLASSES)
        held_out, notes = split_speakers(labelled, 0.2, seed=0)
        speakers = [one.clip.speaker for one in labelled]
        inside = {s for s, out in zip(speakers, held_out, strict=True) if out}
        assert len(inside) == 1 and held_out.sum() == 8 and not notes
        assert not inside & {s for s, out in zip(speakers, held_out, strict=True) if not out}
        unknown = [replace(one, clip=replace(one.clip, speaker=None)) for one in labelled]
        held_out, notes = split_speakers(unknown, 0.25, seed=0)
        assert held_out.sum() == 6 and "at random" in notes[0]
        assert not split_speakers(labelled, 0.0, seed=0)[0].any()
        with pytest.raises(InputError, match="single clip"):
            split_speakers(labelled[:1], 0.2, seed=0)

    def test_temperature(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(4000, 4)) * 1.5
        labels = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
        assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)
        assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.3)

    def test_layers(self, corpora, encoders, tmp_path):
        assert [pick_layers(text, 5) for text in ("all", "middle", "0, 4")] == [(0, 1, 2, 3, 4), (2,), (0, 4)]
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=tmp_path / "m", layers="1,3"
        )
        with pytest.raises(UsageError, match="layers 0 to 2"):
            m.train_source(config)
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("mode", ["source", "target", "speaker"])
    def test_normalize(self, pipeline, corpora, tmp_path, mode):
        out, without = tmp_path / "source.h5", tmp_path / "source2.h5"
        config = m.SampleSourceConfig(
            model=pipeline.model, manifest=corpora.target, out=out, normalize=mode, n_samples=2
        )
        m.sample_source(config)
        made = Source.load(out)
        assert made.header.parameters["normalize"] == mode
        as_trained = np.allclose(made.point, Source.load(pipeline.source).point)
        assert as_trained == (mode == "source")
        if mode == "speaker":
            with pytest.raises(InputError, match="24 of 24 clips have no speaker"):
                m.sample_source(replace(config, manifest=None, wav_dir=corpora.wav_dir, out=without))
            assert not without.exists()


class TestLineage:
    def train(self, run, corpora, tmp_path, **changes):
        try:
            m.train(train_config(run, corpora, tmp_path / "new", **changes))
        finally:
            assert not list(tmp_path.glob("*new*"))

    def test_answers_changed_after_fusion(self, copy, corpora, tmp_path):
        lalm = Lalm.load(copy.lalm)
        replace(lalm, probs=lalm.probs[:, ::-1]).save(copy.lalm)
        with pytest.raises(ArtifactError, match=r"lalm\.h5 has changed"):
            self.train(copy, corpora, tmp_path)

    def test_model_changed_after_sampling(self, copy, corpora, encoders, tmp_path):
        config = m.TrainSourceConfig(
            manifest=corpora.source,
            encoder=str(encoders["whisper"]),
            out=copy.model,
            epochs=1,
            validation=0,
            force=True,
        )
        m.train_source(config)
        with pytest.raises(ArtifactError, match="model has changed"):
            m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=tmp_path / "f.h5"))
        with pytest.raises(ArtifactError, match="model has changed"):
            self.train(copy, corpora, tmp_path)
        shutil.move(copy.model, tmp_path / "other")
        with pytest.raises(ArtifactError, match="another model"):
            self.train(copy, corpora, tmp_path, model=tmp_path / "other")

    def test_other_clips(self, pipeline, corpora, tmp_path):
        fewer = write_csv(corpora.target.parent / "fewer.csv", read_rows(corpora.target)[1:])
        with pytest.raises(ArtifactError, match="has 1 clips that"):
            self.train(pipeline, corpora, tmp_path, manifest=fewer)
        samples = m.SampleSourceConfig(
            model=pipeline.model, manifest=fewer, out=tmp_path / "s.h5", n_samples=2
        )
        m.sample_source(samples)
        with pytest.raises(ArtifactError, match="has 1 clips that"):
            m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=tmp_path / "s.h5", out=tmp_path / "f.h5"))
        with pytest.raises(ArtifactError, match="has 24 clips that"):
            config = m.EvaluateConfig(
                predictions=pipeline.fused, manifest=corpora.source, out=tmp_path / "e.h5"
            )
            m.evaluate(config)
        assert not list(tmp_path.glob("[ef].h5"))

    def test_other_class_order(self, copy, tmp_path):
        lalm = Lalm.load(copy.lalm)
        replace(lalm, header=replace(lalm.header, classes=CLASSES[::-1])).save(copy.lalm)
        with pytest.raises(ArtifactError, match="classes are sad, neutral, happy, angry but"):
            m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=tmp_path / "f.h5"))
        assert not (tmp_path / "f.h5").exists()

    def test_joins_are_by_id(self, copy, tmp_path):
        # The same clips in files whose rows do not line up cannot be saved, so rows cannot be mixed up.
        lalm = Lalm.load(copy.lalm)
        with pytest.raises(ArtifactError, match="not sorted"):
            replace(lalm, utt_id=lalm.utt_id[::-1]).save(tmp_path / "l.h5")
        assert not (tmp_path / "l.h5").exists()

    def test_existing_output(self, pipeline, corpora):
        before = weights(pipeline.student)
        with pytest.raises(InputError, match="--force"):
            m.train(train_config(pipeline, corpora, pipeline.student))
        with pytest.raises(InputError, match="--force"):
            m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=pipeline.fused))
        assert weights(pipeline.student) == before


class TestUpdate:
    def test_each_step(self, copy, corpora, encoders):
        source = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=copy.model, epochs=8, update=True
        )
        samples = m.SampleSourceConfig(
            model=copy.model, manifest=corpora.target, out=copy.source, n_samples=4, update=True
        )
        fuse = m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.fused, update=True)
        train = train_config(copy, corpora, copy.student, epochs=4, update=True)
        score = m.EvaluateConfig(
            model=copy.student, manifest=corpora.labels, out=copy.root / "e.h5", update=True
        )
        assert not m.evaluate(score).up_to_date
        steps = [(m.train_source, source), (m.sample_source, samples), (m.fuse, fuse), (m.train, train)]
        steps.append((m.evaluate, score))
        before = {path: path.stat().st_mtime_ns for path in copy.root.rglob("*")}
        for step, config in steps:
            assert step(config).up_to_date, step
        assert before == {path: path.stat().st_mtime_ns for path in copy.root.rglob("*")}
        # A changed setting is made anew, and so is all that comes after it.
        changes = [{"hidden": 16}, {}, {}, {}, {}]
        for (step, config), change in zip(steps, changes, strict=True):
            assert not step(replace(config, **change)).up_to_date, step
        assert m.train(train).up_to_date
        assert not m.train(replace(train, seed=1)).up_to_date
        assert not m.fuse(replace(fuse, tau=0.2)).up_to_date

    def test_damaged_model_is_made_anew(self, copy, corpora, encoders):
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=copy.model, epochs=8, update=True
        )
        good = weights(copy.model)
        (copy.model / "model.safetensors").write_bytes(good[:-8] + bytes(8))
        assert not m.train_source(config).up_to_date
        assert weights(copy.model) == good

    def test_changed_audio(self, copy, corpora, tmp_path):
        import soundfile

        moved = shutil.copytree(corpora.target.parent, tmp_path / "target")
        config = m.SampleSourceConfig(
            model=copy.model, manifest=moved / "manifest.csv", out=copy.source, n_samples=4, update=True
        )
        assert m.sample_source(config).up_to_date
        clip = next((moved / "wav").iterdir())
        soundfile.write(clip, tone(300, 0.2, np.random.default_rng(0)), 16000)
        assert not m.sample_source(config).up_to_date


class TestQueryLalm:
    @pytest.fixture
    def ask(self, serve, corpora, tmp_path, key):
        """Ask with defaults that can be changed; ``ask.server`` is the one that answers."""
        server = serve()

        def ask(**changes):
            values = {"manifest": corpora.target, "model": "m", "base_url": server.url, "n_samples": 2}
            return m.query_lalm(m.QueryLalmConfig(out=tmp_path / "lalm.h5", **{**values, **changes}))

        ask.server, ask.out = server, tmp_path / "lalm.h5"
        return ask

    def test_second_run_asks_nothing(self, ask):
        assert ask().asked == 48
        first = Lalm.load(ask.out)
        assert ask().asked == 0 and len(ask.server.asked) == 48
        assert Lalm.load(ask.out).digest() == first.digest()
        assert ask.server.headers_seen == [f"Bearer {KEY}"] * 48
        again = ask(update=True)
        assert again.up_to_date and again.asked == 0
        assert ask(n_samples=3).asked == 24
        assert len(set(ask.server.asked)) == 72
        more = Lalm.load(ask.out)
        np.testing.assert_array_equal(more.probs[:, :2], first.probs)
        assert (np.sort(more.order, axis=-1) == np.arange(4)).all()

    def test_lost_artifact_comes_back_from_the_journal(self, ask, monkeypatch):
        ask()
        digest = Lalm.load(ask.out).digest()
        ask.out.unlink()
        monkeypatch.delenv("OPENAI_API_KEY")  # nothing is asked, so no key is needed
        assert ask().asked == 0
        assert Lalm.load(ask.out).digest() == digest

    def test_same_audio_is_asked_once(self, ask, corpora, tmp_path):
        shutil.copytree(corpora.wav_dir, tmp_path / "wav")
        clip = sorted((tmp_path / "wav").iterdir())[3]
        shutil.copyfile(clip, tmp_path / "wav" / "zz-twin.wav")
        result = ask(manifest=None, wav_dir=tmp_path / "wav")
        assert (result.clips, result.asked) == (25, 48) and len(ask.server.asked) == 48
        made = Lalm.load(ask.out)
        np.testing.assert_array_equal(made.probs[3], made.probs[24])
        assert made.raw_answer(24, 1) == made.raw_answer(3, 1) != ""

    @pytest.mark.parametrize(
        "change", [{"model": "other"}, {"temperature": 0.5}, {"classes": "angry,happy,neutral,calm"}]
    )
    def test_other_questions(self, ask, change):
        ask()
        before = ask.out.read_bytes()
        with pytest.raises(ArtifactError, match=f"other questions: {next(iter(change))}"):
            ask(**change)
        assert len(ask.server.asked) == 48 and ask.out.read_bytes() == before
        if "model" in change:
            assert ask(**change, force=True).asked == 48

    def test_clips_without_a_valid_answer(self, ask, pipeline, corpora, tmp_path):
        ids = Lalm.load(pipeline.lalm).audio_sha256[[2, 7]].tolist()
        ask.server.reply = lambda digest: "I cannot tell." if digest in ids else None
        result = ask()
        assert result.without_answer == 2 and result.statuses["ok"] == 44
        made = Lalm.load(ask.out)
        silent = np.isnan(made.probs).all(axis=(1, 2))
        assert np.flatnonzero(silent).tolist() == [2, 7]
        assert (made.status[silent] != Status.OK).all() and made.raw_answer(2, 0) == "I cannot tell."
        fused = m.fuse(m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "fused.h5"))
        assert fused.fallbacks == 2 and "2 clips have no valid LALM answer" in " ".join(fused.notes)
        labels = Fused.load(tmp_path / "fused.h5")
        np.testing.assert_array_equal(labels.weights[[2, 7]], [[0, 1], [0, 1]])
        np.testing.assert_allclose(labels.probs[[2, 7]], labels.mean[[2, 7], 1], atol=1e-6)
        score = m.EvaluateConfig(predictions=ask.out, manifest=corpora.labels, out=tmp_path / "e.h5")
        scored = m.evaluate(score)
        assert scored.metrics["missing"] == 2 and "2 clips have no prediction" in scored.notes[0]
        assert np.array(scored.confusion)[:, 4].sum() == 2
        config = train_config(pipeline, corpora, tmp_path / "s", fused=tmp_path / "fused.h5")
        assert m.train(replace(config, method="lalm-sfuda")).clips == 24

    def test_no_valid_answer_at_all(self, ask, pipeline, tmp_path):
        ask.server.reply = lambda digest: "No."
        result = ask()
        assert result.without_answer == 24 and np.isnan(result.mean_mi)
        with pytest.raises(ArtifactError, match="no valid answer at all"):
            m.fuse(m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "f.h5"))
        assert not (tmp_path / "f.h5").exists()

    def test_answers_that_do_not_vary(self, ask, pipeline, tmp_path):
        ask.server.reply = lambda digest: '{"angry": 70, "happy": 10, "neutral": 10, "sad": 10}'
        assert ask().mean_mi == pytest.approx(0, abs=1e-7)
        result = m.fuse(m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "f.h5"))
        assert "lalm: answers are identical on 100% of clips" in result.notes[0]

    def test_service_that_refuses_keeps_answers(self, ask):
        digests = []

        def reply(digest):
            digests.append(digest)
            return None if len(digests) <= 10 else (403, {"error": {"message": "quota"}})

        ask.server.reply = reply
        with pytest.raises(RemoteError, match="answers of this run are kept"):
            ask(concurrency=1)
        assert not ask.out.exists()
        with Journal(journal_path(ask.out)) as journal:
            assert len(list(journal.answers())) == 10
        ask.server.reply = None
        assert ask().asked == 38
