"""Accuracy over all clips, estimated from some that were drawn with known, unequal probabilities.

Every clip stands for 1 / inclusion probability clips (Hajek, 1971: the ratio of two Horvitz-Thompson sums). WA is a
ratio of such sums, UA the mean of one ratio a class; both are unbiased but for a term of order 1/n.

Axes: U clips, K classes.
"""

from __future__ import annotations

import numpy as np

from mifuse_cli.evaluation.bootstrap import interval
from mifuse_cli.evaluation.decisions import predicted_classes
from mifuse_cli.evaluation.tallies import unweighted_accuracy

_CHUNK = 200
"""Bootstrap draws at a time."""


def estimated_accuracy(
    truth: np.ndarray, probs: np.ndarray, inclusion: np.ndarray, *, resamples: int, rng: np.random.Generator
) -> dict[str, float]:
    """``wa`` and ``ua`` over all clips, with ``_low`` and ``_high`` of their 95 % bootstrap intervals over clips.

    Args:
        truth: (U,) true class indices of the clips that were drawn.
        probs: (U, K) their distributions; a row of NaN counts as wrong.
        inclusion: (U,) probability with which each was drawn, above 0, or proportional to it.
        resamples: number of bootstrap draws.
        rng: of the draws.
    """
    classes, clips = probs.shape[1], len(truth)
    right = predicted_classes(probs) == truth
    support = np.eye(classes)[truth] / inclusion[:, None]
    hits = support * right[:, None]

    def both(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """WA and UA (B,) where clips are drawn so often (B, U)."""
        of_class, hit = times @ support, times @ hits
        ratio = np.where(of_class > 0, hit / np.where(of_class > 0, of_class, 1), 0.0)
        return hit.sum(axis=1) / of_class.sum(axis=1), unweighted_accuracy(ratio, of_class > 0)

    (wa,), (ua,) = both(np.ones((1, clips)))
    found = {"wa": float(wa), "ua": float(ua)}
    parts = []
    for first in range(0, resamples, _CHUNK):
        draws = min(_CHUNK, resamples - first)
        parts.append(both(rng.multinomial(clips, np.full(clips, 1 / clips), size=draws).astype(float)))
    for name, drawn in zip(("wa", "ua"), zip(*parts, strict=True), strict=True):
        found[f"{name}_low"], found[f"{name}_high"] = interval(np.concatenate(drawn))
    return found
