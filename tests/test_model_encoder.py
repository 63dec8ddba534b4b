import json
import random
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import clip, rewrite, save_encoder, tone
from transformers import Wav2Vec2FeatureExtractor

from mifuse_cli.errors import DependencyError, InputError, UsageError
from mifuse_cli.model.batches import frame_mask, stacked
from mifuse_cli.model.encoder import LogMelEncoder, _scaled, copy_encoder, count_states, load_encoder
from mifuse_cli.model.hub import find_encoder, find_speaker_encoder
from mifuse_cli.model.prepare import trainable_part
from mifuse_cli.model.speaker_encoder import load_speaker_encoder

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
KINDS += [
    "hubert batch norm",
    "wav2vec2 adapter",
    "unispeech group",
    "unispeech-sat layer",
    "whisper",
    "logmel",
]
ALONE = (
    "data2vec",
    "sew",
    "sew-d",
    "conformer",
    "conformer rotary",
    "wav2vec2-bert",
    "moonshine",
    "speech-to-text",
)
"""Of these, it is not known that they do not see padding."""
FIXED = ("spectrogram-transformer", "qwen2-audio")
"""The extractors of these pad all audio to the same length, and cut it there."""
KINDS += [*ALONE, *FIXED]


def other_model(kind):
    """A random audio model of two blocks of width 16 that is of none of the usual families, and its extractor."""
    import transformers as t

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    positions = {"num_conv_pos_embeddings": 3, "num_conv_pos_embedding_groups": 2}
    wave = {**size, **convolutions, **positions}
    depthwise = {"conv_depthwise_kernel_size": 5}
    stacks = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
              (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    moonshine = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in
                 ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")}  # fmt: skip
    waveform = t.Wav2Vec2FeatureExtractor()
    makers = {
        "data2vec": lambda: t.Data2VecAudioModel(t.Data2VecAudioConfig(**wave, conv_pos_kernel_size=5)),
        "sew": lambda: t.SEWModel(t.SEWConfig(**wave)),
        "sew-d": lambda: t.SEWDModel(t.SEWDConfig(**wave)),
        "conformer": lambda: t.Wav2Vec2ConformerModel(t.Wav2Vec2ConformerConfig(**wave, **depthwise)),
        "conformer rotary": lambda: t.Wav2Vec2ConformerModel(
            t.Wav2Vec2ConformerConfig(**wave, **depthwise, position_embeddings_type="rotary")
        ),
        "wav2vec2-bert": lambda: t.Wav2Vec2BertModel(t.Wav2Vec2BertConfig(**size, **depthwise)),
        "spectrogram-transformer": lambda: t.ASTModel(t.ASTConfig(**size)),
        "moonshine": lambda: t.MoonshineModel(
            t.MoonshineConfig(
                hidden_size=16, intermediate_size=32, vocab_size=32, pad_token_id=0, **moonshine
            )
        ),
        "speech-to-text": lambda: t.Speech2TextModel(
            t.Speech2TextConfig(d_model=16, conv_channels=16, vocab_size=32, **stacks)
        ),
        "qwen2-audio": lambda: t.Qwen2AudioEncoder(
            t.Qwen2AudioEncoderConfig(
                num_mel_bins=80, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16
            )
        ),
    }
    extractors = {
        "wav2vec2-bert": t.SeamlessM4TFeatureExtractor,
        "spectrogram-transformer": t.ASTFeatureExtractor,
        "speech-to-text": t.Speech2TextFeatureExtractor,
        "qwen2-audio": t.WhisperFeatureExtractor,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return makers[kind](), extractors[kind]() if kind in extractors else waveform


def save_other(directory, kind):
    for one in other_model(kind):
        one.save_pretrained(directory)
    return directory


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
        elif kind in ALONE or kind in FIXED:
            save_other(place, kind)
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
        lengths = SECONDS if kind not in ALONE else [*SECONDS[:11], 7.0, 40.0]
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate(lengths)]
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
                assert any(padded) == (kind not in ALONE and kind != "hubert batch norm")
                order = list(range(len(clips)))
                random.Random(0).shuffle(order)
                torch.testing.assert_close(
                    encoder([clips[one] for one in order]), expected[order], atol=1e-4, rtol=0
                )
                torch.testing.assert_close(encoder(clips[5:8]), expected[5:8], atol=1e-4, rtol=0)
        finally:
            del encoder.states_of_alike
        assert torch.isfinite(expected).all()
        different = expected[[lengths.index(seconds) for seconds in (0.05, 0.3, 2.5, 7.0)]]
        assert (different[:-1] - different[1:]).abs().amax(dim=(1, 2)).min() > 1e-3

    @pytest.mark.parametrize("kind", KINDS)
    def test_however_much_is_padded(self, kinds, kind, monkeypatch):
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate((1.0, 0.51, 0.73, 2.0))]
        if encoder.padding:
            monkeypatch.setattr(encoder, "padding", 0.5)
        with torch.inference_mode():
            expected = torch.cat([encoder([one]) for one in clips])
            torch.testing.assert_close(encoder(clips), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        "kind", ["wav2vec2 group", "wav2vec2 layer", "wavlm layer-stable", "whisper", "logmel"]
    )
    def test_gradients_too(self, kinds, kind):
        encoder, clips = kinds[kind], [speech(seconds, n) for n, seconds in enumerate((1.0, 0.97, 0.5))]

        def gradients(states):
            encoder.zero_grad()
            states.square().sum().backward()
            found = [weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None]
            encoder.zero_grad(set_to_none=True)
            return found

        # What stands before the blocks too: group norm by clip is there.
        encoder.requires_grad_(True)
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


