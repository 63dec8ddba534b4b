"""Probabilities of clips that are encoded one after the other, in the memory of a few batches.

Where the model's input is standardised by stored statistics, a clip is predicted as soon as it is encoded. Where it
takes those of the clips at hand, or is moved by their mean, features are kept on disk and predicted once all are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import fusion, provenance
from mifuse_cli.audio import Excerpt
from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError
from mifuse_cli.methods.student import centring
from mifuse_cli.model.checkpoint import Checkpoint
from mifuse_cli.model.classifier import draw
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.prepare import frozen_classifier
from mifuse_cli.model.standard import RunningStatistics, Statistics
from mifuse_cli.steps.predict.kept import Kept, key_of
from mifuse_cli.steps.predict.parts import Part

_BLOCK = 256


@dataclass(frozen=True)
class How:
    """How clips are predicted.

    Attributes:
        mode: whose statistics standardise the head's input: "source" for the stored ones, "target" or "speaker".
        centre: whether the input is moved by the mean of all clips.
        passes: of dropout, 0 for none.
        seed: of these.
    """

    mode: str
    centre: bool
    passes: int
    seed: int

    @property
    def together(self) -> bool:
        """Whether a clip's prediction depends on the other clips."""
        return self.centre or self.mode != "source"


def encode(
    parts: Sequence[Part],
    kept: Kept,
    checkpoint: Checkpoint,
    how: How,
    *,
    device: torch.device,
    workers: int,
    progress: Progress | None,
) -> None:
    """Encode what is not kept yet, and keep its features, or its probabilities where these are known at once.

    Raises:
        InputError: the encoder cannot be loaded.
        MifuseError: a worker process was ended from outside.
    """
    known = kept.keys()
    todo: dict[Excerpt, list[Part]] = {}
    for part in parts:
        if key_of(part) not in known:
            todo.setdefault(part.excerpt, []).append(part)
    if not todo:
        return
    padding, done = Padding(), len(parts) - sum(map(len, todo.values()))
    head = _Head(checkpoint, how, device)
    mean, std = checkpoint.statistics.mean.to(device), checkpoint.statistics.std.to(device)

    def skip(excerpt: Excerpt, fault: InputError) -> None:
        nonlocal done
        for part in todo[excerpt]:
            kept.skip(part, str(fault))
        done += len(todo[excerpt])

    network = checkpoint.encoder(max(checkpoint.shape.layers) + 1)
    batches = encoded(list(todo), network, device, workers=workers, padding=padding, unreadable=skip)
    with closing(batches):
        for excerpts, matrices in batches:
            features = torch.from_numpy(matrices[:, list(checkpoint.shape.layers)]).to(device)
            of = [(part, number) for number, excerpt in enumerate(excerpts) for part in todo[excerpt]]
            features = features[[number for _, number in of]]
            ids = [part.utt_id for part, _ in of]
            values = features.cpu().numpy() if how.together else head((features - mean) / std, ids)
            for (part, _), row in zip(of, values, strict=True):
                kept.add(part, row)
            done += len(of)
            if progress:
                progress("predicting", done, len(parts), {"padding": padding.share})


def predictions(
    parts: Sequence[Part], kept: Kept, checkpoint: Checkpoint, how: How, device: torch.device
) -> Iterator[tuple[Part, np.ndarray | str]]:
    """Every clip, with its probabilities and mutual information (K + 1,) or the reason why it has none."""
    if not how.together:
        for part in parts:
            yield part, kept.values(part)
        return
    head = _Head(checkpoint, how, device)
    clips = _Together(parts, kept, checkpoint, how, device)
    offset = clips.offset(head) if how.centre else 0.0
    for block in _in_blocks(parts):
        there, features = clips.standardised(block)
        rows = dict(zip(there, head(features - offset, [part.utt_id for part in there]), strict=True))
        for part in block:
            yield part, rows[part] if part in rows else kept.values(part)


