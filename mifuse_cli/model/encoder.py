"""Audio encoders: waveforms in, one time-averaged vector a hidden layer out.

An encoder is a directory in transformers format (``config.json``, weights, ``preprocessor_config.json``) of any audio
model with hidden states, such as wav2vec2, WavLM or Whisper, a hub name of one, or ``logmel``, a small network trained
from scratch. Clips of nearly the same length share a batch, and each is encoded as if it were alone: padding is masked
wherever it could be seen, and where an architecture sees it all the same, only clips of equal length share a batch.
Results depend on the others of a batch by rounding alone.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import InputError
from mifuse_cli.files import may_be_linked
from mifuse_cli.model.batches import (
    MOST_PADDING,
    attentive_mean,
    batch_seconds,
    frame_mask,
    in_batches,
    stacked,
    strided,
    time_mean,
    time_std,
)
from mifuse_cli.model.channels_last import ChannelsLast, keep_channels_last
from mifuse_cli.model.clip_norm import by_clip
from mifuse_cli.model.loading import (
    feature_extractor,
    load_weights,
    pretrained,
    read_config,
    read_tensor,
    tried,
)
from mifuse_cli.model.transformer import (
    audio_model,
    blocks_of,
    depth,
    encoding_part,
    first_states,
    no_hidden_states,
)

_LOGMEL_TYPE = "mifuse-logmel"
_LARGEST_LOGMEL = 4096
"""Bands and channels of a log-mel encoder."""
_SHORTEST_S = 0.1
_POOLING = "pooling.safetensors"
_MASKED = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Model types of which a mask keeps all padding from the frames of a clip; of others, this is not known."""
_FRAME_LENGTH, _FRAME_SHIFT = 400, 160
"""Samples of a spectrum, and from one to the next, in Kaldi's filter banks."""


