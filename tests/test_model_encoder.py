import json
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import clip, rewrite, save_encoder, tone

from mifuse_cli.errors import DependencyError, InputError, UsageError
from mifuse_cli.model.encoder import LogMelEncoder, load_encoder
from mifuse_cli.model.hub import find_encoder
from mifuse_cli.model.prepare import trainable_part

CPU = torch.device("cpu")
FAMILIES = ("wav2vec2", "hubert", "wavlm", "whisper")


def alone(encoder, samples):
    """Hidden states (L, D) of one clip."""
    return encoder([samples])[0]


SECONDS = (
    0.05,
    0.1,
    0.3,
    0.31,
    1.0,
    1.01,
    1.013,
    2.5,
    2.51,
    2.56,
    7.0,
    7.2,
    29.9,
    30.02,
    30.9,
    39.5,
    40.0,
    40.0,
)
LIKE = {
    # As the released models have it: of the base models those with group norm, of the large ones the others.
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "group-stable": {"feat_extract_norm": "group", "do_stable_layer_norm": True},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": False},
    "layer-stable": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}
KINDS = [f"{family} {like}" for family in ("wav2vec2", "hubert", "wavlm") for like in LIKE]
KINDS += ["hubert batch norm", "wav2vec2 adapter", "whisper", "logmel"]


@pytest.fixture(scope="module")
def kinds(encoders, tmp_path_factory):
    """An encoder of every kind, with convolutions and biases that are not small, so that padding shows."""
    root, found = tmp_path_factory.mktemp("kinds"), {}
    for kind in KINDS:
        family, _, like = kind.partition(" ")
        place = root / kind.replace(" ", "-")
        if kind == "logmel":
            place.mkdir()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                LogMelEncoder(n_mels=8, channels=4).save(place)
        elif kind == "whisper":
            place = encoders["whisper"]
        else:
            others = {"batch norm": {"conv_pos_batch_norm": True}, "adapter": {"add_adapter": True}}
            save_encoder(place, family, **LIKE.get(like, {**LIKE["layer"], **others.get(like, {})}))
        found[kind] = load_encoder(place)
    for encoder in found.values():
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            for name, weight in encoder.named_parameters():
                if name.endswith("bias") or "conv" in name:
                    weight.add_(0.3 * torch.randn_like(weight))
    return found


def speech(seconds, seed):
    """A tone that becomes louder and higher (S,), so that the end of a clip differs from its beginning."""
    rng = np.random.default_rng(seed)
    samples = tone(150, 0.3, rng, seconds) * np.linspace(0.1, 1, int(seconds * 16000))
    return torch.from_numpy(samples.astype(np.float32))