class TestPooling:
    @pytest.mark.parametrize("kind", ["wavlm layer", "whisper", "sew"])
    def test_mean_and_deviation(self, kinds, tmp_path, kind):
        kinds[kind].save(tmp_path)
        mean, both = load_encoder(tmp_path), load_encoder(tmp_path, pooling="mean+deviation")
        clips, seen = [speech(seconds, n) for n, seconds in enumerate((1.0, 0.98, 0.4, 31.0))], []
        pooled = both.pooled
        both.pooled = lambda states, mask: seen.append((states, mask)) or pooled(states, mask)
        with torch.inference_mode():
            found, means = both(clips), mean(clips)
            assert found.shape == (4, 3, 32) and both.width == 32
            torch.testing.assert_close(found[..., :16], means, atol=1e-5, rtol=1e-5)
            seen.clear()
            both(clips[:1])
            expected = torch.stack([state[0].std(dim=0) for state in seen[0][0]])
            torch.testing.assert_close(found[0, :, 16:], expected, atol=1e-4, rtol=0)

    def test_attention(self, kinds, tmp_path):
        kinds["wavlm layer"].save(tmp_path)
        clips = [speech(seconds, n) for n, seconds in enumerate((1.0, 0.98, 0.4))]
        encoder = load_encoder(tmp_path, pooling="attentive")
        with torch.inference_mode():
            # As it starts, all frames have the same weight.
            torch.testing.assert_close(encoder(clips), load_encoder(tmp_path)(clips), atol=1e-5, rtol=0)
        with torch.no_grad():
            encoder.query.normal_(0, 1)
        encoder(clips).square().sum().backward()
        assert encoder.query.grad.abs().amax(dim=1).min() > 0
        (tmp_path / "learned").mkdir()
        encoder.save(tmp_path / "learned")
        again = load_encoder(tmp_path / "learned", pooling="attentive")
        with torch.inference_mode():
            found = again(clips)
            assert torch.equal(found, encoder(clips))
            torch.testing.assert_close(found, torch.cat([again([one]) for one in clips]), atol=1e-4, rtol=0)
            states = again.model(again._input(clips[0])[0][None], output_hidden_states=True).hidden_states
            for state, query, one in zip(states, again.query, found[0], strict=True):
                torch.testing.assert_close(
                    (state[0] @ query).softmax(0) @ state[0], one, atol=1e-5, rtol=1e-4
                )
        copy_encoder(tmp_path / "learned", tmp_path / "copied")
        assert torch.equal(load_encoder(tmp_path / "copied", pooling="attentive").query, encoder.query)
        rewrite(tmp_path / "learned" / "pooling.safetensors", lambda tensors: tensors.pop("query"))
        with pytest.raises(InputError, match=r"pooling\.safetensors: cannot be loaded"):
            load_encoder(tmp_path / "learned", pooling="attentive")


