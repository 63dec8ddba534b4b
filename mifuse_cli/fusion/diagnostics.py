"""Statistics of teachers that need no labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mifuse_cli.fusion.estimators import entropy, folded, summed

_ONE_SIDED, _FEWEST = 0.95, 10
"""Share of clips with the same answer that calls for a word, and number of clips from which on it does."""
_EVEN = 0.02
"""Difference of probabilities that is none."""


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


def one_sided(who: str, probs: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """A sentence if distributions (U, K) name one class for nearly all clips, or none more than others; else nothing.

    Args:
        who: whose they are.
        probs: NaN rows where there is none.
        classes: K names in order.
    """
    known = probs[~np.isnan(summed(probs, -1))]
    if len(known) < _FEWEST:
        return ()
    spread = folded(np.maximum, known, -1) - folded(np.minimum, known, -1)
    even = float((spread < _EVEN).mean())
    if even >= _ONE_SIDED:
        return (
            f"{who}: gives all classes the same probability on {even:.0%} of {len(known)} clips, and so says nothing",
        )
    counts = np.bincount(known.argmax(axis=-1), minlength=len(classes))
    share = counts.max() / len(known)
    if share < _ONE_SIDED:
        return ()
    return (
        f"{who}: says {classes[int(counts.argmax())]} of {share:.0%} of {len(known)} clips; unless that is true of "
        "them, it does not tell the classes apart",
    )


def disagreement(mean: np.ndarray) -> float:
    """Mean of `disagreements` in nats over the clips that two teachers answered; NaN without any."""
    found = disagreements(mean)
    shared = ~np.isnan(found)
    return float(found[shared].mean()) if shared.any() else float("nan")


def disagreements(mean: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (U,) of the teachers' means (U, T, K), in nats; NaN where only one answered.

    H(mean_t p_t) - mean_t H(p_t) over the teachers that answered a clip: the mutual information between the
    label and the teacher that gives it; at most log 2 for two teachers.
    """
    valid = ~np.isnan(summed(mean, -1))
    shared = valid.sum(axis=1) > 1
    found = np.full(len(mean), np.nan)
    known, count = np.where(valid[..., None], mean, 0.0)[shared], valid.sum(axis=1)[shared]
    js = entropy(summed(known, 1) / count[:, None]) - summed(entropy(known), 1) / count
    found[shared] = np.maximum(js, 0)
    return found


def _over_clips(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    count = valid.sum(axis=0)
    total = np.where(valid, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