class TestBatches:
    """A clip's states are those that it has alone, whatever else is in the batch, to within 1e-4."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_to_one_clip_at_a_time(self, kinds, kind):
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate(SECONDS)]
        padded = []
        inner = type(encoder).states_of_alike

        def noted(some):
            padded.append(len({len(one) for one in some}) > 1)
            return inner(encoder, some)

        encoder.states_of_alike = noted
        try:
            with torch.inference_mode():
                expected = torch.cat([encoder([one]) for one in clips])
                padded.clear()
                torch.testing.assert_close(encoder(clips), expected, atol=1e-4, rtol=0)
                # Where padding would be seen, there is none; elsewhere there was some, or this would show nothing.
                assert any(padded) == ("group" not in kind and kind != "hubert batch norm")
                order = list(range(len(clips)))
                random.Random(0).shuffle(order)
                torch.testing.assert_close(
                    encoder([clips[one] for one in order]), expected[order], atol=1e-4, rtol=0
                )
                torch.testing.assert_close(encoder(clips[5:8]), expected[5:8], atol=1e-4, rtol=0)
        finally:
            del encoder.states_of_alike
        assert torch.isfinite(expected).all()
        different = expected[[SECONDS.index(seconds) for seconds in (0.05, 0.3, 2.5, 7.0)]]
        assert (different[:-1] - different[1:]).abs().amax(dim=(1, 2)).min() > 1e-3

    @pytest.mark.parametrize("kind", KINDS)
    def test_however_much_is_padded(self, kinds, kind, monkeypatch):
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate((1.0, 0.51, 0.73, 2.0))]
        if encoder.padding:
            monkeypatch.setattr(encoder, "padding", 0.5)
        with torch.inference_mode():
            expected = torch.cat([encoder([one]) for one in clips])
            torch.testing.assert_close(encoder(clips), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kind", ["wav2vec2 layer", "wavlm layer-stable", "whisper", "logmel"])
    def test_gradients_too(self, kinds, kind):
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate((1.0, 0.97, 0.5))]

        def gradients(states):
            encoder.zero_grad()
            states.square().sum().backward()
            found = [weight.grad.clone() for weight in encoder.blocks.parameters()]
            encoder.zero_grad(set_to_none=True)
            return found

        alone, together = gradients(torch.cat([encoder([one]) for one in clips])), gradients(encoder(clips))
        assert all(torch.isfinite(one).all() for one in together) and any(one.any() for one in together)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    def test_in_bf16_means_are_exact(self, kinds):
        encoder = kinds["wavlm layer"]
        encoder.precision = "bf16"
        try:
            clips = [speech(seconds, n) for n, seconds in enumerate((1.0, 0.98, 0.96))]
            with torch.inference_mode():
                expected, found = torch.cat([encoder([one]) for one in clips]), encoder(clips)
        finally:
            encoder.precision = "fp32"
        assert found.dtype == torch.float32 and (found - expected).norm() < 0.02 * expected.norm()

    def test_nothing_is_warned_of(self, kinds):
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("error")
            for encoder in kinds.values():
                encoder([speech(1.0, 0), speech(0.98, 1)])

    def test_memory_of_long_clips_is_that_of_a_batch(self, kinds, monkeypatch):
        encoder, most = kinds["whisper"], []
        inner = type(encoder).states_of_alike
        monkeypatch.setattr(
            encoder, "states_of_alike", lambda some: most.append(sum(map(len, some))) or inner(encoder, some)
        )
        with torch.inference_mode():
            assert encoder([speech(130, 0), speech(95, 1)]).shape == (2, 3, 16)
        assert max(most) <= 30 * 16000 and len(most) == 9


class TestEncoders:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_shape(self, encoders, family):
        encoder = load_encoder(encoders[family])
        assert (encoder.layers, encoder.width, len(encoder.blocks)) == (3, 16, 2)
        with torch.inference_mode():
            for seconds in (0.02, 0.25, 0.4):  # the first is shorter than an encoder can take
                states = alone(encoder, clip(seconds))
                assert states.shape == (3, 16) and states.dtype == torch.float32
                assert torch.isfinite(states).all()
            assert not torch.allclose(states[0], states[1])
            assert torch.equal(alone(encoder, clip()), alone(encoder, clip()))

    @pytest.mark.parametrize("family", ("wav2vec2", "hubert", "wavlm"))
    def test_self_supervised_by_hand(self, encoders, family):
        from transformers import AutoModel, Wav2Vec2FeatureExtractor

        extractor = Wav2Vec2FeatureExtractor.from_pretrained(encoders[family])
        values = extractor(clip().numpy(), sampling_rate=16000, return_tensors="pt").input_values
        model = AutoModel.from_pretrained(encoders[family]).eval()
        with torch.inference_mode():
            states = model(values, output_hidden_states=True).hidden_states
            expected = torch.stack([state[0].mean(dim=0) for state in states])
            torch.testing.assert_close(alone(load_encoder(encoders[family]), clip()), expected)

    def test_whisper_at_its_own_length(self, encoders):
        """Equal to a Whisper model made for just this length."""
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        full = WhisperForConditionalGeneration.from_pretrained(encoders["whisper"]).model.encoder
        extractor = WhisperFeatureExtractor.from_pretrained(encoders["whisper"])
        mel = extractor(clip(0.4).numpy(), sampling_rate=16000, padding="longest", return_tensors="pt")
        assert mel.input_features.shape[-1] == 40  # not 3000
        config = full.config
        config.max_source_positions = 20
        short, weights = WhisperEncoder(config).eval(), full.state_dict()
        weights["embed_positions.weight"] = weights["embed_positions.weight"][:20]
        short.load_state_dict(weights)
        with torch.inference_mode():
            states = short(mel.input_features, output_hidden_states=True).hidden_states
            expected = torch.stack([state[0].mean(dim=0) for state in states])
            torch.testing.assert_close(alone(load_encoder(encoders["whisper"]), clip(0.4)), expected)

    def test_whisper_windows(self, encoders):
        encoder, long = load_encoder(encoders["whisper"]), clip(31.5)
        window = 30 * 16000
        with torch.inference_mode():
            first, rest = alone(encoder, long[:window]), alone(encoder, long[window:])
            torch.testing.assert_close(alone(encoder, long), (30 * first + 1.5 * rest) / 31.5)
            torch.testing.assert_close(alone(encoder, long[: window + 800]), first)  # a remainder below 0.1 s
            assert not torch.allclose(first, rest, atol=1e-3)

    def test_log_mel(self, tmp_path):
        encoder = LogMelEncoder(n_mels=8, channels=4).eval()
        assert alone(encoder, clip()).shape == (3, 8) == (encoder.layers, encoder.width)
        encoder.save(tmp_path)
        torch.testing.assert_close(alone(load_encoder(tmp_path), clip()), alone(encoder, clip()))
        assert torch.isfinite(alone(encoder, clip(0.01))).all()

    @pytest.mark.parametrize("family", [*FAMILIES, "logmel"])
    def test_bf16(self, encoders, tmp_path, family):
        directory = encoders.get(family, tmp_path)
        if family == "logmel":
            LogMelEncoder(n_mels=8, channels=4).save(tmp_path)
        encoder = load_encoder(directory, "bf16")
        with torch.inference_mode():
            exact, found = alone(load_encoder(directory), clip()), alone(encoder, clip())
        assert found.dtype == torch.float32 and 0 < (found - exact).norm() < 0.02 * exact.norm()
        assert not torch.equal(found, found.bfloat16().float())  # means over time are taken in float32
        assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}

    @pytest.mark.parametrize("family", FAMILIES)
    def test_saved_and_loaded(self, encoders, tmp_path, family):
        encoder = load_encoder(encoders[family])
        with torch.no_grad():
            for weight in encoder.blocks[1].parameters():
                weight.mul_(3).add_(torch.randn_like(weight))
            encoder.save(tmp_path)
            torch.testing.assert_close(alone(load_encoder(tmp_path), clip()), alone(encoder, clip()))
            assert not torch.allclose(alone(encoder, clip()), alone(load_encoder(encoders[family]), clip()))
        storages = [tensor.data_ptr() for tensor in encoder.state_dict().values()]
        assert len(set(storages)) == len(storages)  # or else it cannot be kept as safetensors

    @pytest.mark.parametrize("family", ("wav2vec2", "whisper"))
    def test_missing_weights(self, encoders, tmp_path, family):
        spoilt = shutil.copytree(encoders[family], tmp_path / "e")

        def drop(tensors):
            del tensors[next(name for name in tensors if "encoder.layers.1." in name)]

        rewrite(spoilt / "model.safetensors", drop)
        with pytest.raises(InputError, match=r"no weights for 1 encoder tensors, first .*layers\.1\."):
            load_encoder(spoilt)

    def test_decoder_is_not_needed(self, encoders, tmp_path):
        spoilt = shutil.copytree(encoders["whisper"], tmp_path / "e")

        def drop(tensors):
            for name in [name for name in tensors if "decoder" in name or "proj_out" in name]:
                del tensors[name]

        rewrite(spoilt / "model.safetensors", drop)
        torch.testing.assert_close(
            alone(load_encoder(spoilt), clip()), alone(load_encoder(encoders["whisper"]), clip())
        )

    def test_weights_of_another_size(self, encoders, tmp_path):
        spoilt = shutil.copytree(encoders["hubert"], tmp_path / "e")
        config = json.loads((spoilt / "config.json").read_text())
        (spoilt / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        with pytest.raises(InputError, match="cannot be loaded"):
            load_encoder(spoilt)

    @pytest.mark.parametrize("family", ("wav2vec2", "whisper"))
    def test_spoilt_directories(self, encoders, tmp_path, family):
        spoilt = shutil.copytree(encoders[family], tmp_path / "e")
        weights = (spoilt / "model.safetensors").read_bytes()
        (spoilt / "model.safetensors").write_bytes(weights[:1000])
        with pytest.raises(InputError, match="cannot be loaded"):
            load_encoder(spoilt)
        (spoilt / "model.safetensors").unlink()
        with pytest.raises(InputError, match="cannot be loaded"):
            load_encoder(spoilt)
        (spoilt / "model.safetensors").write_bytes(weights)
        (spoilt / "preprocessor_config.json").unlink()
        with pytest.raises(InputError, match=r"preprocessor_config\.json cannot be loaded"):
            load_encoder(spoilt)
        (spoilt / "config.json").write_text("{")
        with pytest.raises(InputError, match=r"no readable config\.json"):
            load_encoder(spoilt)

    def test_unsupported_family(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(InputError, match="holds a 'bert' model; expected wav2vec2"):
            load_encoder(tmp_path)

    def test_names(self, tmp_path, encoders):
        assert find_encoder(str(encoders["wavlm"])) == encoders["wavlm"]
        with pytest.raises(DependencyError, match="nor available from the model hub"):
            find_encoder("nobody/nothing")
        with pytest.raises(InputError, match="no such directory"):
            find_encoder(str(tmp_path / "nowhere"))

    def test_trainable_part(self, encoders):
        encoder = trainable_part(load_encoder(encoders["wav2vec2"]), "top-1", device=CPU)
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained and all("encoder.layers.1." in name for name in trained)
        assert all(p.requires_grad for p in trainable_part(encoder, "all", device=CPU).parameters())
        with pytest.raises(UsageError, match="2 blocks"):
            trainable_part(encoder, "top-3", device=CPU)
