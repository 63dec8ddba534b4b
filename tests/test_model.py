import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import clip, rewrite, save_encoder
from torch import nn

from mifuse_cli.artifacts import Header, Training
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import ArtifactError, DependencyError, InputError, UsageError
from mifuse_cli.lineage import digest
from mifuse_cli.manifest import read_clips
from mifuse_cli.model import checkpoint, features
from mifuse_cli.model.classifier import (
    Classifier,
    Features,
    Head,
    Waveforms,
    dropout_active,
    predict,
    sample,
    seeded,
)
from mifuse_cli.model.device import find_device
from mifuse_cli.model.encoder import LogMelEncoder, load_encoder
from mifuse_cli.model.features import FrozenEncoder, pooled_features
from mifuse_cli.model.prepare import effective_mode
from mifuse_cli.model.shape import Shape, read_shape
from mifuse_cli.model.standard import Statistics, fit_standard, statistics

FAMILIES = ("wav2vec2", "hubert", "wavlm", "whisper")
CPU = torch.device("cpu")


class TestFeatures:
    @pytest.fixture
    def pooled(self, corpora, encoders, tmp_path):
        def pooled(clips=None, family="wav2vec2", directory=None, progress=None, **options):
            directory = directory or encoders[family]
            clips = read_clips(corpora.target)[:6] if clips is None else clips
            place, encoder = Encoding(cache_dir=tmp_path / "cache"), FrozenEncoder(directory, **options)
            return pooled_features(
                clips, encoder, digest(directory), device=CPU, encoding=place, progress=progress
            )

        pooled.clips = read_clips(corpora.target)[:6]
        return pooled

    def test_every_clip_stands_for_itself(self, pooled, encoders):
        from mifuse_cli import audio

        last = pooled(pooled.clips[5:])
        found = pooled()
        assert found.shape == (6, 3, 16) and found.dtype == np.float32
        np.testing.assert_array_equal(found[5], last[0])
        np.testing.assert_array_equal(pooled(pooled.clips[::-1]), found[::-1])
        with torch.inference_mode():
            alone = load_encoder(encoders["wav2vec2"])([torch.from_numpy(audio.read(pooled.clips[2].path))])
        np.testing.assert_allclose(found[2], alone[0], atol=1e-5)

    def test_second_call_needs_no_encoder(self, pooled, monkeypatch, tmp_path):
        first = pooled()

        def fail(*_):
            raise AssertionError("the encoder was loaded")

        monkeypatch.setattr(features, "load_encoder", fail)
        np.testing.assert_array_equal(pooled(), first)
        with pytest.raises(AssertionError, match="was loaded"):
            pooled(family="hubert")
        with pytest.raises(AssertionError, match="was loaded"):
            pooled(precision="bf16")
        with pytest.raises(AssertionError, match="was loaded"):
            pooled(directory=save_encoder(tmp_path / "e", "wav2vec2", seed=1))

    def test_poolings_do_not_mix(self, pooled):
        means, both = pooled(), pooled(pooling="mean+deviation")
        assert both.shape == (6, 3, 32)
        np.testing.assert_array_equal(both[..., :16], means)
        np.testing.assert_array_equal(pooled(), means)

    def test_fewer_states_are_those_of_all(self, pooled, monkeypatch):
        few = pooled(states=2)
        everything = pooled()  # encoded anew, as the first two do not suffice
        np.testing.assert_allclose(few, everything[:, :2], atol=1e-6)
        monkeypatch.setattr("mifuse_cli.model.features.load_encoder", None)
        np.testing.assert_array_equal(pooled(states=2), everything[:, :2])
        np.testing.assert_array_equal(pooled(), everything)

    def test_precisions_do_not_mix(self, pooled, monkeypatch):
        exact, coarse = pooled(family="wavlm"), pooled(family="wavlm", precision="bf16")
        assert exact.dtype == coarse.dtype == np.float32
        assert 0 < np.abs(coarse - exact).max() < 0.1
        monkeypatch.setattr(features, "load_encoder", None)
        np.testing.assert_array_equal(pooled(family="wavlm"), exact)
        np.testing.assert_array_equal(pooled(family="wavlm", precision="bf16"), coarse)

    def test_others_can_write_while_clips_are_encoded(self, pooled, tmp_path):
        written = []

        def write(what, done, total, facts):
            written.append(done)
            (file,) = (tmp_path / "cache").glob("*.sqlite")
            with closing(sqlite3.connect(file, timeout=0)) as other, other:
                other.execute("INSERT INTO feature VALUES (?, 0, 0, '')", (f"another clip {done}",))

        pooled(progress=write)
        (file,) = (tmp_path / "cache").glob("*.sqlite")
        with closing(sqlite3.connect(file)) as store:
            assert store.execute("SELECT count(*) FROM feature").fetchone() == (6 + len(written),)
        assert written[-1] == 6 and len(written) > 1

    def test_changed_audio_misses(self, pooled, tmp_path):
        import soundfile

        from mifuse_cli.manifest import Clip

        soundfile.write(tmp_path / "a.wav", clip().numpy(), 16000)
        first = pooled([Clip("a", tmp_path / "a.wav")])
        soundfile.write(tmp_path / "a.wav", clip(seed=1).numpy(), 16000)
        assert not np.array_equal(pooled([Clip("a", tmp_path / "a.wav")]), first)

    def test_interrupted_run_keeps_what_it_had(self, pooled, monkeypatch):
        done = []

        def interrupt(what, number, total, facts):
            done.append(number)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pooled(progress=interrupt)
        kept, rest = done[-1], []
        again = pooled(progress=lambda what, number, total, facts: rest.append((number, total)))
        assert 0 < kept < 6 and rest[-1] == (6 - kept, 6 - kept)
        monkeypatch.setattr(features, "load_encoder", None)
        np.testing.assert_array_equal(pooled(), again)


