"""Every method by its name, made from what it learns from; torch is loaded only when one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mifuse_cli.methods.loop import Method

METHODS = (
    "mifuse",
    "lalm-sfuda",
    "shot",
    "shot-im",
    "shot+lalm",
    "nrc",
    "nrc+lalm",
    "aad",
    "tent",
    "dine",
    "prode",
    "oracle",
)
RECIPES = ("best", "paper")
"""Of ``mifuse``; the first is the default."""
WITHOUT_LALM = ("shot", "shot-im", "nrc", "aad", "tent", "oracle")
"""Methods that hear no audio-language model."""


@dataclass(frozen=True)
class Teachers:
    """What T teachers say of U clips, and how they were fused; the classifier is the last of them.

    Attributes:
        probs: (U, K) fused labels.
        mean: (U, T, K) mean distributions, NaN where silent.
        mi: (U, T) mutual information, NaN where silent.
        weighting, tau, pool, sharpen, estimator: as in `fusion`.
        passes: dropout passes of the classifier.
    """

    probs: np.ndarray
    mean: np.ndarray
    mi: np.ndarray
    weighting: str
    tau: float
    pool: str
    sharpen: float
    estimator: str
    passes: int


@dataclass(frozen=True)
class Target:
    """What there is of the U clips to adapt to.

    Attributes:
        classes: K.
        features: gives the encoder's hidden states (U, L, D) as they are, when called.
        head_layers: positions of those that the classifier's head sees.
        speakers: of every clip if the head's input is standardised by speaker, else None.
        truth: (U,) class indices for the oracle, None for all others.
    """

    classes: int
    features: Callable[[], np.ndarray]
    head_layers: Sequence[int]
    speakers: Sequence[str] | None = None
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Options:
    """What methods can be told.

    Attributes:
        epochs: of the whole run.
        refresh: epochs between two fusions, of the recipe ``paper``.
        diversity_weight: of the diversity term, where there is one.
        diversity_prior: "uniform", or "labels" for the marginal of the labels.
        seed: of what a method draws itself.
        without: parts of the recipe ``best`` to leave out, of `best.PARTS`, for ablations.
    """

    epochs: int
    refresh: int
    diversity_weight: float
    diversity_prior: str
    seed: int
    without: tuple[str, ...] = ()


def make(method: str, recipe: str, options: Options, teachers: Teachers | None, target: Target) -> Method:
    """The method of this name.

    Args:
        method: one of `METHODS`.
        recipe: one of `RECIPES`.
        options: what it is told.
        teachers: what it learns from; may be None for those of `WITHOUT_LALM`.
        target: the clips.
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

    name, _, helped = method.partition("+")
    weight = options.diversity_weight
    if name == "mifuse":
        assert teachers is not None
        if recipe == "best":
            return _best(options, teachers, target)
        return _paper(options, teachers)
    if name == "lalm-sfuda":
        return LalmLabels(_answers(teachers), weight, options.diversity_prior)
    if name == "dine":
        return Dine(_answers(teachers), epochs=options.epochs)
    if name == "prode":
        return Prode(_answers(teachers))
    if name == "oracle":
        assert target.truth is not None
        return Oracle(torch.from_numpy(target.truth), target.classes)
    own: Method = {
        "shot": lambda: Shot(diversity_weight=weight),
        "shot-im": lambda: Shot(beta=0.0, diversity_weight=weight),
        "nrc": lambda: Nrc(diversity_weight=weight),
        "aad": lambda: Aad(epochs=options.epochs),
        "tent": Tent,
    }[name]()
    if helped:
        return WithLalm(own, labels=torch.from_numpy(_answers(teachers).astype(np.float32)))
    return own


def _answers(teachers: Teachers | None) -> np.ndarray:
    """Mean answers (U, K) of the audio-language models, NaN rows where there is none."""
    from mifuse_cli.methods.lalm_sfuda import fused_answers

    assert teachers is not None
    return fused_answers(
        teachers.mean, teachers.mi, weighting=teachers.weighting, tau=teachers.tau, pool=teachers.pool
    )


def _best(options: Options, teachers: Teachers, target: Target) -> Method:
    from mifuse_cli.methods.best import Best

    return Best(
        _answers(teachers),
        target.features(),
        head_layers=target.head_layers,
        speakers=target.speakers,
        passes=teachers.passes,
        seed=options.seed,
        diversity_weight=options.diversity_weight,
        diversity_prior=options.diversity_prior,
        without=options.without,
    )


def _paper(options: Options, teachers: Teachers) -> Method:
    from mifuse_cli.methods.mifuse import FusedLabels, FusedOptions

    how = FusedOptions(
        weighting=teachers.weighting,
        tau=teachers.tau,
        pool=teachers.pool,
        sharpen=teachers.sharpen,
        estimator=teachers.estimator,
        passes=teachers.passes,
        refresh=options.refresh,
        diversity_weight=options.diversity_weight,
        diversity_prior=options.diversity_prior,
        seed=options.seed,
    )
    return FusedLabels(teachers.probs, teachers.mean, teachers.mi, how)
