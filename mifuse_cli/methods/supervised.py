"""Supervised training of the source classifier: class-weighted cross-entropy with label smoothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mifuse_cli.methods import loop
from mifuse_cli.methods.losses import soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms


class Supervised(loop.Method):
    """Cross-entropy to smoothed labels, every class with the same total weight.

    Args:
        labels: (U,) class indices.
        classes: K.
        smoothing: share of a label that is spread evenly over all classes.
        counted: (U,) bool, the clips that the class weights come from; None for all.
    """

    terms = ("cross_entropy",)

    def __init__(self, labels: Tensor, classes: int, smoothing: float, counted: Tensor | None = None) -> None:
        super().__init__()
        known = labels if counted is None else labels[counted]
        counts = torch.bincount(known, minlength=classes).clamp_min(1).float()
        self.weights = (len(known) / (classes * counts))[labels]
        self.smoothed = (1 - smoothing) * nn.functional.one_hot(labels, classes).float() + smoothing / classes

    def loss(self, batch: loop.Batch) -> dict[str, Tensor]:
        """Weighted cross-entropy of the batch."""
        targets, weights = (every[batch.index].to(batch.logits) for every in (self.smoothed, self.weights))
        return {"cross_entropy": soft_cross_entropy(batch.logits, targets, weights)}


@dataclass(frozen=True)
class Validated:
    """Result of a training with validation on held-out clips.

    Attributes:
        epoch: the one with the lowest cross-entropy there.
        logits: (V, K) of the held-out clips after it.
        history: (E, 3) training loss, held-out cross-entropy, held-out unweighted accuracy.
    """

    epoch: int
    logits: np.ndarray
    history: np.ndarray


def choose_epoch(
    model: Classifier,
    inputs: Features | Waveforms,
    labels: Tensor,
    held_out: np.ndarray,
    smoothing: float,
    options: loop.LoopOptions,
    *,
    accuracy: Callable[[np.ndarray, np.ndarray], float],
    after_epoch: Callable[[loop.State], None],
) -> Validated:
    """Train ``model`` without the held-out clips and find the epoch at which to stop.

    Args:
        model: trained in place.
        inputs: U clips.
        labels: (U,) class indices.
        held_out: (U,) bool.
        smoothing: label smoothing.
        options: of the loop.
        accuracy: unweighted accuracy of true (V,) and predicted (V,) class indices.
        after_epoch: called after every epoch.
    """
    validation = torch.from_numpy(np.flatnonzero(held_out))
    truth = labels[validation]
    rows: list[list[float]] = []
    best: list[np.ndarray] = []

    def validate(state: loop.State) -> None:
        with torch.no_grad():
            logits = torch.cat([model(inputs, part) for part in validation.split(64)]).cpu()
        loss = float(nn.functional.cross_entropy(logits, truth))
        rows.append([*state.history[-1], loss, accuracy(truth.numpy(), logits.argmax(dim=-1).numpy())])
        if rows[-1][1] <= min(row[1] for row in rows):
            best[:] = [logits.numpy()]
        after_epoch(state)

    classes = model.head.out.out_features
    training = np.flatnonzero(~held_out)
    method = Supervised(labels, classes, smoothing, counted=torch.from_numpy(~held_out))
    loop.run(
        loop.start(model, method, options), inputs, method, options, index=training, after_epoch=validate
    )
    losses = [row[1] for row in rows]
    return Validated(len(losses) - int(np.argmin(losses[::-1])), best[0], np.array(rows))