class Encoder(nn.Module, ABC):
    """Interface of all encoders.

    Attributes:
        layers: L, the number of hidden states returned, including the input to the first block.
        width: D, the length of each.
        precision: "fp32", or "bf16" for matrix products in bfloat16; outputs stay float32, and so do weights until
            `to_bfloat16`.
        pooling: of frames over time, one of `shape.POOLINGS`.
        query: (S, D) of attentive pooling, for each of all S hidden states; None without it.
        padding: share of a batch that may be padding; 0 where the architecture would see it.
        window: samples that the architecture takes at most; None: any number.
    """

    layers: int
    width: int
    precision: str = "fp32"
    pooling: str = "mean"
    query: nn.Parameter | None
    padding: float = MOST_PADDING
    window: int | None = None
    _all_bfloat16 = False

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("query", None)

    def to_bfloat16(self) -> None:
        """Store weights as bfloat16, in place, which autocast would convert for every batch; for frozen encoders alone.

        Here those of linear layers and convolutions; all weights where the architecture is known to be made for it.
        """
        for module in self.modules():
            if type(module) in (nn.Linear, nn.Conv1d, ChannelsLast):
                module.to(torch.bfloat16)

    def _all_to_bfloat16(self, network: nn.Module) -> None:
        """Convert all weights of a network, so that what is between its matrix products is bfloat16 too."""
        network.to(torch.bfloat16)
        self._all_bfloat16 = True

    @property
    @abstractmethod
    def all_blocks(self) -> nn.ModuleList:
        """All blocks, in use or not."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that are run, which ``--tune top-N`` counts from the end."""
        return self.all_blocks[: self.layers - 1]

    @property
    def unused(self) -> nn.ModuleList:
        """The blocks that are not run."""
        return self.all_blocks[len(self.blocks) :]

    def pool_by(self, pooling: str) -> None:
        """Pool by one of `shape.POOLINGS` instead of the mean; attention starts as the mean, with a query of zeros."""
        self.pooling = pooling
        if pooling == "attentive":
            self.query = nn.Parameter(torch.zeros(self.layers, self.width))
        elif pooling == "mean+deviation":
            self.width *= 2

    def pooled(self, states: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Hidden states (B, L, D) over time, of L of them (B, T, D) and the mask of their frames."""
        if self.pooling == "mean+deviation":
            each = [torch.cat([time_mean(one, mask), time_std(one, mask)], dim=1) for one in states]
        elif self.query is not None:
            each = [attentive_mean(one, mask, query) for one, query in zip(states, self.query, strict=False)]
        else:
            each = [time_mean(one, mask) for one in states]
        return torch.stack(each, dim=1)

    def stop_at(self, highest: int) -> None:
        """Return the hidden states 0 to ``highest`` alone, and run no block above them."""
        self.layers = highest + 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """Every hidden state pooled over time, (B, L, D) float32 on the encoder's device.

        A clip that is longer than the window is cut into windows, whose vectors are averaged by length.

        Args:
            clips: B waveforms (S,) at 16 kHz of any lengths, in memory.
        """
        shortest = int(_SHORTEST_S * RATE)
        parts = [
            self._windows(one if len(one) >= shortest else nn.functional.pad(one, (0, shortest - len(one))))
            for one in clips
        ]
        with self.autocast():
            states = in_batches(
                self.states_of_alike,
                [part for of_one in parts for part in of_one],
                batch_seconds(self.device) * RATE,
                self.padding,
            )
        if len(states) == len(clips):
            return states
        by_clip = states.split([len(one) for one in parts])
        return torch.stack([_mean_by_length(*one) for one in zip(by_clip, parts, strict=True)])

    def _windows(self, clip: Tensor) -> Sequence[Tensor]:
        """Windows of a clip, without a remainder of less than 0.1 s."""
        if self.window is None or len(clip) <= self.window:
            return [clip]
        return [part for part in clip.split(self.window) if len(part) >= _SHORTEST_S * RATE]

    def autocast(self) -> AbstractContextManager[object]:
        """Context with the encoder's precision; within one, trained weights are converted only once."""
        if self.precision == "fp32" or self._all_bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @abstractmethod
    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        """As `forward`, for clips from 0.1 s to a window that are of nearly the same length, by `padding`."""

    def save(self, directory: Path) -> None:
        """Write configuration and weights so that `load_encoder` reads them back."""
        from safetensors.torch import save_file

        self.save_network(directory)
        if self.query is not None:
            save_file({"query": self.query.detach().cpu()}, directory / _POOLING)

    @abstractmethod
    def save_network(self, directory: Path) -> None:
        """As `save`, all but the pooling."""


class WhisperEncoder(Encoder):
    """Encoder of a Whisper model, run at the clip's own length instead of padded to 30 s."""

    def __init__(self, directory: Path) -> None:
        from transformers import WhisperForAudioClassification

        super().__init__()
        self.wrapper: Any = pretrained(WhisperForAudioClassification, directory, part="encoder")
        self.extractor = feature_extractor(directory)
        self.window = self.extractor.n_samples
        self.layers, self.width = len(self.all_blocks) + 1, self.wrapper.encoder.config.d_model

    @property
    def all_blocks(self) -> nn.ModuleList:
        return self.wrapper.encoder.layers

    def to_bfloat16(self) -> None:
        self._all_to_bfloat16(self.wrapper)

    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        encoder = self.wrapper.encoder
        bands = [self._log_mel(one) for one in clips]
        mask = frame_mask([len(one) for one in bands], self.device)
        gelu = nn.functional.gelu
        hidden = gelu(encoder.conv1(stacked(bands, self.device).transpose(1, 2)))
        if (
            mask is not None
        ):  # beyond a clip's end, the next convolution has to find the zeros that it pads with
            hidden = hidden.masked_fill(~mask[:, None], 0)
        hidden = gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        mask = frame_mask([strided(len(one), kernel=3, stride=2, padding=1) for one in bands], self.device)
        seen = None if mask is None else mask[:, None, None]
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, seen)
            states.append(hidden)
        if self.layers > len(encoder.layers):
            states[-1] = encoder.layer_norm(states[-1])
        return self.pooled(states, mask)

    def _log_mel(self, clip: Tensor) -> Tensor:
        """Log energies (T, M) of M mel bands, relative to the loudest of the clip."""
        with _exact("cpu"):
            found = self.extractor(
                clip.numpy(), sampling_rate=RATE, padding="longest", return_tensors="pt"
            ).input_features[0]
        return found.to(self.wrapper.encoder.conv1.weight.dtype).T

    def save_network(self, directory: Path) -> None:
        self.wrapper.save_pretrained(directory)
        self.extractor.save_pretrained(directory)


