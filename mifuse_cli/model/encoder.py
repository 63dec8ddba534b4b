"""Audio encoders: waveforms in, one time-averaged vector a hidden layer out.

An encoder is a directory in transformers format (``config.json``, weights, ``preprocessor_config.json``) of
the wav2vec2, HuBERT, WavLM or Whisper family, a hub name of one, or ``logmel``, a small network trained from
scratch. Clips of nearly the same length share a batch, and each is encoded as if it were alone: padding is
masked wherever it could be seen, and where an architecture sees it all the same, only clips of equal length
share a batch. Results depend on the others of a batch by rounding alone.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import InputError
from mifuse_cli.model.batches import (
    MOST_PADDING,
    batch_seconds,
    frame_mask,
    in_batches,
    stacked,
    strided,
    time_mean,
    time_std,
)
from mifuse_cli.model.loading import feature_extractor, load_weights, pretrained, read_config, tried

_LOGMEL_TYPE = "mifuse-logmel"
_LARGEST_LOGMEL = 4096
"""Bands and channels of a log-mel encoder."""
_SHORTEST_S = 0.1


class Encoder(nn.Module, ABC):
    """Interface of all encoders.

    Attributes:
        layers: L, the number of hidden states returned, including the input to the first block.
        width: D, the length of each.
        precision: "fp32", or "bf16" for matrix products in bfloat16; weights and outputs stay float32.
        padding: share of a batch that may be padding; 0 where the architecture would see it.
    """

    layers: int
    width: int
    precision: str = "fp32"
    padding: float = MOST_PADDING

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks that ``--tune top-N`` counts from the end."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """Mean over time of every hidden state, (B, L, D) float32 on the encoder's device.

        Args:
            clips: B waveforms (S,) at 16 kHz of any lengths, in memory.
        """
        shortest = int(_SHORTEST_S * RATE)
        long_enough = [nn.functional.pad(one, (0, max(0, shortest - len(one)))) for one in clips]
        with self.autocast():
            return self.states(long_enough)

    def autocast(self) -> AbstractContextManager[object]:
        """Context with the encoder's precision; within one, trained weights are converted only once."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def states(self, clips: Sequence[Tensor]) -> Tensor:
        """As `forward`, for clips of at least 0.1 s."""
        return in_batches(self.states_of_alike, clips, batch_seconds(self.device) * RATE, self.padding)

    @abstractmethod
    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        """As `states`, for clips of nearly the same length: at most `padding` of their batch is padding."""

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

    def states(self, clips: Sequence[Tensor]) -> Tensor:
        parts = [self._parts(one) for one in clips]
        states = super().states([part for of_one in parts for part in of_one]).split(list(map(len, parts)))
        return torch.stack([_mean_by_length(*one) for one in zip(states, parts, strict=True)])

    def _parts(self, clip: Tensor) -> list[Tensor]:
        """Windows of a clip, without a remainder of less than 0.1 s."""
        windows = clip.split(self.extractor.n_samples)
        return [part for part in windows if len(part) >= min(len(clip), _SHORTEST_S * RATE)]

    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        encoder = self.wrapper.encoder
        bands = [self._log_mel(one) for one in clips]
        mask = frame_mask([len(one) for one in bands], self.device)
        gelu = nn.functional.gelu
        hidden = gelu(encoder.conv1(stacked(bands, self.device).transpose(1, 2)))
        if (
            mask is not None
        ):  # beyond the end of a clip, the next convolution has to find the zeros that it pads with
            hidden = hidden.masked_fill(~mask[:, None], 0)
        hidden = gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        mask = frame_mask([strided(len(one), kernel=3, stride=2, padding=1) for one in bands], self.device)
        seen = None if mask is None else mask[:, None, None]
        states = [hidden]
        for block in encoder.layers:
            hidden = block(hidden, seen)
            states.append(hidden)
        states[-1] = encoder.layer_norm(states[-1])
        return torch.stack([time_mean(state, mask) for state in states], dim=1)

    def _log_mel(self, clip: Tensor) -> Tensor:
        """Log energies (T, M) of M mel bands, relative to the loudest of the clip."""
        with _exact("cpu"):
            found = self.extractor(
                clip.numpy(), sampling_rate=RATE, padding="longest", return_tensors="pt"
            ).input_features[0]
        return found.to(self.wrapper.encoder.conv1.weight.dtype).T

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
        config = self.model.config
        self.layers, self.width = len(self.blocks) + 1, config.hidden_size
        # Group norm takes its statistics over all frames, and batch norm moves the zeros behind a clip.
        if config.feat_extract_norm == "group" or getattr(config, "conv_pos_batch_norm", False):
            self.padding = 0.0

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        values = [
            self.extractor(one.numpy(), sampling_rate=RATE, return_tensors="pt").input_values[0]
            for one in clips
        ]
        weight = next(self.model.parameters())
        frames = frame_mask([self._frames(len(one)) for one in clips], self.device)
        samples = None if frames is None else frame_mask([len(one) for one in clips], self.device)
        with warnings.catch_warnings():
            # WavLM gives torch a mask of booleans beside its position bias, as torch will not take for ever.
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
            states = self.model(
                stacked(values, self.device).to(weight.dtype),
                attention_mask=None if samples is None else samples.long(),
                output_hidden_states=True,
            ).hidden_states
        return torch.stack([time_mean(state, frames) for state in states], dim=1)

    def _frames(self, samples: int) -> int:
        """Frames that the convolutions make of a clip."""
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = strided(samples, kernel, stride)
        return samples

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

    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        with _exact(self.device.type):
            # Log energies of speech lie around -5 with a deviation of about 5.
            bands = [(torch.log(self.mel(one.to(self.device)) + 1e-6) + 5).T / 5 for one in clips]
        frames = [len(one) for one in bands]
        hidden, states = stacked(bands, self.device), []
        for block in self.blocks:
            hidden = block(hidden.transpose(1, 2)).transpose(1, 2)
            frames = [strided(one, kernel=5, stride=2, padding=2) for one in frames]
            mask = frame_mask(frames, self.device)
            states.append(torch.cat([time_mean(hidden, mask), time_std(hidden, mask)], dim=1))
            if mask is not None:  # the next convolution has to find the zeros that it pads with
                hidden = hidden.masked_fill(~mask[:, :, None], 0)
        return torch.stack(states, dim=1)

    def save(self, directory: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, directory / "model.safetensors")
        _write_json(directory / "config.json", {"model_type": _LOGMEL_TYPE, **self.options})
        _write_json(directory / "preprocessor_config.json", {"sampling_rate": RATE})


