"""What a configured method learns from, read off the fused artifact and the clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mifuse_cli.artifacts import Fused
from mifuse_cli.manifest import Clip
from mifuse_cli.methods import registry
from mifuse_cli.methods.loop import Method
from mifuse_cli.model.shape import Shape
from mifuse_cli.steps.train.config import TrainConfig


def make(
    config: TrainConfig,
    fused: Fused | None,
    clips: Sequence[Clip],
    features: Callable[[], np.ndarray],
    truth: np.ndarray | None,
    shape: Shape,
) -> Method:
    """The method called ``config.method``.

    Args:
        config: names it and its weights.
        fused: what the teachers said, None for methods that hear no audio-language model.
        clips: U clips to adapt to.
        features: gives the encoder's hidden states (U, L, D) of the clips as they are, when called.
        truth: (U,) class indices for the oracle, None for all others.
        shape: of the source model.
    """
    options = registry.Options(
        epochs=config.epochs,
        refresh=config.refresh,
        diversity_weight=config.diversity_weight,
        diversity_prior=config.diversity_prior,
        seed=config.seed,
    )
    by_speaker = fused is not None and fused.header.parameters["source_normalize"] == "speaker"
    target = registry.Target(
        classes=len(shape.classes),
        features=features,
        head_layers=shape.layers,
        speakers=[clip.speaker or "" for clip in clips] if by_speaker else None,
        truth=truth,
    )
    said = None if fused is None else teachers(fused)
    return registry.make(config.method, config.recipe, options, said, target)


def teachers(fused: Fused) -> registry.Teachers:
    """What the artifact says of its teachers."""
    how = fused.header.parameters
    return registry.Teachers(
        probs=fused.probs,
        mean=fused.mean,
        mi=fused.mi,
        weighting=how["weighting"],
        tau=how["tau"],
        pool=how["pool"],
        sharpen=how.get("sharpen", 1.0),
        estimator=how["mi_estimator"],
        passes=how["source_samples"],
    )
