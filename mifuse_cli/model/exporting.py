"""A checkpoint as a model of `portable`, and that as a transformers directory or as ONNX."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import DependencyError, InputError, MifuseError
from mifuse_cli.model import portable
from mifuse_cli.model.checkpoint import Checkpoint
from mifuse_cli.model.encoder import (
    AudioModel,
    Encoder,
    LogMelEncoder,
    WhisperEncoder,
    load_encoder,
)
from mifuse_cli.model.portable import SHORTEST, EmotionClassifier, EmotionConfig

CODE = "modeling_mifuse.py"
"""Name of `portable` in a directory that transformers loads."""
MODEL = "model.onnx"
TOLERANCE = 1e-4
"""By how much a probability may differ."""
_LOG_TOLERANCE = 1e-2
"""By how much the logarithm of one may differ, however small it is."""
INPUT, OUTPUT = "waveform", "probabilities"
"""Names of the input (1, S) and the output (1, K) of the ONNX model."""


@torch.no_grad()
def portable_model(checkpoint: Checkpoint) -> EmotionClassifier:
    """The classifier with its stored statistics, in float32.

    Raises:
        InputError: the encoder cannot be loaded.
    """
    shape, head = checkpoint.shape, checkpoint.head
    encoder = load_encoder(checkpoint.encoder_dir, pooling=shape.pooling)
    config = EmotionConfig(
        **_encoder_options(encoder, checkpoint.encoder_dir),
        pooling="mean" if isinstance(encoder, LogMelEncoder) else shape.pooling,
        states=0 if encoder.query is None else len(encoder.query),
        layers=list(shape.layers),
        width=shape.width,
        hidden=shape.hidden,
        linear=head.linear is not None,
        id2label=dict(enumerate(shape.classes)),
        label2id={name: number for number, name in enumerate(shape.classes)},
    )
    model = EmotionClassifier(config)
    _fill_states(model.states, encoder)
    if encoder.query is not None and isinstance(
        model.states, portable.WaveformStates | portable.WhisperStates
    ):
        model.states.pooling.query.copy_(encoder.query)
    to = model.head
    to.mean.copy_(checkpoint.statistics.mean)
    to.std.copy_(checkpoint.statistics.std)
    to.shares.copy_(head.mix.softmax(dim=0))
    # Scale and shift of the head's input, and its temperature, become part of the layer that follows.
    to.hidden.weight.copy_(head.hidden.weight * head.scale)
    to.hidden.bias.copy_(head.hidden.bias + head.hidden.weight @ head.shift)
    to.out.weight.copy_(head.out.weight / head.temperature)
    to.out.bias.copy_(head.out.bias / head.temperature)
    if head.linear is not None:
        to.weight.copy_(head.linear.weight.flatten(1))
        to.bias.copy_(head.linear.bias)
    return model.eval()


def _encoder_options(encoder: Encoder, directory: Path) -> dict[str, Any]:
    """Fields of the configuration that are about the encoder."""
    match encoder:
        case WhisperEncoder():
            return {
                "encoder": _plain(encoder.wrapper.config),
                "mel_bands": encoder.extractor.feature_size,
            }
        case AudioModel():
            if not encoder.masked:
                raise InputError(
                    f"{directory}: models of the type {encoder.model.config.model_type} cannot be exported; wav2vec2, "
                    "HuBERT, WavLM, UniSpeech and Whisper can."
                )
            return {"encoder": _plain(encoder.model.config), "scale_waveform": encoder.extractor.do_normalize}
        case LogMelEncoder():
            config = json.loads((directory / "config.json").read_text())
            return {"encoder": config, "mel_bands": encoder.options["n_mels"]}
    raise NotImplementedError(type(encoder).__name__)


def _plain(config: Any) -> dict[str, Any]:
    """What differs from transformers' defaults; no path of a machine."""
    values = config.to_diff_dict()
    for name in ("_name_or_path", "architectures", "transformers_version", "dtype"):
        values.pop(name, None)
    return {"model_type": config.model_type, **values}


def _fill_states(states: nn.Module, encoder: Encoder) -> None:
    match states, encoder:
        case portable.WhisperStates(), WhisperEncoder():
            states.model.load_state_dict(encoder.wrapper.encoder.state_dict())
            states.mel.fill(torch.from_numpy(encoder.extractor.mel_filters))
        case portable.WaveformStates(), AudioModel():
            states.model.load_state_dict(encoder.model.state_dict())
        case portable.LogMelStates(), LogMelEncoder():
            for number, convolution in enumerate(states.convolutions):
                convolution.load_state_dict(encoder.convolutions.get_submodule(f"{number}.0").state_dict())
            states.mel.fill(encoder.mel.mel_scale.fb)


