"""Audio encoders: a waveform in, one time-averaged vector a hidden layer out.

An encoder is a directory in transformers format (``config.json``, weights, ``preprocessor_config.json``) of
the wav2vec2, HuBERT, WavLM or Whisper family, a hub name of one, or ``logmel``, a small network trained from
scratch. Clips are encoded one at a time at their own length, so that no result depends on padding or on
which clips share a batch.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import InputError
from mifuse_cli.model.loading import feature_extractor, load_weights, pretrained, read_config

_LOGMEL_TYPE = "mifuse-logmel"
_SHORTEST_S = 0.1


class Encoder(nn.Module, ABC):
    """Interface of all encoders.

    Attributes:
        layers: L, the number of hidden states returned, including the input to the first block.
        width: D, the length of each.
        precision: "fp32", or "bf16" for matrix products in bfloat16; weights and outputs stay float32.
    """

    layers: int
    width: int
    precision: str = "fp32"

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks that ``--tune top-N`` counts from the end."""

    def forward(self, samples: Tensor) -> Tensor:
        """Mean over time of every hidden state (L, D) of one clip, samples (S,) at 16 kHz."""
        shortest = int(_SHORTEST_S * RATE)
        if len(samples) < shortest:
            samples = nn.functional.pad(samples, (0, shortest - len(samples)))
        with self.autocast():
            return self.states(samples)

    def autocast(self) -> AbstractContextManager[object]:
        """Context with the encoder's precision; within one, trained weights are converted only once."""
        if self.precision == "fp32":
            return nullcontext()
        device = next(self.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)

    @abstractmethod
    def states(self, samples: Tensor) -> Tensor:
        """As `forward`, for clips of at least 0.1 s."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write configuration and weights so that `load_encoder` reads them back."""


class WhisperEncoder(Encoder):
    """Encoder of a Whisper model, run at the clip's own length instead of padded to 30 s.

    Longer clips are cut into windows of 30 s, whose means are averaged by length.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import WhisperForAudioClassification

        super().__init__()
        self.wrapper: Any = pretrained(WhisperForAudioClassification, directory, part="encoder")
        self.extractor = feature_extractor(directory)
        self.layers, self.width = len(self.blocks) + 1, self.wrapper.encoder.config.d_model

    @property
    def blocks(self) -> nn.ModuleList:
        return self.wrapper.encoder.layers

    def states(self, samples: Tensor) -> Tensor:
        window = self.extractor.n_samples
        parts = [part for part in samples.split(window) if len(part) >= min(len(samples), _SHORTEST_S * RATE)]
        lengths = torch.tensor([float(len(part)) for part in parts], device=samples.device)
        states = torch.stack([self._window(part) for part in parts])
        return (states * (lengths / lengths.sum())[:, None, None]).sum(dim=0)

    def _window(self, samples: Tensor) -> Tensor:
        encoder = self.wrapper.encoder
        with _exact("cpu"):
            mel = self.extractor(
                samples.cpu().numpy(), sampling_rate=RATE, padding="longest", return_tensors="pt"
            ).input_features.to(encoder.conv1.weight)
        gelu = nn.functional.gelu
        hidden = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = [hidden]
        for block in encoder.layers:
            hidden = block(hidden, None)
            states.append(hidden)
        states[-1] = encoder.layer_norm(states[-1])
        return torch.cat(states).float().mean(dim=1)

    def save(self, directory: Path) -> None:
        self.wrapper.save_pretrained(directory)
        self.extractor.save_pretrained(directory)


class SelfSupervisedEncoder(Encoder):
    """wav2vec2, HuBERT or WavLM; masking of the input and layer drop stay off, in training too."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModel

        super().__init__()
        self.model: Any = pretrained(AutoModel, directory)
        self.extractor = feature_extractor(directory)
        self.layers, self.width = len(self.blocks) + 1, self.model.config.hidden_size

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def states(self, samples: Tensor) -> Tensor:
        values = self.extractor(samples.cpu().numpy(), sampling_rate=RATE, return_tensors="pt").input_values
        weight = next(self.model.parameters())
        states = self.model(values.to(weight), output_hidden_states=True).hidden_states
        return torch.cat(states).float().mean(dim=1)

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.extractor.save_pretrained(directory)


class LogMelEncoder(Encoder):
    """Three strided convolutions over log-mel frames; mean and deviation over time of each one's output."""

    def __init__(self, n_mels: int = 64, channels: int = 96, dropout: float = 0.1) -> None:
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        self.options = {"n_mels": n_mels, "channels": channels, "dropout": dropout}
        self.mel = MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=n_mels)
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(inputs, channels, kernel_size=5, stride=2, padding=2),
                nn.ReLU(),
                nn.Dropout(dropout),
            )
            for inputs in (n_mels, channels, channels)
        )
        self.layers, self.width = len(self.blocks), 2 * channels

    @property
    def blocks(self) -> nn.ModuleList:
        return self.convolutions

    def states(self, samples: Tensor) -> Tensor:
        with _exact(samples.device.type):
            # Log energies of speech lie around -5 with a deviation of about 5.
            hidden = (torch.log(self.mel(samples) + 1e-6) + 5) / 5
        states = []
        for block in self.blocks:
            hidden = block(hidden)
            exact = hidden.float()
            states.append(torch.cat([exact.mean(dim=-1), exact.std(dim=-1)]))
        return torch.stack(states)

    def save(self, directory: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, directory / "model.safetensors")
        _write_json(directory / "config.json", {"model_type": _LOGMEL_TYPE, **self.options})
        _write_json(directory / "preprocessor_config.json", {"sampling_rate": RATE})


def _exact(device: str) -> AbstractContextManager[object]:
    """Context that computes spectra in float32, whatever the precision of the network."""
    return torch.autocast(device, enabled=False)


def load_encoder(directory: Path, precision: str = "fp32") -> Encoder:
    """The encoder in a directory, in evaluation mode and of the given precision.

    Raises:
        InputError: not a model directory, an unsupported family, or weights that do not fit.
    """
    config = read_config(directory)
    family = config.get("model_type")
    if family == _LOGMEL_TYPE:
        encoder: Encoder = LogMelEncoder(**{k: config[k] for k in ("n_mels", "channels", "dropout")})
        load_weights(encoder, directory / "model.safetensors")
    elif family == "whisper":
        encoder = WhisperEncoder(directory)
    elif family in ("wav2vec2", "hubert", "wavlm"):
        encoder = SelfSupervisedEncoder(directory)
    else:
        raise InputError(
            f"{directory}: holds a {family!r} model; expected wav2vec2, hubert, wavlm, whisper or {_LOGMEL_TYPE}."
        )
    encoder.precision = precision
    return encoder.eval()


def copy_encoder(source: Path, target: Path) -> None:
    """Copy an unchanged encoder's files, by hard link where the file system allows it."""
    target.mkdir()
    if not any(source.glob("*.safetensors")):  # old pickled weights: checkpoints hold none
        load_encoder(source).save(target)
        return
    names = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    for file in (file for name in names for file in source.glob(name)):
        try:
            os.link(file.resolve(), target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
