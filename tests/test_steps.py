import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, Run, mifuse, read_rows, save_encoder, train_config, weights, write_csv
from hypothesis import given
from hypothesis import strategies as st

import mifuse_cli as m
from mifuse_cli import artifacts, audio, fusion
from mifuse_cli.artifacts import Fused, Lalm, Predictions, Source, Training
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.manifest import read_clips, read_labelled
from mifuse_cli.model.encoder import load_encoder
from mifuse_cli.model.shape import read_shape
from mifuse_cli.splits import held_out_speakers
from mifuse_cli.steps.train_source import likeliest_temperature, pick_layers


def encoder_weights(checkpoint):
    from safetensors.numpy import load_file

    return load_file(checkpoint / "encoder" / "model.safetensors")


class TestPipeline:
    def test_train_source(self, pipeline):
        result = pipeline.results["train_source"]
        assert (result.clips, result.validation_clips, result.validation_speakers) == (24, 8, 1)
        assert 1 <= result.epochs <= 8 and 0 <= result.validation_ua <= 1
        assert 0.05 <= result.temperature <= 20 and not result.notes
        made = Training.load(pipeline.model / "train.h5")
        assert made.history.shape == (8, 3)
        assert made.history[:, 1].argmin() + 1 == result.epochs
        assert [parent.role for parent in made.header.parents] == ["clips", "speakers", "labels", "encoder"]

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
        assert made.header.parameters == {
            "normalize": "source", "calibrate": False, "seen_in_training": 0.0,
        }  # fmt: skip

    def test_fuse_gives_the_numbers_of_fusion(self, pipeline):
        result, made = pipeline.results["fuse"], Fused.load(pipeline.fused)
        teachers = [Lalm.load(pipeline.lalm), Source.load(pipeline.source)]
        stats = [fusion.mean_and_mi(teacher.probs.astype(float)) for teacher in teachers]
        mean, mi = (np.stack(part, axis=1) for part in zip(*stats, strict=True))
        weight, probs = fusion.fuse_means(mean, mi, fusion.FusionSettings(weighting="mi"))
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

    def test_a_student_of_cross_fit_is_read_as_any_other(self, pipeline, corpora, tmp_path):
        fused, student = tmp_path / "fused.h5", tmp_path / "student"
        m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=fused))
        m.train(train_config(pipeline, corpora, student, fused=fused))
        assert read_shape(student).linear and len(read_shape(student).layers) > 1
        assert not read_shape(pipeline.student).linear
        predicted = Predictions.load(student / "predictions.h5").probs
        drawn = tmp_path / "drawn.h5"
        m.sample_source(m.SampleSourceConfig(model=student, manifest=corpora.target, out=drawn, n_samples=2))
        np.testing.assert_allclose(Source.load(drawn).point, predicted, atol=1e-6)

        def scored(name, **changes):
            out = tmp_path / f"{name}.h5"
            made = m.evaluate(m.EvaluateConfig(**{"model": student, "out": out, **changes}))
            return made.signature, artifacts.read(out).probs

        _, same = scored("same", manifest=corpora.labels)
        np.testing.assert_allclose(same, predicted, atol=1e-6)
        others = {"manifest": corpora.source}
        (apart, one), (together, other) = scored("a", **others), scored("b", **others, centre=True)
        assert "centred:these-clips" in together and "centred" not in apart
        assert not np.allclose(one, other)
        with pytest.raises(UsageError, match="holds no mean features of the classes"):
            scored("c", **others, centre=True, model=pipeline.student)

    def test_drawn_distributions_are_scored_under_the_protocol_of_their_model(
        self, pipeline, corpora, tmp_path
    ):
        student = m.SampleSourceConfig(
            model=pipeline.student, manifest=corpora.target, out=tmp_path / "student.h5", n_samples=2
        )
        m.sample_source(student)
        for n, (model, drawn) in enumerate(
            [(pipeline.model, pipeline.source), (pipeline.student, student.out)]
        ):
            first, second = (
                m.evaluate(
                    m.EvaluateConfig(manifest=corpora.labels, out=tmp_path / f"{n}{key}.h5", **{key: what})
                )
                for key, what in (("model", model), ("predictions", drawn))
            )
            assert first.signature == second.signature and first.confusion == second.confusion

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

    def test_both_decisions_are_scored_and_the_protocol_names_them(self, pipeline, corpora, tmp_path):
        config = m.EvaluateConfig(
            predictions=pipeline.source, manifest=corpora.labels, out=tmp_path / "eval.h5", update=True
        )
        result = m.evaluate(config)
        made = artifacts.Evaluation.load(config.out)
        probs = made.probs.astype(float)
        recalls = [
            np.mean((probs / probs.mean(axis=0)).argmax(axis=1)[made.truth == k] == k)
            for k in range(len(CLASSES))
        ]
        assert result.metrics["ua_prior_corrected"] == pytest.approx(np.mean(recalls))
        assert "|decision:argmax p+prior-corrected argmax p/prior|" in result.signature
        assert m.evaluate(config).up_to_date
        # An evaluation of an earlier version, without the second decision, is made anew.
        parameters = made.header.parameters
        metrics = {name: one for name, one in parameters["metrics"].items() if "prior" not in name}
        header = replace(made.header, parameters={**parameters, "metrics": metrics})
        replace(made, header=header).save(config.out)
        again = m.evaluate(config)
        assert not again.up_to_date and again.metrics == result.metrics

    @pytest.mark.parametrize("name", ["lalm.h5", "source.h5", "fused.h5", "model", "student"])
    def test_show(self, pipeline, name):
        result = m.show(m.ShowConfig(file=pipeline.root / name))
        assert result.classes == CLASSES and len(result.sha256) == 64
        assert {parent["state"] for parent in result.parents} <= {"unchanged", "not compared"}
        if name == "lalm.h5":
            assert result.summary["statuses"] == {"ok": 72} and result.summary["without_answer"] == 0
            assert result.datasets["probs"]["axes"] == "U N K"
            assert result.datasets["probs"]["shape"] == [24, 3, 4]
        if name == "student":
            assert result.kind == "checkpoint" and result.parameters["method"] == "mifuse"

    def test_show_tells_of_changed_parents(self, copy):
        shutil.rmtree(copy.model)
        lalm = Lalm.load(copy.lalm)
        replace(lalm, probs=lalm.probs[:, ::-1]).save(copy.lalm)
        states = {p["role"]: p["state"] for p in m.show(m.ShowConfig(file=copy.fused)).parents}
        assert states == {"lalm": "changed", "source": "unchanged", "clips": "not compared"}
        states = {p["role"]: p["state"] for p in m.show(m.ShowConfig(file=copy.source)).parents}
        assert states == {"model": "absent", "clips": "not compared", "speakers": "not compared"}

    def test_wrong_labels_change_nothing(self, pipeline, corpora, tmp_path):
        rows = read_rows(corpora.labels)
        wrong = [row | {"emotion": CLASSES[(CLASSES.index(row["emotion"]) + 1) % 4]} for row in rows]
        planted = write_csv(corpora.target.parent / "planted.csv", wrong)
        samples = m.SampleSourceConfig(
            model=pipeline.model, manifest=planted, out=tmp_path / "source.h5", n_samples=4
        )
        m.sample_source(samples)
        fused = {"lalm": pipeline.lalm, "source": tmp_path / "source.h5", "out": tmp_path / "fused.h5"}
        m.fuse(m.FuseConfig(**fused, weighting="mi"))
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

    def test_evaluate_without_a_file(self, pipeline, corpora, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        arguments = ["evaluate", "--model", pipeline.student, "--manifest", corpora.labels]
        printed = mifuse(*arguments)
        assert printed.exit_code == 0 and not list(tmp_path.iterdir())
        assert printed.stdout == mifuse(*arguments, "--out", "e.h5").stdout
        told = json.loads(mifuse(*arguments, "--update", "--json").stdout)
        assert told["out"] is None and not told["up_to_date"]

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
        labelled = read_labelled(corpora.source, CLASSES)
        speakers = [one.clip.speaker for one in labelled]
        held_out, notes = held_out_speakers(speakers, 0.2, np.random.default_rng(0))
        inside = {s for s, out in zip(speakers, held_out, strict=True) if out}
        assert len(inside) == 1 and held_out.sum() == 8 and not notes
        assert not inside & {s for s, out in zip(speakers, held_out, strict=True) if not out}
        held_out, notes = held_out_speakers([None] * len(labelled), 0.25, np.random.default_rng(0))
        assert held_out.sum() == 6 and "at random" in notes[0]

    def test_a_single_clip_cannot_be_split(self, corpora, encoders, tmp_path):
        rows = read_rows(corpora.source)[:1]
        one = write_csv(corpora.source.parent / "one.csv", rows)
        config = m.TrainSourceConfig(
            manifest=one, encoder=str(encoders["whisper"]), out=tmp_path / "model", epochs=1
        )
        with pytest.raises(InputError, match="single clip"):
            m.train_source(config)
        assert m.train_source(replace(config, validation=0.0)).validation_clips == 0

    @given(
        st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=2, max_size=30),
        st.floats(0.01, 0.89),
        st.integers(0, 9),
    )
    def test_validation_where_some_speakers_are_unknown(self, speakers, share, seed):
        held_out, notes = held_out_speakers(speakers, share, np.random.default_rng(seed))
        inside = {one for one, out in zip(speakers, held_out, strict=True) if out}
        outside = {one for one, out in zip(speakers, held_out, strict=True) if not out}
        unknown = speakers.count(None)
        assert held_out.any() and not held_out.all()
        if len(set(speakers) - {None}) < 2:
            assert "at random" in notes[0]
            return
        assert None not in inside and not inside & outside
        left = outside - {None}
        assert left and (len(left) == 1 or held_out.mean() >= share)
        # No more speakers than it takes.
        assert any(
            sum(map((inside - {last}).__contains__, speakers)) < share * len(speakers) for last in inside
        )
        told = [f"{unknown} of {len(speakers)} clips have no known speaker"] if unknown else []
        assert [note.split(":")[0] for note in notes] == told

    def test_temperature(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(4000, 4)) * 1.5
        labels = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
        assert likeliest_temperature(logits, labels) == pytest.approx(1, abs=0.1)
        assert likeliest_temperature(3 * logits, labels) == pytest.approx(3, abs=0.3)

    def test_blocks_above_the_layers_in_use_are_not_run(self, pipeline, corpora, tmp_path, monkeypatch):
        """Of eight blocks, the head sees one state, cross-fit those from 2 to 6; nothing else changes."""
        from mifuse_cli.methods import structure
        from mifuse_cli.model import encoder as encoders

        directory, counted = save_encoder(tmp_path / "e", "wav2vec2", num_hidden_layers=8), []
        stop_at = encoders.Encoder.stop_at
        monkeypatch.setattr(
            encoders.Encoder,
            "stop_at",
            lambda self, highest: counted.append(highest) or stop_at(self, highest),
        )

        def run(place, **options):
            place.mkdir()
            model, source, fused, student = (place / name for name in ("m", "source.h5", "fused.h5", "s"))
            cache = {"cache_dir": place / "cache", "workers": 1}
            m.train_source(
                m.TrainSourceConfig(
                    manifest=corpora.source,
                    encoder=str(directory),
                    out=model,
                    layers="0-1",
                    epochs=2,
                    **cache,
                )
            )
            m.sample_source(
                m.SampleSourceConfig(model=model, manifest=corpora.target, out=source, n_samples=4, **cache)
            )
            m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=source, out=fused))
            m.train(
                m.TrainConfig(
                    fused=fused, model=model, manifest=corpora.target, out=student, epochs=2, **cache
                )
            )
            evaluated = m.evaluate(
                m.EvaluateConfig(model=student, manifest=corpora.source, out=place / "e.h5", **cache)
            )
            assert read_shape(student).states == 9
            return Source.load(source), Predictions.load(student / "predictions.h5").probs, evaluated.metrics

        source, probs, metrics = run(tmp_path / "few")
        assert source.hidden.shape[1] == 7 and counted == [1, 6, 6]  # then the student's own clips are cached
        monkeypatch.setattr(encoders.Encoder, "stop_at", lambda self, highest: None)
        monkeypatch.setattr(structure, "states_in_use", lambda shape, **_: 9)
        for name in ("mifuse_cli.methods.student", "mifuse_cli.steps.compare.running"):
            monkeypatch.setattr(f"{name}.states_in_use", lambda shape, **_: 9)
        whole, their_probs, their_metrics = run(tmp_path / "all")
        assert whole.hidden.shape[1] == 9
        np.testing.assert_allclose(source.hidden, whole.hidden[:, :7], atol=1e-5)
        np.testing.assert_allclose(probs, their_probs, atol=1e-4)
        assert metrics["ua"] == pytest.approx(their_metrics["ua"])

    @pytest.mark.parametrize(
        ("pooling", "tune", "width"), [("mean+deviation", "head", 32), ("attentive", "all", 16)]
    )
    def test_pooling(self, pipeline, corpora, encoders, tmp_path, pooling, tune, width):
        """What the checkpoint says holds in every later step, whether the encoder is trained or frozen."""
        model, source = tmp_path / "m", tmp_path / "source.h5"
        options = {"pooling": pooling, "tune": tune, "epochs": 2, "learning_rate": 1e-2, "validation": 0.0}
        m.train_source(
            m.TrainSourceConfig(manifest=corpora.source, encoder=str(encoders["wavlm"]), out=model, **options)
        )
        assert read_shape(model).width == width and read_shape(model).pooling == pooling
        m.sample_source(m.SampleSourceConfig(model=model, manifest=corpora.target, out=source, n_samples=4))
        hidden = Source.load(source).hidden
        with torch.inference_mode():
            clips = read_clips(corpora.target)
            expected = load_encoder(model / "encoder", pooling=pooling)(
                [torch.from_numpy(audio.read(one.path)) for one in clips]
            )
            means = load_encoder(model / "encoder")([torch.from_numpy(audio.read(one.path)) for one in clips])
        np.testing.assert_allclose(hidden, expected, atol=1e-4)
        assert width == 32 or np.abs(hidden - means.numpy()).max() > 1e-3  # attention has learned something
        fused, student = tmp_path / "fused.h5", tmp_path / "student"
        m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=source, out=fused))
        m.train(m.TrainConfig(fused=fused, model=model, manifest=corpora.target, out=student, epochs=1))
        found = m.evaluate(m.EvaluateConfig(model=student, manifest=corpora.labels, out=tmp_path / "e.h5"))
        assert found.metrics["missing"] == 0

    def test_layers(self, corpora, encoders, tmp_path):
        assert [pick_layers(text, 5) for text in ("all", "middle", "0, 4", "0-2,4")] == [
            (0, 1, 2, 3, 4),
            (2,),
            (0, 4),
            (0, 1, 2, 4),
        ]
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