def save_transformers(model: EmotionClassifier, directory: Path) -> None:
    """Write a directory that transformers loads with ``trust_remote_code``: weights, configuration and code."""
    from transformers import Wav2Vec2FeatureExtractor
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    module = CODE.removesuffix(".py")
    model.config.architectures = [type(model).__name__]
    model.config.auto_map = {
        "AutoConfig": f"{module}.{EmotionConfig.__name__}",
        "AutoModelForAudioClassification": f"{module}.{EmotionClassifier.__name__}",
    }
    model.save_pretrained(directory)
    # It hands on what it is given: scaling and spectra are the model's part.
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=False, return_attention_mask=True, padding_value=0.0
    )
    extractor.save_pretrained(directory)
    shutil.copyfile(portable.__file__, directory / CODE)


class _Probabilities(nn.Module):
    """Probabilities (1, K) of a waveform (1, S) of at least 0.1 s that fits the encoder."""

    def __init__(self, model: EmotionClassifier) -> None:
        super().__init__()
        self.states, self.head, self.layers = model.states, model.head, model.config.layers

    def forward(self, waveform: Tensor) -> Tensor:
        features = self.states(waveform[0])[self.layers]
        return self.head(features[None]).softmax(dim=-1)


def check_onnx() -> None:
    """Refuse to go on without the packages for ONNX.

    Raises:
        DependencyError: naming those that are missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise DependencyError(f"ONNX needs the packages {', '.join(missing)}: pip install 'mifuse[onnx]'.")


def save_onnx(model: EmotionClassifier, directory: Path) -> None:
    """Write ``model.onnx``: a waveform (1, S) at 16 kHz of any length that the encoder takes in, probabilities out.

    The packages of `check_onnx` have to be there.
    """
    samples = torch.export.Dim("samples", min=SHORTEST, max=model.states.longest)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Probabilities(model).eval(),
            (torch.randn(1, 2 * RATE),),
            directory / MODEL,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({1: samples},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@torch.no_grad()
def difference(checkpoint: Checkpoint, model: EmotionClassifier) -> float:
    """Largest difference of a probability between a checkpoint and its portable model, on clips of noise.

    Raises:
        MifuseError: it is above `TOLERANCE`.
    """
    encoder = load_encoder(checkpoint.encoder_dir, pooling=checkpoint.shape.pooling)
    statistics = checkpoint.statistics
    features = encoder(_noise())[:, list(checkpoint.shape.layers)]
    expected = checkpoint.head((features - statistics.mean) / statistics.std).softmax(dim=-1)
    return _checked(expected, torch.cat([_probabilities(model, one) for one in _noise()]), "transformers")


@torch.no_grad()
def onnx_difference(model: EmotionClassifier, directory: Path) -> float:
    """Largest difference of a probability between a portable model and its ``model.onnx``, on clips of noise.

    Raises:
        MifuseError: it is above `TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory / MODEL), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(session.run(None, {INPUT: one[None].numpy()})[0]) for one in _noise()]
    expected = torch.cat([_probabilities(model, one) for one in _noise()])
    return _checked(expected, torch.cat(found), "ONNX")


def _noise() -> list[Tensor]:
    """Clips (S,) of 0.5 and 1.3 s that get louder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [torch.randn(size) * torch.linspace(0.01, 0.2, size) for size in (RATE // 2, 13 * RATE // 10)]


def _probabilities(model: EmotionClassifier, waveform: Tensor) -> Tensor:
    return model(waveform[None]).logits.softmax(dim=-1)


def _checked(expected: Tensor, found: Tensor, what: str) -> float:
    most = float((expected - found).abs().max())
    # Probabilities of noise are often near 0 and 1, where only their logarithms tell of a mistake.
    apart = expected.clamp_min(1e-30).log() - found.clamp_min(1e-30).log()
    if not (most <= TOLERANCE and apart.abs().max() <= _LOG_TOLERANCE):
        raise MifuseError(
            f"{what}: what was exported gives other probabilities than the model, by {most:.2g}; nothing was written. "
            "Report this with the versions of torch and transformers."
        )
    return most
