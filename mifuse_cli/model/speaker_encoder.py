"""Speaker encoders: waveforms in, for each one vector out that is alike for clips of one voice.

A speaker encoder is a directory of a transformers model with an x-vector head (``*ForXVector``), a hub name of
one, or a directory of a GE2E d-vector network. No clip is padded to the length of another, so that no vector
depends on which clips share a batch, but for rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mifuse_cli import lineage
from mifuse_cli.audio import RATE
from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError
from mifuse_cli.manifest import Clip
from mifuse_cli.model.batches import batch_seconds, in_batches
from mifuse_cli.model.cache import cached
from mifuse_cli.model.hub import name_of
from mifuse_cli.model.loading import (
    check_rate,
    feature_extractor,
    load_weights,
    pretrained,
    read_config,
    tried,
)

_CACHE_VERSION = 1
_X_VECTOR = "ForXVector"
_D_VECTOR = "ge2e-dvector"
_SHORTEST_S = 0.5
"""Of an x-vector: pooling takes a deviation over frames, and the convolutions before it use up 0.3 s."""
_LEVEL = 10 ** (-30 / 20)
"""Root mean square of a d-vector's input, at least: 30 dB below full scale."""
_FRAMES_APART = 40
"""Frames from the start of one window of a d-vector to the next, a quarter of its length."""


class SpeakerEncoder(nn.Module, ABC):
    """Interface of all speaker encoders."""

    padding = 0.0
    """Share of a batch that may be padding: none."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """Vectors (B, V) of length 1, on the encoder's device, of B waveforms (S,) at 16 kHz of any lengths above 0."""
        return nn.functional.normalize(self.embeddings(clips), dim=1)

    @abstractmethod
    def embeddings(self, clips: Sequence[Tensor]) -> Tensor:
        """As `forward`, but of any length above 0."""


