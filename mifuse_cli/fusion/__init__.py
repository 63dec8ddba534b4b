"""Uncertainty of teachers and fusion of their distributions; numpy and scipy only.

Axes: U clips, N samples, T teachers, K classes. Entropies and mutual information are in nats. A sample that
is missing is a row of NaN; a teacher without a valid sample has a NaN mean, a NaN mutual information and
weight 0. Where there is a classifier among the teachers, it is the last one.
"""

from __future__ import annotations

import warnings

import numpy as np

from mifuse_cli.fusion.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    agreement_with,
    fit_temperature,
    self_agreement,
    with_temperature,
)
from mifuse_cli.fusion.dawid_skene import LEAST_TEACHERS, dawid_skene
from mifuse_cli.fusion.diagnostics import confidence, disagreement, label_agreement
from mifuse_cli.fusion.estimators import (
    MI_ESTIMATORS,
    are_votes,
    entropy,
    js_divergence,
    mean_and_mi,
    share_identical,
)
from mifuse_cli.fusion.pools import POOLS, pool_of, sharpened
from mifuse_cli.fusion.weightings import OF_MI, OF_RAW_MI, WEIGHTINGS, Weighting, top_labels

__all__ = [
    "HIGHEST_TEMPERATURE",
    "LEAST_TEACHERS",
    "LOWEST_TEMPERATURE",
    "MI_ESTIMATORS",
    "OF_MI",
    "OF_RAW_MI",
    "POOLS",
    "WEIGHTINGS",
    "Weighting",
    "agreement_with",
    "are_votes",
    "confidence",
    "dawid_skene",
    "disagreement",
    "entropy",
    "fit_temperature",
    "fuse",
    "js_divergence",
    "label_agreement",
    "mean_and_mi",
    "self_agreement",
    "share_identical",
    "sharpened",
    "with_temperature",
]


def fuse(
    mean: np.ndarray,
    mi: np.ndarray,
    *,
    weighting: str = "mi",
    tau: float = 0.1,
    pool: str = "linear",
    sharpen: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and fused distributions of clips with at least one teacher that answered.

    ``dawid-skene`` pools by itself: its distribution is the posterior of `dawid_skene` whatever ``pool`` is,
    and its weights are only told.

    Args:
        mean: (U, T, K) mean distributions, NaN where a teacher is silent.
        mi: (U, T) mutual information, NaN where a teacher is silent.
        weighting: a key of `WEIGHTINGS`.
        tau: temperature of ``mi`` and ``exp-entropy``, in nats.
        pool: one of `POOLS`.
        sharpen: temperature of what comes out, see `sharpened`.

    Returns:
        weights (U, T) and probs (U, K); rows of both sum to 1.

    Raises:
        ValueError: a clip without any teacher, or ``dawid-skene`` with fewer than three teachers.
    """
    silent = np.isnan(mi)
    if silent.all(axis=1).any():
        raise ValueError("every clip needs at least one teacher with a valid distribution")
    with warnings.catch_warnings():
        # A teacher that is silent everywhere has no mean MI, a clip no JS: numpy says so, and weight 0 follows.
        warnings.simplefilter("ignore", RuntimeWarning)
        weights = np.where(silent, 0.0, WEIGHTINGS[weighting](mean, mi, tau))
    weights = weights / weights.sum(axis=1, keepdims=True)
    if weighting == "dawid-skene":
        probs, _ = dawid_skene(top_labels(mean, mi), mean.shape[-1])
    else:
        probs = pool_of(pool)(weights, np.where(silent[..., None], 1 / mean.shape[-1], mean))
    return weights, sharpened(probs, sharpen)
