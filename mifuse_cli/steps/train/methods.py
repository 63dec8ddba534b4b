"""The method that a configuration names, with what it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mifuse_cli.artifacts import Fused
from mifuse_cli.methods.loop import Method
from mifuse_cli.model.shape import Shape
from mifuse_cli.steps.train.config import TrainConfig


@dataclass(frozen=True)
class Target:
    """What there is of the clips to adapt to.

    Attributes:
        speakers: of every clip, None where not known.
        features: gives the encoder's hidden states (U, L, D) as they are, when called.
        truth: (U,) class indices for the oracle, None for all others.
    """

    speakers: Sequence[str | None]
    features: Callable[[], np.ndarray]
    truth: np.ndarray | None


def make(config: TrainConfig, fused: Fused | None, target: Target, shape: Shape) -> Method:
    """The method called ``config.method``.

    Args:
        config: names it and its weights.
        fused: what the teachers said, None for methods that hear no audio-language model.
        target: the clips.
        shape: of the source model.
    """
    import torch

    from mifuse_cli.methods.aad import Aad
    from mifuse_cli.methods.dine import Dine
    from mifuse_cli.methods.lalm_sfuda import LalmLabels
    from mifuse_cli.methods.nrc import Nrc
    from mifuse_cli.methods.oracle import Oracle
    from mifuse_cli.methods.prode import Prode
    from mifuse_cli.methods.shot import Shot
    from mifuse_cli.methods.tent import Tent
    from mifuse_cli.methods.with_lalm import WithLalm

    name, _, helped = config.method.partition("+")
    weight = config.diversity_weight
    if name == "mifuse":
        assert fused is not None
        return _best(config, fused, target, shape) if config.recipe == "best" else _mifuse(config, fused)
    if name == "lalm-sfuda":
        return LalmLabels(_answers(fused), config.diversity_weight, config.diversity_prior)
    if name == "dine":
        return Dine(_answers(fused), epochs=config.epochs)
    if name == "prode":
        return Prode(_answers(fused))
    if name == "oracle":
        assert target.truth is not None
        return Oracle(torch.from_numpy(target.truth), len(shape.classes))
    own: Method = {
        "shot": lambda: Shot(diversity_weight=weight),
        "shot-im": lambda: Shot(beta=0.0, diversity_weight=weight),
        "nrc": lambda: Nrc(diversity_weight=weight),
        "aad": lambda: Aad(epochs=config.epochs),
        "tent": Tent,
    }[name]()
    if helped:
        return WithLalm(own, labels=torch.from_numpy(_answers(fused).astype(np.float32)))
    return own


def _answers(fused: Fused | None) -> np.ndarray:
    """Mean answers (U, K) of the audio-language models, NaN rows where there is none."""
    from mifuse_cli.methods.lalm_sfuda import fused_answers

    assert fused is not None
    how = fused.header.parameters
    return fused_answers(fused.mean, fused.mi, weighting=how["weighting"], tau=how["tau"], pool=how["pool"])


def _best(config: TrainConfig, fused: Fused, target: Target, shape: Shape) -> Method:
    from mifuse_cli.methods.best import Best

    how = fused.header.parameters
    known = [name for name in target.speakers if name]
    return Best(
        _answers(fused),
        target.features(),
        head_layers=shape.layers,
        speakers=known if how["source_normalize"] == "speaker" else None,
        passes=how["source_samples"],
        seed=config.seed,
        diversity_weight=config.diversity_weight,
        diversity_prior=config.diversity_prior,
    )


def _mifuse(config: TrainConfig, fused: Fused) -> Method:
    from mifuse_cli.methods.mifuse import FusedLabels, FusedOptions

    how = fused.header.parameters
    options = FusedOptions(
        weighting=how["weighting"],
        tau=how["tau"],
        pool=how["pool"],
        sharpen=how.get("sharpen", 1.0),
        estimator=how["mi_estimator"],
        passes=how["source_samples"],
        refresh=config.refresh,
        diversity_weight=config.diversity_weight,
        diversity_prior=config.diversity_prior,
        seed=config.seed,
    )
    return FusedLabels(fused.probs, fused.mean, fused.mi, options)