class TestStandard:
    VALUES = torch.tensor([[[1.0, 10.0]], [[3.0, 10.0]], [[5.0, 40.0]], [[9.0, 60.0]]])  # U=4, L=1, D=2
    SPEAKERS = ("a", "a", "b", "b")

    def standardised(self, mode, values=VALUES, **options):
        options = {"stored": None, "speakers": self.SPEAKERS, **options}
        standard = fit_standard(mode, values, **options)
        return standard(values, torch.arange(len(values)))[:, 0]

    def test_target(self):
        expected = (self.VALUES - self.VALUES.mean(0)) / self.VALUES.std(0, unbiased=False)
        torch.testing.assert_close(self.standardised("target"), expected[:, 0])

    def test_source(self):
        stored = Statistics(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 10.0]]))
        expected = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0], [4.0, 6.0]])
        torch.testing.assert_close(self.standardised("source", stored=stored), expected)
        torch.testing.assert_close(self.standardised("source"), self.standardised("target"))

    def test_speaker(self):
        found = self.standardised("speaker")
        expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
        torch.testing.assert_close(found, expected)
        # A speaker's only clip is compared with everybody's.
        alone = self.standardised("speaker", speakers=("a", "a", "b", "c"))
        torch.testing.assert_close(alone[2:], self.standardised("target")[2:])
        with pytest.raises(InputError, match="1 of 4 clips have no speaker"):
            self.standardised("speaker", speakers=("a", None, "b", "b"))

    def test_batches(self):
        standard = fit_standard("speaker", self.VALUES, stored=None, speakers=self.SPEAKERS)
        index = torch.tensor([3, 0])
        torch.testing.assert_close(
            standard(self.VALUES[index], index)[:, 0], self.standardised("speaker")[index]
        )

    def test_bf16_stays_in_the_encoder(self, corpora):
        clips, index = read_clips(corpora.target)[:5], torch.tensor([3, 1, 0])
        encoder = LogMelEncoder(n_mels=8, channels=4)
        encoder.precision = "bf16"
        model = Classifier(encoder, Head(2, 8, 4, 8, 0.1), [0, 2])
        inputs = Waveforms(clips, "target", None)
        inputs.refresh(model)
        assert inputs.statistics.mean.dtype == torch.float32
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            logits = model(inputs, index)
        logits.sum().backward()
        weight = encoder.blocks[0][0].weight
        assert logits.dtype == weight.grad.dtype == torch.float32 and weight.grad.any()
        # One copy of the weights serves all clips of the batch.
        coarse = {t.data_ptr() for t in saved if t.shape == weight.shape and t.dtype == torch.bfloat16}
        assert len(coarse) == 1

    def test_adapted_model(self):
        assert effective_mode("target", "target") == "source"
        assert [effective_mode(mode, "source") for mode in ("source", "target")] == ["source", "target"]
        assert effective_mode("speaker", "target") == "speaker"

    def test_waveforms_follow_the_encoder(self, corpora):
        clips = read_clips(corpora.target)[:5]
        model = Classifier(LogMelEncoder(n_mels=8, channels=4), Head(2, 8, 4, 8, 0.1), [0, 2])
        inputs = Waveforms(clips, "target", None)
        inputs.refresh(model)
        everything = inputs.everything(model)
        assert everything.shape == (5, 2, 8)
        torch.testing.assert_close(everything.mean(dim=0), torch.zeros(2, 8), atol=1e-4, rtol=0)
        torch.testing.assert_close(inputs.batch(model, torch.tensor([3, 1])), everything[[3, 1]])
        before = inputs.statistics.mean
        with torch.no_grad():
            model.encoder.blocks[0][0].bias.add_(1.0)
        inputs.refresh(model)
        assert not torch.equal(before, inputs.statistics.mean)


