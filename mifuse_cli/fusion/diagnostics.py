"""Statistics of teachers that need no labels."""

from __future__ import annotations

import numpy as np

from mifuse_cli.fusion.estimators import entropy, folded, summed


def mean_mi(mi: np.ndarray) -> np.ndarray:
    """Mean mutual information (T,) of every teacher over the clips that it answered, of (U, T) in nats."""
    return _over_clips(mi, ~np.isnan(mi))


def confidence(mean: np.ndarray) -> np.ndarray:
    """Mean highest probability (T,) of every teacher's mean (U, T, K) over the clips that it answered."""
    highest = folded(np.maximum, mean, -1)
    return _over_clips(highest, ~np.isnan(highest))


def label_agreement(mean: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Share (T,) of the clips that a teacher answered where its most probable class is that of ``probs``."""
    same = mean.argmax(axis=-1) == probs.argmax(axis=-1)[:, None]
    return _over_clips(same.astype(float), ~np.isnan(summed(mean, -1)))


def disagreement(mean: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence of the teachers' means (U, T, K), in nats; NaN without clips of two.

    H(mean_t p_t) - mean_t H(p_t) over the teachers that answered a clip: the mutual information between the
    label and the teacher that gives it; at most log 2 for two teachers.
    """
    valid = ~np.isnan(summed(mean, -1))
    shared = valid.sum(axis=1) > 1
    if not shared.any():
        return float("nan")
    known, count = np.where(valid[..., None], mean, 0.0)[shared], valid.sum(axis=1)[shared]
    js = entropy(summed(known, 1) / count[:, None]) - summed(entropy(known), 1) / count
    return float(np.maximum(js, 0).mean())


def _over_clips(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    count = valid.sum(axis=0)
    total = np.where(valid, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