class TestEncoders:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_shape(self, encoders, family):
        encoder = load_encoder(encoders[family])
        assert (encoder.layers, encoder.width, len(encoder.blocks)) == (3, 16, 2)
        assert count_states(encoders[family]) == 3
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

    @pytest.mark.parametrize("family", [*FAMILIES, "logmel", "sew"])
    def test_weights_that_are_not_trained_in_bf16(self, encoders, tmp_path, family):
        """All of them where the architecture is known to be made for it, so that nothing is converted on the way."""
        directory = encoders.get(family, tmp_path)
        if family == "logmel":
            LogMelEncoder(n_mels=8, channels=4).save(tmp_path)
        elif family == "sew":
            save_other(tmp_path, "sew")
        encoder = load_encoder(directory, "bf16", "attentive")
        encoder.to_bfloat16()
        weights = [weight for weight in encoder.parameters() if weight is not encoder.query]
        products = [one for one in encoder.modules() if type(one) in (torch.nn.Linear, torch.nn.Conv1d)]
        assert encoder.query.dtype == torch.float32
        assert products and {one.bias.dtype for one in products if one.bias is not None} == {torch.bfloat16}
        assert ({one.dtype for one in weights} == {torch.bfloat16}) is (family in [*FAMILIES, "logmel"])
        with encoder.autocast():
            assert torch.is_autocast_enabled("cpu") is (family not in FAMILIES)
        with torch.inference_mode():
            exact, found = alone(load_encoder(directory), clip()), alone(encoder, clip())
        assert found.dtype == torch.float32 and 0 < (found - exact).norm() < 0.03 * exact.norm()

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

    @pytest.mark.parametrize("family", ("wav2vec2", "whisper"))
    @pytest.mark.parametrize("value", (torch.nan, torch.inf))
    def test_weights_that_are_no_numbers(self, encoders, tmp_path, family, value):
        spoilt = shutil.copytree(encoders[family], tmp_path / "e")

        def spoil(tensors):
            name = next(name for name in tensors if "encoder.layers.1." in name and name.endswith("weight"))
            tensors[name].view(-1)[0] = value

        rewrite(spoilt / "model.safetensors", spoil)
        with pytest.raises(InputError, match="NaN or infinity; its weights are damaged"):
            load_encoder(spoilt)

    @pytest.mark.parametrize("family", ("wav2vec2", "whisper"))
    @pytest.mark.parametrize("parts", (1, 2))
    def test_pickled_weights_are_not_read_but_can_be_converted(self, encoders, tmp_path, family, parts):
        from safetensors.torch import load_file

        pickled = shutil.copytree(encoders[family], tmp_path / "it's mine")
        tensors = load_file(pickled / "model.safetensors")
        (pickled / "model.safetensors").unlink()
        weights = {  # as old models name the weight norm
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for name, value in tensors.items()
        }
        if parts == 1:
            torch.save(weights, pickled / "pytorch_model.bin")
        else:
            names, where = sorted(weights), {}
            for number, some in enumerate((names[::2], names[1::2]), start=1):
                file = f"pytorch_model-0000{number}-of-00002.bin"
                torch.save({name: weights[name] for name in some}, pickled / file)
                where |= dict.fromkeys(some, file)
            index = {"metadata": {}, "weight_map": where}
            (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for read in (load_encoder, count_states, load_speaker_encoder):
            with pytest.raises(InputError, match=r"pytorch_model.*a pickle, which could run code") as told:
                read(pickled)
        command = str(told.value).partition("convert it: python ")[2]
        subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
        torch.testing.assert_close(
            alone(load_encoder(pickled), clip()), alone(load_encoder(encoders[family]), clip())
        )

    def test_a_model_of_the_hub_is_fetched_with_pickled_weights_only_to_convert_them(
        self, tmp_path, monkeypatch
    ):
        asked = []

        def download(name, allow_patterns):
            asked.extend(allow_patterns)
            for pattern in allow_patterns:
                if pattern.startswith(there):
                    (tmp_path / pattern.replace("*", "")).touch()
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        there = "model"
        assert find_encoder("a/b") == tmp_path and asked == ["*.json", "model*.safetensors"]
        (tmp_path / "model.safetensors").unlink()
        there = "pytorch"
        assert find_encoder("a/b") == tmp_path and (tmp_path / "pytorch_model.bin").exists()

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

    def test_no_audio_model(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(
            InputError, match="holds a 'bert' model, whose input is 'input_ids'; expected an audio"
        ):
            load_encoder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "ours"}')
        with pytest.raises(
            InputError, match=r"a 'ours' model, which transformers .* does not know; expected an"
        ):
            load_encoder(tmp_path)

    def test_no_hidden_states(self, tmp_path):
        from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

        EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_size=16)).save_pretrained(tmp_path)
        EncodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"gives no hidden states .*; expected an audio"):
            load_encoder(tmp_path)

    def test_another_sampling_rate(self, encoders, tmp_path):
        other = shutil.copytree(encoders["wav2vec2"], tmp_path / "e")
        file = other / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sampling_rate": 8000}))
        with pytest.raises(InputError, match="is for audio at 8000 Hz, expected 16000"):
            load_encoder(other)

    @pytest.mark.parametrize("head", ("ForSequenceClassification", "ForCTC"))
    @pytest.mark.parametrize("family", ("wav2vec2", "wavlm"))
    def test_without_its_head(self, encoders, tmp_path, family, head):
        """A checkpoint with a head, of emotions for example, gives the states of the model below it."""
        from transformers import AutoModel

        directory = save_encoder(tmp_path / "e", family, head=head, seed=3)
        AutoModel.from_pretrained(directory).save_pretrained(tmp_path / "bare")
        shutil.copy(directory / "preprocessor_config.json", tmp_path / "bare")
        with torch.inference_mode():
            expected, found = (alone(load_encoder(tmp_path / name), clip()) for name in ("bare", "e"))
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("kind", [*ALONE, *FIXED])
    def test_other_models_by_hand(self, tmp_path, kind):
        model, extractor = other_model(kind)
        save_other(tmp_path, kind)
        found = extractor(clip().numpy(), sampling_rate=16000, return_tensors="pt")
        mask = found.get("attention_mask")
        network = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        with torch.inference_mode():
            states = network(**found, output_hidden_states=True).hidden_states
            if kind == "wav2vec2-bert":  # the last of an odd number of frames is padding
                states = [state[:, mask[0].bool()] for state in states]
            expected = torch.stack([state[0].mean(dim=0) for state in states])
            torch.testing.assert_close(alone(load_encoder(tmp_path), clip()), expected)

    def test_names(self, tmp_path, encoders):
        assert find_encoder(str(encoders["wavlm"])) == encoders["wavlm"]
        with pytest.raises(DependencyError, match="nor available from the model hub"):
            find_encoder("nobody/nothing")
        with pytest.raises(InputError, match="no such directory"):
            find_encoder(str(tmp_path / "nowhere"))

    def test_what_is_there_and_no_encoder(self, pipeline, tmp_path, monkeypatch):
        """Nothing of it is asked of the hub."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text").write_text("some")
        (tmp_path / "own").mkdir()
        (tmp_path / "own/run.h5").write_bytes(pipeline.source.read_bytes())
        for find in (find_encoder, find_speaker_encoder):
            for name, told in (
                ("text", "encoder text: is text. Expected the directory of an encoder"),
                ("own/run.h5", "is an artifact of sample-source"),
                (str(pipeline.model), "is a checkpoint, .*That of the checkpoint is .*/encoder"),
            ):
                with pytest.raises(InputError, match=told):
                    find(name)
        with pytest.raises(
            InputError, match=r"--encoder logmell: no such encoder \(did you mean 'logmel'\?\)"
        ):
            find_encoder("logmell")

    def test_trainable_part(self, encoders):
        encoder = trainable_part(load_encoder(encoders["wav2vec2"]), "top-1", device=CPU)
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained and all("encoder.layers.1." in name for name in trained)
        assert all(p.requires_grad for p in trainable_part(encoder, "all", device=CPU).parameters())
        with pytest.raises(UsageError, match="2 blocks"):
            trainable_part(encoder, "top-3", device=CPU)
        encoder.stop_at(1)  # what is above the highest state in use cannot be trained
        encoder = trainable_part(encoder, "top-1", device=CPU)
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained and all("encoder.layers.0." in name for name in trained)
        encoder = trainable_part(encoder, "all", device=CPU)
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert not [name for name in trained if "encoder.layers.1." in name] and len(trained) > 20


@pytest.mark.parametrize(
    "kind", ["wav2vec2 group", "wavlm layer-stable", "whisper", "logmel", "sew-d", "moonshine"]
)
def test_no_block_is_run_above_the_highest_state_in_use(kinds, tmp_path, kind):
    kinds[kind].save(tmp_path)
    encoder, clips = (
        load_encoder(tmp_path),
        [speech(seconds, n) for n, seconds in enumerate((1.0, 0.98, 0.5))],
    )
    before = list(encoder.state_dict())
    with torch.inference_mode():
        everything = encoder(clips)
        for highest in (2, 1, 0):
            encoder.stop_at(highest)
            hooks = [
                block.register_forward_hook(lambda *_: pytest.fail("is run")) for block in encoder.unused
            ]
            assert (
                len(encoder.blocks)
                == (highest + 1 if kind == "logmel" else highest)
                == 3 - len(hooks) - (kind != "logmel")
            )
            found = encoder(clips)
            assert found.shape[1] == encoder.layers == highest + 1
            # Up to rounding, since padding is the same; the last of all states alone is normalised.
            torch.testing.assert_close(found, everything[:, : highest + 1], atol=1e-6, rtol=0)
            for hook in hooks:
                hook.remove()
    assert list(encoder.state_dict()) == before


@pytest.mark.parametrize("equal", [False, True])
def test_waveforms_are_scaled_as_by_the_extractor(equal):
    rng = np.random.default_rng(0)
    lengths = (3000, 3000, 3000) if equal else (3000, 2900, 5)
    clips = [
        torch.from_numpy((offset + scale * rng.standard_normal(length)).astype(np.float32))
        for length, scale, offset in zip(lengths, (0.1, 1e-3, 0.0), (0.0, 0.05, 0.2), strict=True)
    ]
    made = _scaled(stacked(clips, CPU), frame_mask(list(lengths), CPU))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for one, row in zip(clips, made, strict=True):
        expected = extractor(one.numpy(), sampling_rate=16_000, return_tensors="np").input_values[0]
        np.testing.assert_allclose(row[: len(one)], expected, atol=1e-4)
        assert not row[len(one) :].any()