class TestDropout:
    def inputs(self):
        values = torch.randn(7, 2, 6, generator=torch.Generator().manual_seed(0))
        return Features(values, statistics(values))

    def model(self, dropout=0.3):
        with seeded(0, "head"):
            return Classifier(None, Head(2, 6, 4, 16, dropout), [0, 1])

    def test_only_dropout_is_switched_on(self):
        norm = nn.BatchNorm1d(3)
        model = nn.Sequential(nn.Linear(3, 3), norm, nn.LayerNorm(3), nn.Sequential(nn.Dropout(0.5)))
        model.train()
        with dropout_active(model):
            assert [m for m in model.modules() if m.training] == [model[3][0]]
            model(torch.randn(8, 3))
        assert not any(m.training for m in model.modules()) and not norm.running_mean.any()
        with pytest.raises(ZeroDivisionError), dropout_active(model):
            raise ZeroDivisionError
        assert not any(m.training for m in model.modules())

    def test_passes(self):
        model, inputs = self.model(), self.inputs()
        drawn = sample(model, inputs, 5, seed=4)
        assert drawn.shape == (7, 5, 4)
        np.testing.assert_allclose(drawn.sum(axis=-1), 1, atol=1e-5)
        assert all((drawn[:, a] != drawn[:, b]).any() for a in range(5) for b in range(a))
        np.testing.assert_array_equal(drawn, sample(model, inputs, 5, seed=4))
        np.testing.assert_array_equal(drawn[:, :3], sample(model, inputs, 3, seed=4))
        assert (drawn != sample(model, inputs, 5, seed=5)).any()
        np.testing.assert_array_equal(predict(model, inputs), predict(model, inputs))
        np.testing.assert_allclose(sample(model, inputs, 2000, 0).mean(1), predict(model, inputs), atol=0.05)

    def test_no_dropout(self):
        with pytest.raises(InputError, match="--dropout above 0"):
            sample(self.model(dropout=0.0), self.inputs(), 3, seed=0)

    def test_head_by_hand(self):
        head, values = Head(2, 6, 4, 16, 0.3).eval(), self.inputs().values
        with torch.no_grad():
            head.mix.copy_(torch.tensor([0.0, np.log(3)]))
            mixed = 0.25 * values[:, 0] + 0.75 * values[:, 1]
            expected = head.out(head.hidden(mixed).clamp_min(0))
            torch.testing.assert_close(head(values), expected)
            head.temperature.fill_(2.0)
            torch.testing.assert_close(head(values), expected / 2)