class _Head:
    """Probabilities, and mutual information in nats or NaN, (B, K + 1) of B clips."""

    def __init__(self, checkpoint: Checkpoint, how: How, device: torch.device) -> None:
        self.model = frozen_classifier(checkpoint, device).eval()
        self._how = how

    @torch.no_grad()
    def probs(self, features: Tensor) -> Tensor:
        """Probabilities (B, K) of standardised features (B, L, D)."""
        return self.model.head(features).softmax(dim=-1)

    def __call__(self, features: Tensor, ids: Sequence[str]) -> np.ndarray:
        """Of standardised features (B, L, D); the dropout of a clip depends on its id alone."""
        probs, mi = self.probs(features).cpu().numpy(), np.full((len(ids), 1), np.nan)
        if self._how.passes:
            drawn = [
                draw(
                    self.model,
                    one[None],
                    self._how.passes,
                    provenance.named_seed(self._how.seed, "predict", name),
                )
                for one, name in zip(features, ids, strict=True)
            ]
            mi[:, 0] = fusion.mean_and_mi(torch.cat(drawn).cpu().numpy().astype(float))[1]
        return np.concatenate([probs, mi], axis=1)


class _Together:
    """Features of all clips, on disk, and the statistics that standardise them."""

    def __init__(
        self, parts: Sequence[Part], kept: Kept, checkpoint: Checkpoint, how: How, device: torch.device
    ) -> None:
        self._parts, self._kept, self._device = parts, kept, device
        self._size = tuple(checkpoint.statistics.mean.shape)
        self._stored, self._mode = checkpoint.statistics, how.mode
        self._everyone = self._of(parts) if how.mode != "source" else self._stored
        self._speakers = {}
        if how.mode == "speaker":
            of_speaker: dict[str | None, list[Part]] = {}
            for part in parts:
                of_speaker.setdefault(part.speaker, []).append(part)
            self._speakers = {name: self._of(some) for name, some in of_speaker.items()}

    def standardised(self, parts: Sequence[Part]) -> tuple[list[Part], Tensor]:
        """Those of the clips that have features, and these (B, L, D)."""
        there, features = self._features(parts)
        of_each = [self._speakers.get(part.speaker, self._everyone) for part in there]
        if not there:
            return there, features
        mean, std = (torch.stack([getattr(one, name) for one in of_each]) for name in ("mean", "std"))
        return there, (features - mean.to(self._device)) / std.to(self._device)

    def offset(self, head: _Head) -> Tensor:
        """Constant (L, D) of `methods.student.centring` for all clips."""
        linear = head.model.head.linear
        assert linear is not None
        clips, total = 0, torch.zeros(self._size, dtype=torch.float64)
        for features in self._blocks():
            clips, total = clips + len(features), total + features.double().sum(dim=0).cpu()

        def predicted(by: Tensor) -> Tensor:
            return torch.stack([head.probs(one - by).sum(dim=0) for one in self._blocks()]).sum(dim=0) / clips

        return centring(linear, clips, (total / max(clips, 1)).float().to(self._device), predicted)

    def _blocks(self) -> Iterator[Tensor]:
        """Standardised features (B, L, D) of all clips that have some."""
        for block in _in_blocks(self._parts):
            there, features = self.standardised(block)
            if there:
                yield features

    def _of(self, parts: Sequence[Part]) -> Statistics:
        """Statistics of these clips; those of all for a single one."""
        running = RunningStatistics()
        for block in _in_blocks(parts):
            there, features = self._features(block)
            if there:
                running.add(features)
        if running.clips < 2 and len(parts) < len(self._parts):
            return self._everyone
        return running.found() if running.clips else self._stored

    def _features(self, parts: Sequence[Part]) -> tuple[list[Part], Tensor]:
        """Those of the clips that have features, and these (B, L, D), not standardised."""
        found = [
            (part, values) for part in parts if isinstance(values := self._kept.values(part), np.ndarray)
        ]
        rows = [torch.from_numpy(values.copy()).reshape(self._size) for _, values in found]
        features = torch.stack(rows) if rows else torch.zeros(0, *self._size)
        return [part for part, _ in found], features.to(self._device)


def _in_blocks(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    return (parts[start : start + _BLOCK] for start in range(0, len(parts), _BLOCK))
