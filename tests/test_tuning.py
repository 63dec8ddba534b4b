"""Training of an encoder in less memory: micro-batches and gradient checkpointing change no gradient."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, tone

import mifuse_cli as m
from mifuse_cli.manifest import Clip
from mifuse_cli.methods import loop
from mifuse_cli.methods.aad import Aad
from mifuse_cli.methods.dine import Dine
from mifuse_cli.methods.duet import Duet
from mifuse_cli.methods.lalm_sfuda import LalmLabels
from mifuse_cli.methods.nrc import Nrc
from mifuse_cli.methods.prode import Prode
from mifuse_cli.methods.shot import Shot
from mifuse_cli.methods.with_lalm import WithLalm
from mifuse_cli.model import classifier as classifiers
from mifuse_cli.model.classifier import Classifier, Head, Waveforms, dropout_active, seeded
from mifuse_cli.model.encoder import LogMelEncoder, load_encoder
from mifuse_cli.model.prepare import trainable_part

U, K = 12, 4
OPTIONS = loop.LoopOptions(
    epochs=2,
    batch_size=U,
    learning_rate=1e-2,
    encoder_learning_rate=1e-3,
    weight_decay=0.01,
    ema=0.9,
    seed=3,
)
FAMILIES = ("logmel", "wav2vec2", "hubert", "wavlm", "whisper")
ANSWERS = np.random.default_rng(0).dirichlet(np.ones(K), U)
METHODS = {
    "lalm-sfuda": lambda: LalmLabels(ANSWERS, 1.0, "uniform"),
    "shot": Shot,
    "nrc": Nrc,
    "aad": lambda: Aad(epochs=2),
    "dine": lambda: Dine(ANSWERS, epochs=2),
    "prode": lambda: Prode(ANSWERS),
    "duet": lambda: Duet(ANSWERS, epochs=2),
    "shot+lalm": lambda: WithLalm(Shot(), labels=torch.from_numpy(ANSWERS.astype(np.float32))),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 0.15 to 0.7 s."""
    root, rng = tmp_path_factory.mktemp("lengths"), np.random.default_rng(0)
    found = []
    for number in range(U):
        path = root / f"{number:02}.wav"
        soundfile.write(path, tone(150 + 40 * number, 0.3, rng, 0.15 + 0.05 * (number * 5 % U)), RATE)
        found.append(Clip(path.stem, path, f"s{number % 3}"))
    return found


@pytest.fixture(scope="module")
def loaded(encoders):
    return {family: load_encoder(encoders[family]) for family in FAMILIES[1:]}


@pytest.fixture
def make(clips, loaded):
    """A classifier of an encoder that is trained, and its inputs."""

    def make(
        family="logmel", *, dropout=0.0, micro_batch_s=0.0, tune="all", precision="fp32", recomputed=False
    ):
        with seeded(0, "encoder"):
            if family == "logmel":
                encoder = LogMelEncoder(n_mels=16, channels=6, dropout=dropout)
            else:
                encoder = copy.deepcopy(loaded[family])
                for module in encoder.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = dropout
        encoder.precision = precision
        trainable_part(encoder, tune, device=torch.device("cpu"), gradient_checkpointing=recomputed)
        with seeded(0, "head"):
            head = Head(encoder.layers, encoder.width, K, hidden=8, dropout=0.3)
        model = Classifier(encoder, head, range(encoder.layers))
        inputs = Waveforms(clips, "speaker", None, micro_batch_s)
        inputs.refresh(model)
        return model, inputs

    return make


def gradients(model, inputs, method=None, index=range(U)):
    """Of the loss of a batch, by parameter; the method's other state is that after the loss."""
    method = method or Shot()
    method.begin_epoch(1, model, inputs)
    batch = torch.tensor(list(index))
    with seeded(5), dropout_active(model):
        features = inputs.batch(model, batch)
        units = model.head.units(features)
        found = method.loss(loop.Batch(batch, features, units, model.head.classify(units), model.head))
        torch.stack(list(found.values())).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(found, expected, tolerance=1e-6):
    """They differ by no more than a millionth of their length."""
    assert found.keys() == expected.keys() and any("encoder" in name for name in found)
    one, other = (
        torch.cat([every[name].double().flatten() for name in expected]) for every in (found, expected)
    )
    assert (one - other).norm() / other.norm() <= tolerance