class TestCheckpoint:
    CLASSES = tuple(f"c{number}" for number in range(12))[::-1]

    def save(self, out, encoder_dir, **changes):
        values = {"classes": self.CLASSES, "layers": (0, 2), "width": 16, "hidden": 8, "dropout": 0.2}
        words = {"normalize": "target", "statistics_of": "source", "tune": "head", "encoder": "x"}
        shape = Shape(**{**values, **words, "temperature": 1.7, **changes})
        model = Classifier(None, checkpoint.new_head(shape), shape.layers)
        stats = Statistics(torch.randn(2, 16), torch.rand(2, 16) + 1)
        history = Training(Header(shape.classes), np.array(["a", "b"]), np.array(["loss"]), np.zeros((1, 1)))
        checkpoint.save(out, shape, model, stats, encoder_dir, history)
        return shape, model, stats

    def test_round_trip(self, encoders, tmp_path):
        out = tmp_path / "m"
        shape, model, stats = self.save(out, encoders["whisper"])
        loaded = checkpoint.load(out)
        assert loaded.shape == shape and not loaded.head.training
        values = torch.randn(3, 2, 16)
        torch.testing.assert_close(loaded.head(values), model.eval().head(values))
        assert torch.equal(loaded.statistics.mean, stats.mean)
        assert torch.equal(loaded.statistics.std, stats.std)
        loaded.calibrate()
        torch.testing.assert_close(loaded.head(values), model.head(values) / 1.7)
        torch.testing.assert_close(
            load_encoder(loaded.encoder_dir)([clip()]), load_encoder(encoders["whisper"])([clip()])
        )
        names = {path.name for path in out.rglob("*")}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "train.h5"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle"))]
        assert Training.load(out / "train.h5").header.parameters["model_sha256"] == digest(out)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

    def test_classes_in_order(self, encoders, tmp_path):
        self.save(tmp_path / "m", encoders["whisper"])
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        assert config["id2label"] == {str(number): f"c{11 - number}" for number in range(12)}
        assert config["label2id"]["c0"] == 11
        # However a tool sorts the keys, the order is that of the numbers.
        text = json.dumps(config, sort_keys=True)
        (tmp_path / "m" / "config.json").write_text(text)
        assert read_shape(tmp_path / "m").classes == self.CLASSES

    def test_precision(self, encoders, tmp_path):
        out = tmp_path / "m"
        self.save(out, encoders["whisper"], precision="bf16")
        assert read_shape(out).precision == "bf16"
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"precision": "fp4"}))
        with pytest.raises(ArtifactError, match="precision 'fp4', expected one of fp32, bf16"):
            read_shape(out)
        (out / "config.json").write_text(json.dumps(config | {"pooling": "max"}))
        with pytest.raises(
            ArtifactError, match=r"pooling 'max', expected one of mean, mean\+deviation, attentive"
        ):
            read_shape(out)
        del config["precision"]  # as checkpoints were before there was a choice
        (out / "config.json").write_text(json.dumps(config))
        assert read_shape(out).precision == "fp32"

    def test_damaged(self, encoders, tmp_path):
        out = tmp_path / "m"
        self.save(out, encoders["whisper"])
        good = (out / "model.safetensors").read_bytes()
        for bad in (good[:-100], b"", b"garbage" * 10):
            (out / "model.safetensors").write_bytes(bad)
            with pytest.raises(InputError, match="cannot be loaded"):
                checkpoint.load(out)
        (out / "model.safetensors").write_bytes(good)
        rewrite(out / "model.safetensors", lambda tensors: tensors["out.weight"][0].fill_(torch.nan))
        with pytest.raises(InputError, match="NaN"):
            checkpoint.load(out)
        rewrite(out / "model.safetensors", lambda tensors: tensors.pop("out.bias"))
        with pytest.raises(InputError, match=r"out\.bias"):
            checkpoint.load(out)
        config = json.loads((out / "config.json").read_text())
        del config["layers"]
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ArtifactError, match="lacks 'layers'"):
            checkpoint.load(out)
        with pytest.raises(ArtifactError, match="'hubert' model, expected a mifuse checkpoint"):
            checkpoint.load(encoders["hubert"])
        with pytest.raises(InputError, match="no such directory"):
            checkpoint.load(tmp_path / "nowhere")

    def test_digest_tells_models_apart(self, encoders, tmp_path):
        for name in ("a", "b"):
            with seeded(0, name):
                self.save(tmp_path / name, encoders["whisper"])
        assert digest(tmp_path / "a") != digest(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "c")
        assert digest(tmp_path / "a") == digest(tmp_path / "c")
        (tmp_path / "c" / "notes.txt").write_text("mine")
        assert digest(tmp_path / "a") == digest(tmp_path / "c")


class TestDevices:
    def test_cpu(self):
        assert find_device("cpu") == CPU
        assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    def test_missing(self):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        for name in ("cuda", "cuda:1"):
            with pytest.raises(DependencyError, match=f"--device {name}: 0 CUDA GPUs are there"):
                find_device(name)

    @pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:x"])
    def test_unknown(self, name):
        with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
            find_device(name)