class XVectorEncoder(SpeakerEncoder):
    """A transformers model with an x-vector head (Snyder et al., ICASSP 2018); clips below 0.5 s are repeated.

    Only clips of equal length share a batch: the head's pooling has no mask that is right for every model.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForAudioXVector

        super().__init__()
        self.model: Any = pretrained(AutoModelForAudioXVector, directory)
        self.extractor = feature_extractor(directory)

    def embeddings(self, clips: Sequence[Tensor]) -> Tensor:
        shortest = int(_SHORTEST_S * RATE)
        repeated = [
            one if len(one) >= shortest else one.repeat(-(-shortest // len(one)))[:shortest] for one in clips
        ]
        return in_batches(self._of_equal_length, repeated, batch_seconds(self.device) * RATE, self.padding)

    def _of_equal_length(self, clips: list[Tensor]) -> Tensor:
        inputs = [self.extractor(one.numpy(), sampling_rate=RATE, return_tensors="pt") for one in clips]
        together = {name: torch.cat([one[name] for one in inputs]).to(self.device) for name in inputs[0]}
        return self.model(**together).embeddings


class DVectorEncoder(SpeakerEncoder):
    """The LSTM of generalised end-to-end loss, GE2E (Wan et al., ICASSP 2018), as Resemblyzer 0.1.4 has it.

    Input is the power of mel bands (Slaney's scale and norm) of 25 ms every 10 ms, of speech that is raised to
    -30 dBFS if it is lower. The vector of a clip is the mean of those of windows of 1.6 s, 0.4 s apart, each of
    length 1; a shorter clip is followed by silence.
    """

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        try:
            check_rate(directory, config["sampling_rate"])
            bands, width = config["n_mels"], config["hidden_size"]
            self.frames: int = config["partial_frames"]
            # Silence beyond the ends, as in librosa now, whose older versions reflect; that takes a clip of 13 ms.
            self.mel = MelSpectrogram(
                RATE,
                n_fft=config["n_fft"],
                hop_length=config["hop_length"],
                n_mels=bands,
                norm="slaney",
                mel_scale="slaney",
                pad_mode="constant",
            )
            self.network = nn.ModuleDict(
                {
                    "lstm": nn.LSTM(bands, width, config["num_layers"], batch_first=True),
                    "linear": nn.Linear(width, config["embedding_size"]),
                }
            )
        except KeyError as error:
            raise InputError(
                f"{directory}/config.json: lacks {error}, which a {_D_VECTOR} model needs."
            ) from None
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise InputError(
                f"{directory}/config.json: no {_D_VECTOR} model has such values ({error})."
            ) from None
        load_weights(self.network, directory / "model.safetensors")

    def embeddings(self, clips: Sequence[Tensor]) -> Tensor:
        windows = [self._windows(one.to(self.device)) for one in clips]
        _, (last, _) = self.network["lstm"](torch.cat(windows))
        vectors = nn.functional.normalize(torch.relu(self.network["linear"](last[-1])), dim=1)
        return torch.stack([one.mean(dim=0) for one in vectors.split(list(map(len, windows)))])

    def _windows(self, samples: Tensor) -> Tensor:
        """Power of the mel bands of a clip, (W, T, M): W windows of T frames."""
        level = samples.square().mean().sqrt()
        if 0 < level < _LEVEL:
            samples = samples * (_LEVEL / level)
        mel = self.mel(samples)
        mel = nn.functional.pad(mel, (0, max(0, self.frames - mel.shape[1])))
        return mel.unfold(1, self.frames, _FRAMES_APART).permute(1, 2, 0)


def load_speaker_encoder(directory: Path) -> SpeakerEncoder:
    """The speaker encoder in a directory, in evaluation mode.

    Raises:
        InputError: not a model directory, a model of another kind, weights that do not fit, or a sampling rate
            other than 16 kHz.
    """
    config = read_config(directory)
    family, heads = config.get("model_type"), config.get("architectures") or []
    if not isinstance(heads, list):
        heads = [heads]
    if family == _D_VECTOR:
        return tried(DVectorEncoder(directory, config), directory)
    if any(str(head).endswith(_X_VECTOR) for head in heads):
        return tried(XVectorEncoder(directory), directory)
    raise InputError(
        f"{directory}: holds a {family!r} model ({', '.join(map(str, heads)) or 'without architectures'}), which is no "
        f"speaker encoder; expected a transformers model whose architecture is one of *{_X_VECTOR}, or one of type "
        f"{_D_VECTOR}. Give the directory or hub name of such a model, as of microsoft/wavlm-base-plus-sv."
    )


@dataclass(frozen=True)
class FrozenSpeakerEncoder:
    """A speaker encoder by its directory, for any process to load."""

    directory: Path

    def load(self, device: torch.device) -> VoiceRows:
        """The speaker encoder on a device.

        Raises:
            InputError: as of `load_speaker_encoder`.
        """
        return VoiceRows(load_speaker_encoder(self.directory).to(device))


@dataclass(frozen=True)
class VoiceRows:
    """The vectors of a speaker encoder as matrices of one row."""

    encoder: SpeakerEncoder

    @property
    def padding(self) -> float:
        """Share of a batch that may be padding."""
        return self.encoder.padding

    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """Matrices (B, 1, V) of B waveforms (S,) at 16 kHz."""
        return self.encoder(clips)[:, None]


def speaker_vectors(
    clips: Sequence[Clip],
    directory: Path,
    *,
    device: torch.device,
    encoding: Encoding = Encoding(),
    progress: Progress | None = None,
) -> np.ndarray:
    """A vector of length 1 for the voice in every clip, (U, V) float32.

    They are cached as features are; the encoder is loaded only if some clip is not in the cache.

    Args:
        clips: U clips.
        directory: of the speaker encoder.
        device: where to run it.
        encoding: by what, and where it is kept.
        progress: called as vectors are made.

    Raises:
        InputError: audio or encoder that cannot be read, an encoder that gives NaN, or a cache that cannot be used.
    """
    return cached(
        clips,
        f"voices-v{_CACHE_VERSION}-{lineage.digest(directory)[:32]}",
        FrozenSpeakerEncoder(directory.absolute()),
        called=f"{name_of(directory)}, of speakers",
        work="encoding voices",
        device=device,
        encoding=encoding,
        progress=progress,
    )[:, 0]