def _mean_by_length(states: Tensor, windows: Sequence[Tensor]) -> Tensor:
    """States (L, D) of a clip from those (W, L, D) of its windows."""
    lengths = torch.tensor([float(len(one)) for one in windows], device=states.device)
    return (states * (lengths / lengths.sum())[:, None, None]).sum(dim=0)


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
        encoder: Encoder = _logmel(config, directory)
    elif family == "whisper":
        encoder = WhisperEncoder(directory)
    elif family in ("wav2vec2", "hubert", "wavlm"):
        encoder = SelfSupervisedEncoder(directory)
    else:
        raise InputError(
            f"{directory}: holds a {family!r} model; expected wav2vec2, hubert, wavlm, whisper or {_LOGMEL_TYPE}."
        )
    encoder = tried(encoder, directory)
    encoder.precision = precision
    return encoder


def _logmel(config: dict[str, Any], directory: Path) -> LogMelEncoder:
    numbers: dict[str, Any] = {name: config.get(name) for name in ("n_mels", "channels", "dropout")}
    bands, channels, dropout = numbers.values()
    if not all(type(one) is int and 0 < one <= _LARGEST_LOGMEL for one in (bands, channels)) or not (
        isinstance(dropout, float | int) and 0 <= dropout < 1
    ):
        raise InputError(f"{directory}/config.json: no log-mel encoder has {numbers}. Train the model anew.")
    encoder = LogMelEncoder(**numbers)
    load_weights(encoder, directory / "model.safetensors")
    return encoder


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
