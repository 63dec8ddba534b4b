"""Weights of teachers from their mean distributions and mutual information."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mifuse_cli.fusion.dawid_skene import dawid_skene
from mifuse_cli.fusion.estimators import entropy, folded, js_divergence

INVERSE_MI_FLOOR = 1e-3
RANK_TEMPERATURE = 0.3
MUKI_TEMPERATURE = 0.2
T3_GAMMA = 10.0


def uniform_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """The same for every teacher."""
    return np.ones_like(mi)


def mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-I / tau): tau in nats; small is sharp (0.1), large is near uniform (1)."""
    return np.exp(-(mi - folded(np.fmin, mi, 1)[:, None]) / tau)


def shuffled_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """`mi_weights` after permuting each teacher's mutual information over the clips: a control.

    If it does as well as `mi_weights`, the variation of mutual information between clips carries no
    information, only a teacher's mean level does. The permutation is fixed and the same for all teachers.
    """
    dealt = mi.copy()
    for column in dealt.T:
        known = ~np.isnan(column)
        column[known] = np.random.default_rng(len(mi)).permutation(column[known])
    return mi_weights(mean, dealt, tau)


def one_minus_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 - I / log K, floored just above 0 since I can reach log K."""
    return np.maximum(1 - mi / np.log(mean.shape[-1]), 1e-6)


def inverse_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 / (I + 0.001); the floor keeps a deterministic teacher from taking all."""
    return 1 / (mi + INVERSE_MI_FLOOR)


def rank_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-r / 0.3), r in [0, 1] the rank of I within the same teacher's clips: removes the scale of I."""
    return np.exp(-np.stack([_ranks(column) for column in mi.T], axis=1) / RANK_TEMPERATURE)


def z_mi_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-z), z the z-score of I within the same teacher's clips."""
    spread = np.nanstd(mi, axis=0)
    return np.exp(-(mi - np.nanmean(mi, axis=0)) / np.where(spread > 1e-9, spread, 1.0))


def entropy_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 - H(mean p) / log K: total uncertainty instead of mutual information; rewards overconfidence."""
    return np.maximum(_certainty(mean), 1e-6)


def exp_entropy_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(-H(mean p) / tau), tau in nats."""
    total = entropy(mean)
    return np.exp(-(total - np.nanmin(total, axis=1, keepdims=True)) / tau)


def muki_soft_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """exp(s / 0.2), s = 1 - H(mean p) / log K, as MUKI does (github.com/lancopku/MUKI)."""
    return np.exp(_certainty(mean) / MUKI_TEMPERATURE)


def muki_hard_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 for the teacher of the lowest H(mean p), 0 for the others (ibid.)."""
    return _best(np.where(np.isnan(mi), -np.inf, _certainty(mean)))


def max_confidence_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """1 for the teacher with the highest probability for any class, 0 for the others."""
    return _best(np.where(np.isnan(mi), -np.inf, mean.max(axis=-1)))


def t3_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """The last teacher against the others: weight g for the others together, 1 - g for the last, after T^3
    (arXiv 2510.27265).

    g = sigmoid(10 (JS - median JS)), JS between the last teacher's mean and the mean of the others', the
    median over clips: the more the others contradict the classifier, the lower its weight. T^3 has
    sigmoid(0.5 JS), which JS <= log 2 keeps within 0.50 and 0.59, near uniform whatever the clip; hence the
    centred form. T^3 mixes the parameters of two models, this function mixes their distributions. All
    teachers but the last share g equally; the function is not symmetric in the last teacher.
    """
    others = np.nanmean(mean[:, :-1], axis=1)
    js = js_divergence(others, mean[:, -1])
    share = np.nan_to_num(1 / (1 + np.exp(-T3_GAMMA * (js - np.nanmedian(js)))), nan=0.5)
    number = np.maximum((~np.isnan(mi[:, :-1])).sum(axis=1), 1)
    weights = np.repeat((share / number)[:, None], mi.shape[1], axis=1)
    weights[:, -1] = 1 - share
    return weights


def dawid_skene_weights(mean: np.ndarray, mi: np.ndarray, tau: float) -> np.ndarray:
    """Accuracy of every teacher as estimated by `dawid_skene` from the most probable class of its mean.

    Needs three teachers, and uses hard labels only: probabilities and mutual information have no effect.
    """
    _, accuracy = dawid_skene(top_labels(mean, mi), mean.shape[-1])
    return np.broadcast_to(accuracy, mi.shape)


def top_labels(mean: np.ndarray, mi: np.ndarray) -> np.ndarray:
    """Most probable class (U, T) of every teacher, -1 where it is silent."""
    return np.where(np.isnan(mi), -1, mean.argmax(axis=-1))


Weighting = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""From mean (U, T, K), mi (U, T) and tau to unnormalised weights (U, T), at least one of them positive for
every clip.
"""

WEIGHTINGS: dict[str, Weighting] = {
    "mi": mi_weights,
    "shuffled-mi": shuffled_mi_weights,
    "uniform": uniform_weights,
    "one-minus-mi": one_minus_mi_weights,
    "inverse-mi": inverse_mi_weights,
    "rank-mi": rank_mi_weights,
    "z-mi": z_mi_weights,
    "entropy": entropy_weights,
    "exp-entropy": exp_entropy_weights,
    "muki-soft": muki_soft_weights,
    "muki-hard": muki_hard_weights,
    "max-confidence": max_confidence_weights,
    "t3": t3_weights,
    "dawid-skene": dawid_skene_weights,
}

OF_RAW_MI = ("mi", "shuffled-mi", "one-minus-mi", "inverse-mi")
"""Weightings that compare the mutual information of one teacher with that of another."""
OF_TAU = ("mi", "shuffled-mi", "exp-entropy")
"""Weightings that have a temperature."""
OF_MI = (*OF_RAW_MI, "rank-mi", "z-mi")
"""Weightings that fail if a teacher is deterministic, so that its mutual information is always 0."""


def _certainty(mean: np.ndarray) -> np.ndarray:
    return 1 - entropy(mean) / np.log(mean.shape[-1])


def _best(score: np.ndarray) -> np.ndarray:
    return np.eye(score.shape[1])[score.argmax(axis=1)]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (U,) scaled to [0, 1], ties sharing their mean rank, NaN kept."""
    ranks = np.full(values.shape, np.nan)
    known = ~np.isnan(values)
    if known.any():
        _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(counts) - (counts + 1) / 2
        ranks[known] = mean_rank[inverse] / max(known.sum() - 1, 1)
    return ranks
