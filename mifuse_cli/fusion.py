"""Uncertainty of teachers and fusion of their distributions; numpy only.

Axes: U clips, N samples, T teachers, K classes. Entropies and mutual information are in nats. A sample that
is missing is a row of NaN; a teacher without a valid sample has a NaN mean, a NaN mutual information and
weight 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

LOG_POOL_FLOOR = 1e-3
INVERSE_MI_FLOOR = 1e-3
RANK_TEMPERATURE = 0.3
MI_ESTIMATORS = ("scaled", "plugin")
POOLS = ("linear", "log")


def entropy(probs: np.ndarray) -> np.ndarray:
    """H(p) = -sum_k p_k log p_k along the last axis, in nats, with 0 log 0 = 0."""
    logs = np.log(np.where(probs > 0, probs, 1.0))
    return -(probs * logs).sum(axis=-1)


def mean_and_mi(samples: np.ndarray, estimator: str = "scaled") -> tuple[np.ndarray, np.ndarray]:
    """Mean distribution and mutual information I = H(mean p) - mean H(p) of every clip.

    The plug-in estimate from n samples is low by a factor of about (n-1)/n, because the mean follows the
    samples; ``scaled`` multiplies by n/(n-1) (n counted per clip), so that teachers with different numbers of
    samples can be compared. One sample says nothing about uncertainty: such a clip gets the mean MI of the
    teacher's other clips (log K if it has none).

    Args:
        samples: (U, N, K) distributions, NaN rows where missing.
        estimator: one of `MI_ESTIMATORS`.

    Returns:
        mean (U, K) and mi (U,), both NaN for clips without a valid sample.
    """
    count = (~np.isnan(samples).any(axis=-1)).sum(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(samples, axis=1)
        mi = np.maximum(entropy(mean) - np.nanmean(entropy(samples), axis=1), 0.0)
    if estimator == "scaled":
        mi = mi * (count / np.maximum(count - 1, 1))
    several = mi[count > 1]
    mi[count == 1] = several.mean() if several.size else np.log(samples.shape[-1])
    return mean, mi


def mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-I / tau): tau in nats; small is sharp (0.1), large is near uniform (1)."""
    lowest = np.nanmin(mi, axis=1, keepdims=True)
    return np.exp(-(mi - lowest) / tau)


def uniform_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """The same for every teacher."""
    return np.ones_like(mi)


def one_minus_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 - I / log K, floored just above 0 since I can reach log K."""
    return np.maximum(1 - mi / np.log(mean.shape[-1]), 1e-6)


def inverse_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 / (I + 0.001); the floor keeps a deterministic teacher from taking all."""
    return 1 / (mi + INVERSE_MI_FLOOR)


def entropy_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 - H(mean p) / log K: total uncertainty instead of mutual information."""
    return np.maximum(1 - entropy(mean) / np.log(mean.shape[-1]), 1e-6)


def max_confidence_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 for the teacher with the highest probability for any class, 0 for the others."""
    confidence = np.where(np.isnan(mi), -np.inf, mean.max(axis=-1))
    return np.eye(mi.shape[1])[confidence.argmax(axis=1)]


def rank_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-r / 0.3), r in [0, 1] the rank of I within the same teacher's clips: removes the scale of I."""
    return np.exp(-np.stack([_ranks(column) for column in mi.T], axis=1) / RANK_TEMPERATURE)


def z_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-z), z the z-score of I within the same teacher's clips."""
    spread = np.nanstd(mi, axis=0)
    return np.exp(-(mi - np.nanmean(mi, axis=0)) / np.where(spread > 1e-9, spread, 1.0))


Weighting = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""From mean (U, T, K), mi (U, T) and tau to weights (U, T), positive where mi is not NaN, of any sum."""

WEIGHTINGS: dict[str, Weighting] = {
    "mi": mi_weights,
    "uniform": uniform_weights,
    "one-minus-mi": one_minus_mi_weights,
    "inverse-mi": inverse_mi_weights,
    "entropy": entropy_weights,
    "max-confidence": max_confidence_weights,
    "rank-mi": rank_mi_weights,
    "z-mi": z_mi_weights,
}


def fuse(
    mean: np.ndarray, mi: np.ndarray, *, weighting: str = "mi", tau: float = 0.1, pool: str = "linear"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and fused distributions of clips with at least one teacher that answered.

    Linear pool: sum_t w_t p_t. Log pool: proportional to prod_t p_t^w_t, with probabilities floored at 0.001
    so that a single zero is no veto.

    Args:
        mean: (U, T, K) mean distributions, NaN where a teacher is silent.
        mi: (U, T) mutual information, NaN where a teacher is silent.
        weighting: a key of `WEIGHTINGS`.
        tau: temperature of ``mi``, in nats.
        pool: one of `POOLS`.

    Returns:
        weights (U, T) and probs (U, K); rows of both sum to 1.

    Raises:
        ValueError: a clip without any teacher.
    """
    silent = np.isnan(mi)
    if silent.all(axis=1).any():
        raise ValueError("every clip needs at least one teacher with a valid distribution")
    weights = np.where(silent, 0.0, WEIGHTINGS[weighting](mean, mi, tau))
    weights = weights / weights.sum(axis=1, keepdims=True)
    known = np.where(silent[..., None], 1 / mean.shape[-1], mean)
    if pool == "linear":
        probs = (weights[..., None] * known).sum(axis=1)
    else:
        logs = (weights[..., None] * np.log(np.maximum(known, LOG_POOL_FLOOR))).sum(axis=1)
        probs = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return weights, probs / probs.sum(axis=-1, keepdims=True)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (U,) scaled to [0, 1], ties sharing their mean rank, NaN kept."""
    ranks = np.full(values.shape, np.nan)
    known = ~np.isnan(values)
    if known.any():
        _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(counts) - (counts + 1) / 2
        ranks[known] = mean_rank[inverse] / max(known.sum() - 1, 1)
    return ranks