class AudioModel(Encoder):
    """Any other audio model of transformers; masking of the input and layer drop stay off, in training too."""

    def __init__(self, directory: Path) -> None:
        from transformers import Wav2Vec2FeatureExtractor

        super().__init__()
        self.model: Any = audio_model(directory)
        self.extractor = feature_extractor(directory)
        # All that it does is quickly done where the model is, for a batch at a time.
        self.takes_waveforms = type(self.extractor) is Wav2Vec2FeatureExtractor
        config = self.model.config
        self.place = blocks_of(directory, self.network)
        self.layers = len(self.all_blocks) + 1
        # Batch norm moves the zeros behind a clip.
        self.masked = config.model_type in _MASKED and not getattr(config, "conv_pos_batch_norm", False)
        if self.masked:
            self.norms = by_clip(self.model.feature_extractor)
            # The mask of frames is known here; to make it of that of samples, transformers would wait for the GPU.
            self.model._get_feature_vector_attention_mask = _as_given
            # Group norm, which a network may begin with, wants the frames side by side.
            keep_channels_last(
                layer.conv for layer in self.model.feature_extractor.conv_layers[bool(self.norms) :]
            )
        elif hasattr(self.extractor, "n_samples"):  # pads all audio to this length, and cuts it there
            self.window = self.extractor.n_samples
        elif config.model_type == "audio-spectrogram-transformer":  # so does its own, in frames
            self.window = (self.extractor.max_length - 1) * _FRAME_SHIFT + _FRAME_LENGTH
        else:
            self.padding = 0.0
        if config.model_type == "wavlm":
            from mifuse_cli.model.wavlm import use_scaled_dot_product

            use_scaled_dot_product(self.model)
        self.width = config.hidden_size if self.masked else self._width(directory)

    def _width(self, directory: Path) -> int:
        """D of the hidden states of a second of silence."""
        try:
            with torch.inference_mode():
                states = self.states_of_alike([torch.zeros(RATE)])
        except Exception as error:  # whatever a model may raise that is none of the kind
            raise no_hidden_states(directory, f"{type(error).__name__}: {error}") from None
        if states.shape[:2] != (1, self.layers):
            raise no_hidden_states(directory, f"{states.shape[1]} for {self.layers - 1} layers")
        return states.shape[2]

    @property
    def network(self) -> Any:
        """What gives the hidden states."""
        return encoding_part(self.model)

    @property
    def all_blocks(self) -> nn.ModuleList:
        return self.network.get_submodule(self.place)

    def to_bfloat16(self) -> None:
        if self.masked:
            self._all_to_bfloat16(self.model)
        else:  # there may be parts that are not made for it
            super().to_bfloat16()

    def states_of_alike(self, clips: Sequence[Tensor]) -> Tensor:
        if self.takes_waveforms:
            values, seen = stacked(clips, self.device), frame_mask([len(one) for one in clips], self.device)
            if self.extractor.do_normalize:
                values = _scaled(values, seen)
        else:
            inputs = [self._input(one) for one in clips]
            values = stacked([one for one, _ in inputs], self.device)
            seen = frame_mask([own for _, own in inputs], self.device, values.shape[1])
        if self.masked:
            for norm in self.norms:
                norm.frames = None if seen is None else [self._frames(len(one), 1) for one in clips]
            seen = frame_mask([self._frames(len(one)) for one in clips], self.device)
        given = {self.model.main_input_name: values.to(next(self.model.parameters()).dtype)}
        if seen is not None:
            given["attention_mask"] = seen.long()
        states = first_states(self.network, given, self.place, self.layers)
        frames = seen if seen is not None and seen.shape[1] == states[0].shape[1] else None
        return self.pooled(states, frames)

    def _input(self, clip: Tensor) -> tuple[Tensor, int]:
        """What the extractor makes of a clip, (S,) or (T, M), and how much of it the model is to see."""
        with _exact("cpu"):
            made = self.extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
        values, mask = made[self.model.main_input_name][0], made.get("attention_mask")
        return values, len(values) if mask is None else int(mask.sum())

    def _frames(self, samples: int, convolutions: int | None = None) -> int:
        """Frames that the first convolutions, or all of them, make of a clip."""
        config = self.model.config
        steps = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        for kernel, stride in steps[:convolutions]:
            samples = strided(samples, kernel, stride)
        return samples

    def save_network(self, directory: Path) -> None:
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
        self.layers, self.width = len(self.all_blocks), 2 * channels

    @property
    def all_blocks(self) -> nn.ModuleList:
        return self.convolutions

    @property
    def blocks(self) -> nn.ModuleList:
        return self.convolutions[: self.layers]

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

    def save_network(self, directory: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, directory / "model.safetensors")
        _write_json(directory / "config.json", {"model_type": _LOGMEL_TYPE, **self.options})
        _write_json(directory / "preprocessor_config.json", {"sampling_rate": RATE})