class TestMicroBatches:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_are_those_of_the_whole_batch(self, make, family):
        model, inputs = make(family)
        expected = gradients(model, inputs)
        # Where a micro-batch has padding, single precision rounds otherwise in one of other clips.
        tolerance = 1e-5 if model.encoder.padding else 1e-6
        same(gradients(*make(family, micro_batch_s=0.8)), expected, tolerance)
        same(gradients(*make(family, micro_batch_s=0.01)), expected, tolerance)

    @pytest.mark.parametrize("name", METHODS)
    def test_every_loss_sees_the_whole_batch(self, make, name):
        method = METHODS[name]
        expected = gradients(*make("wav2vec2"), method())
        same(gradients(*make("wav2vec2", micro_batch_s=0.8), method()), expected)
        # The mean over micro-batches is another one.
        halves = [gradients(*make("wav2vec2"), method(), half) for half in (range(U // 2), range(U // 2, U))]
        apart = {key: (halves[0][key] + halves[1][key]) / 2 for key in expected}
        with pytest.raises(AssertionError):
            same(apart, expected, tolerance=1e-3)

    @pytest.mark.parametrize("family", ("logmel", "wavlm"))
    def test_dropout_is_the_same_when_computed_again(self, make, family, monkeypatch):
        monkeypatch.setattr(classifiers, "batch_seconds", lambda device: 0.8)
        found = gradients(*make(family, dropout=0.4, micro_batch_s=0.8))
        expected = gradients(*make(family, dropout=0.4))
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
        assert not torch.equal(
            found["head.out.weight"], gradients(*make(family, micro_batch_s=0.8))["head.out.weight"]
        )

    def test_coarse_precision(self, make, monkeypatch):
        monkeypatch.setattr(classifiers, "batch_seconds", lambda device: 0.8)
        expected = gradients(*make("wavlm", precision="bf16"))
        same(gradients(*make("wavlm", precision="bf16", micro_batch_s=0.8)), expected)
        same(gradients(*make("wavlm", precision="bf16", micro_batch_s=0.8, recomputed=True)), expected)

    def test_random_numbers_of_others_stay(self, make):
        model, inputs = make(micro_batch_s=0.8)
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        model(inputs, torch.arange(3)).sum()
        inputs.everything(model)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(3), expected)

    def test_whole_training(self, make):
        def trained(**options):
            model, inputs = make(**options)
            method, how = Shot(), replace(OPTIONS, batch_size=5)
            return loop.run(loop.start(model, method, how), inputs, method, how)

        whole, parts = trained(), trained(micro_batch_s=0.8)
        np.testing.assert_allclose(parts.history, whole.history, atol=1e-5)
        for name, value in whole.student.state_dict().items():
            torch.testing.assert_close(parts.student.state_dict()[name], value, atol=1e-4, rtol=0)


class TestMemory:
    def held(self, model, inputs):
        """Bytes that the batch holds for the gradients."""
        sizes = {}
        with (
            dropout_active(model),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
            ),
        ):
            inputs.batch(model, torch.arange(U))
        return sum(sizes.values())

    def test_what_is_held(self, make):
        whole = self.held(*make("wav2vec2"))
        blocks_alone = self.held(*make("wav2vec2", recomputed=True))
        assert self.held(*make("wav2vec2", micro_batch_s=0.8)) < 0.02 * whole
        assert blocks_alone < 0.8 * whole


class TestGradientCheckpointing:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("tune", ("all", "top-1"))
    def test_gradients(self, make, family, tune):
        expected = gradients(*make(family, dropout=0.4, tune=tune))
        found = gradients(*make(family, dropout=0.4, tune=tune, recomputed=True))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
        both = gradients(*make(family, tune=tune, recomputed=True, micro_batch_s=0.8))
        same(both, gradients(*make(family, tune=tune)), 1e-5)

    def test_a_copy_has_its_own_weights(self, make, clips):
        model, inputs = make("whisper", recomputed=True)
        teacher = copy.deepcopy(model)
        expected = inputs.everything(model)
        with torch.no_grad():
            for parameter in model.encoder.blocks.parameters():
                parameter.zero_()
        assert torch.equal(inputs.everything(teacher), expected)
        assert not torch.equal(inputs.everything(model), expected)


def test_the_step(corpora, encoders, tmp_path):
    def trained(name, **options):
        return m.train_source(
            m.TrainSourceConfig(
                manifest=corpora.source,
                encoder=str(encoders["whisper"]),
                tune="top-1",
                encoder_learning_rate=1e-3,
                epochs=2,
                out=tmp_path / name,
                **options,
            )
        )

    from safetensors.torch import load_file

    trained("whole")
    # Neither settles what the result is: it is up to date with both.
    options = {"micro_batch_seconds": 1.0, "gradient_checkpointing": True}
    trained("parts", **options)
    assert trained("whole", update=True, **options).up_to_date
    for file in ("model.safetensors", "encoder/model.safetensors"):
        whole, parts = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
        for tensor, value in whole.items():
            torch.testing.assert_close(parts[tensor], value, atol=1e-4, rtol=0)


def test_padding_on_a_gpu(loaded, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)  # there may be none
    for device, most in (("cpu", 0.05), ("cuda", 0.6)):
        whisper, exact = (copy.deepcopy(loaded["whisper"]) for _ in range(2))
        exact.padding = 0.0  # as where an architecture sees it
        for encoder in (whisper, exact):
            trainable_part(encoder, "all", device=torch.device(device))
        assert whisper.padding == most and exact.padding == 0


def test_no_seconds_below_zero():
    with pytest.raises(m.UsageError, match="--micro-batch-seconds -1"):
        m.TrainSourceConfig(manifest="m", encoder="e", out="o", micro_batch_seconds=-1)