class TestPrecision:
    @pytest.fixture
    def run(self, pipeline, corpora, encoders, tmp_path):
        """A source model in bf16 and all that is made of it, with a feature cache of its own."""
        cache = {"cache_dir": tmp_path / "cache"}
        run = Run(tmp_path, {})
        source = m.TrainSourceConfig(
            manifest=corpora.source,
            encoder=str(encoders["wavlm"]),
            precision="bf16",
            epochs=2,
            out=run.model,
            **cache,
        )
        m.train_source(source)
        m.sample_source(
            m.SampleSourceConfig(
                model=run.model, manifest=corpora.target, out=run.source, n_samples=2, **cache
            )
        )
        m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=run.source, out=run.fused, weighting="mi"))
        return run

    def points(self, model, corpora, out, cache):
        """Predictions of a checkpoint without dropout."""
        m.evaluate(m.EvaluateConfig(model=model, manifest=corpora.labels, out=out, cache_dir=cache))
        return artifacts.read(out).probs

    def test_features_of_one_precision_alone(self, run, corpora, tmp_path):
        (file,) = (tmp_path / "cache").iterdir()
        assert file.name.endswith("-bf16.sqlite") and read_shape(run.model).precision == "bf16"
        found = self.points(run.model, corpora, tmp_path / "a.h5", tmp_path / "cache")
        np.testing.assert_array_equal(found, Source.load(run.source).point)
        config = json.loads((run.model / "config.json").read_text())
        (run.model / "config.json").write_text(json.dumps(config | {"precision": "fp32"}))
        exact = self.points(run.model, corpora, tmp_path / "b.h5", tmp_path / "cache")
        assert 1e-5 < np.abs(found - exact).max() < 0.1
        assert len(list((tmp_path / "cache").iterdir())) == 2

    @pytest.mark.parametrize("tune", ["head", "top-1"])
    def test_student(self, run, corpora, tmp_path, tune):
        m.train(train_config(run, corpora, run.student, tune=tune, cache_dir=tmp_path / "cache"))
        assert read_shape(run.student).precision == "bf16"
        found = self.points(run.student, corpora, tmp_path / "a.h5", tmp_path / "cache")
        np.testing.assert_allclose(found, Predictions.load(run.student / "predictions.h5").probs, atol=1e-6)
        assert {file.name[-12:] for file in (tmp_path / "cache").iterdir()} == {"-bf16.sqlite"}

    def test_from_scratch(self, corpora, tmp_path):
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder="logmel", precision="bf16", out=tmp_path / "m", epochs=1
        )
        m.train_source(config)
        m.train_source(replace(config, precision="fp32", out=tmp_path / "n"))
        bf16, fp32 = (encoder_weights(tmp_path / name)["convolutions.0.0.weight"] for name in "mn")
        assert bf16.dtype == np.float32 and 0 < np.abs(bf16 - fp32).max() < 0.01

    def test_others(self):
        with pytest.raises(UsageError, match="--precision 'fp16': expected one of fp32, bf16"):
            m.TrainSourceConfig(manifest="a.csv", encoder="logmel", out="m", precision="fp16")