def _mean_by_length(states: Tensor, windows: Sequence[Tensor]) -> Tensor:
    """States (L, D) of a clip from those (W, L, D) of its windows."""
    lengths = torch.tensor([float(len(one)) for one in windows], device=states.device)
    return (states * (lengths / lengths.sum())[:, None, None]).sum(dim=0)


def _as_given(frames: int, attention_mask: Tensor, **others: Any) -> Tensor:
    """The mask of frames (B, T), in place of the function of transformers that makes it of a mask of samples."""
    return attention_mask.bool()


def _scaled(values: Tensor, seen: Tensor | None) -> Tensor:
    """Waveforms (B, S) with mean 0 and deviation 1, as `Wav2Vec2FeatureExtractor` gives them, and 0 behind their ends.

    Args:
        values: 0 behind their ends.
        seen: (B, S) True up to the end; None if all are equally long.
    """
    count = values.shape[1] if seen is None else seen.sum(dim=1, keepdim=True)
    values = values - values.sum(dim=1, keepdim=True) / count
    if seen is not None:
        values = values * seen
    return values / torch.sqrt(values.square().sum(dim=1, keepdim=True) / count + 1e-7)


def _exact(device: str) -> AbstractContextManager[object]:
    """Context that computes spectra in float32, whatever the precision of the network."""
    return torch.autocast(device, enabled=False)


def count_states(directory: Path) -> int:
    """Number of hidden states of the encoder in a directory; its weights are not read.

    Raises:
        InputError: as of `load_encoder`, but for weights.
    """
    return 3 if read_config(directory).get("model_type") == _LOGMEL_TYPE else depth(directory) + 1


def load_encoder(directory: Path, precision: str = "fp32", pooling: str = "mean") -> Encoder:
    """The encoder in a directory, in evaluation mode and of the given precision and pooling.

    Raises:
        InputError: not a model directory, a model that gives no hidden states of audio, or weights that do not fit.
    """
    config = read_config(directory)
    family = config.get("model_type")
    if family == _LOGMEL_TYPE:
        encoder: Encoder = _logmel(config, directory)
    elif family == "whisper":
        encoder = WhisperEncoder(directory)
    else:
        encoder = AudioModel(directory)
    encoder.pool_by(pooling)
    if encoder.query is not None and (directory / _POOLING).is_file():
        with torch.no_grad():
            encoder.query.copy_(read_tensor(directory / _POOLING, "query", encoder.query.shape))
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
    """Copy an unchanged encoder's files, by hard link where the file system and their permissions allow it."""
    target.mkdir()
    names = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    for file in (file for name in names for file in source.glob(name)):
        copy = target / file.name
        if may_be_linked(file, target):
            with suppress(OSError):
                os.link(file.resolve(), copy)
        if not copy.exists():
            shutil.copyfile(file, copy)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
