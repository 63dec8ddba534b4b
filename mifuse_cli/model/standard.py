"""Standardisation of the head's input with statistics of the source, of the target, or of each speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.errors import InputError

_SMALLEST_STD = 1e-5


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (L, D) of features over the clips of one domain."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Standard:
    """Statistics by group of clips: means and deviations (G, L, D), and the group of every clip (U,)."""

    mean: Tensor
    std: Tensor
    group: Tensor

    def __call__(self, features: Tensor, index: Tensor) -> Tensor:
        """Standardised features (B, L, D) of the clips at positions ``index`` (B,)."""
        if len(self.mean) == 1:
            return (features - self.mean) / self.std
        group = self.group[index]
        return (features - self.mean[group]) / self.std[group]


def statistics(features: Tensor) -> Statistics:
    """Statistics over clips of features (U, L, D)."""
    std = features.std(dim=0, unbiased=False).clamp_min(_SMALLEST_STD)
    return Statistics(features.mean(dim=0), std)


class RunningStatistics:
    """Statistics over clips that come block by block, in the memory of one block (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.clips = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in a block of features (B, L, D)."""
        values, before = features.double().cpu(), self.clips
        self.clips += len(values)
        mean = values.mean(dim=0)
        apart = mean - self._mean
        self._squares = (
            self._squares
            + (values - mean).square().sum(dim=0)
            + apart.square() * (before * len(values) / self.clips)
        )
        self._mean = self._mean + apart * (len(values) / self.clips)

    def found(self) -> Statistics:
        """What `statistics` gives of all features so far."""
        std = (self._squares / self.clips).sqrt().clamp_min(_SMALLEST_STD)
        return Statistics(self._mean.float(), std.float())


def fit_standard(
    mode: str, features: Tensor, *, stored: Statistics | None, speakers: Sequence[str | None]
) -> Standard:
    """How to standardise U clips with features (U, L, D).

    Args:
        mode: ``source`` uses the stored statistics, ``target`` those of the clips at hand, ``speaker`` those
            of each speaker among them (those of all clips for a speaker with a single clip).
        features: (U, L, D) features of the clips at hand.
        stored: statistics stored in the model; None while the source model is trained: ``source`` then
            means the clips at hand.
        speakers: speaker of every clip.

    Raises:
        InputError: mode ``speaker`` and a clip without a speaker.
    """
    everyone = statistics(features)
    if mode == "source" and stored is not None:
        everyone = Statistics(stored.mean.to(features.device), stored.std.to(features.device))
    if mode != "speaker":
        return Standard(everyone.mean[None], everyone.std[None], torch.zeros(len(features), dtype=torch.long))
    check_speakers(speakers)
    names, group = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    groups = [features[group == number] for number in range(len(names))]
    each = [statistics(part) if len(part) > 1 else everyone for part in groups]
    return Standard(
        torch.stack([s.mean for s in each]), torch.stack([s.std for s in each]), torch.from_numpy(group)
    )


def check_speakers(speakers: Sequence[str | None]) -> None:
    """Refuse clips without a speaker where each speaker's statistics are wanted.

    Raises:
        InputError: naming how many there are.
    """
    unknown = sum(speaker is None for speaker in speakers)
    if unknown:
        raise InputError(
            f"--normalize speaker: {unknown} of {len(speakers)} clips have no speaker. "
            "Fill the column 'speaker' of the manifest or use --normalize target."
        )
