"""What to expect of fused labels before anything is trained, without a label.

U clips, T teachers, K classes. A teacher's recall of a class is estimated as the share, among the clips that the fused
labels call so, of those that the teacher calls so as well; its unweighted accuracy (UA) is the mean. Labels follow the
classifier, so that its estimate is too high; on our corpora, estimates are off by about 5 points.

The labels' own UA cannot be estimated in this way. It goes with the recall of the LALMs in the classes that they know
least: a class that they hardly ever name is one that nothing names. No argument of this module carries a true label,
and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 0.02
"""Recalls are taken to be at least this, so that one class does not settle a geometric mean."""
_OFFSET, _SLOPE = 0.49, 0.58
"""UA of labels by the geometric mean of the LALMs' recalls, both as (x - 1/K) / (1 - 1/K): a line through 70 transfers
between three corpora, whole or sampled in other ways, see docs/experiments.md."""
ERROR = 0.08
"""Mean absolute error of the estimated UA of labels, see docs/experiments.md."""
_CHANCE = 0.1
"""Correlation with the LALMs, and (UA - 1/K) / (1 - 1/K) of twice this, below which a classifier is at chance."""
_UNNAMED = 0.05
_SOFTEST = 4.0


@dataclass(frozen=True)
class Forecast:
    """Estimates and what to beware of.

    Attributes:
        recall: (T, K) estimated recall of every teacher and class; NaN without clips or answers.
        teachers: (T,) estimated UA.
        labels: estimated UA of the fused labels, NaN without a LALM that is better than chance.
        at_chance: teachers, by position, that seem no better than chance.
        unnamed: classes, by position, that the LALMs name on fewer than 5 % of the clips that the labels call so.
    """

    recall: np.ndarray
    teachers: np.ndarray
    labels: float
    at_chance: tuple[int, ...]
    unnamed: tuple[int, ...]


def forecast(
    mean: np.ndarray, labels: np.ndarray, correlation: float, left_out: Sequence[int] = ()
) -> Forecast:
    """Forecast from the teachers' means and the labels.

    Args:
        mean: (U, T, K) mean distributions, NaN where silent; the classifier is the last teacher.
        labels: (U, K) fused labels.
        correlation: of classifier and LALMs, of `TwoTeachers.correlation`; NaN if one is left out.
        left_out: teachers, by position, that the labels were made without.
    """
    teachers, classes = mean.shape[1], mean.shape[2]
    recall = np.stack([_recall(mean[:, t], labels) for t in range(teachers)])
    recall[list(left_out)] = np.nan
    accuracy = np.array(
        [float(np.nanmean(row)) if np.isfinite(row).any() else float("nan") for row in recall]
    )
    above = (accuracy - 1 / classes) / (1 - 1 / classes)
    heard = [t for t in range(teachers - 1) if np.isfinite(recall[t]).all()]
    at_chance = [t for t in range(teachers - 1) if above[t] < _CHANCE]
    if correlation < _CHANCE and above[-1] < 2 * _CHANCE:
        at_chance.append(teachers - 1)
    if not set(heard) - set(at_chance):
        return Forecast(recall, accuracy, float("nan"), tuple(at_chance), ())
    together = recall[heard].mean(axis=0)
    known = float(np.exp(np.log(np.maximum(together, _LEAST)).mean()))
    expected = _OFFSET + _SLOPE * (known - 1 / classes) / (1 - 1 / classes)
    estimate = 1 / classes + (1 - 1 / classes) * min(max(expected, 0.0), 1.0)
    return Forecast(
        recall, accuracy, estimate, tuple(at_chance), tuple(map(int, np.flatnonzero(together < _UNNAMED)))
    )


def softness_of(labels: np.ndarray, accuracy: float) -> float:
    """Temperature T, 1 or more, at which the mean confidence of p^(1/T) is an expected accuracy.

    Labels of a mixture are too sure, since it takes for independent what is not; those that are expected to be right on
    three of four clips should be so sure.

    Args:
        labels: (U, K).
        accuracy: in [0, 1]; NaN: not known, T is 1.
    """
    # Not above: SciPy, which the command line does without, takes a while to load.
    from scipy.optimize import brentq
    from scipy.special import softmax

    logs = np.log(np.maximum(labels, 1e-300))

    def confidence(log_temperature: float) -> float:
        return float(softmax(logs / np.exp(log_temperature), axis=1).max(axis=1).mean())

    if not confidence(0.0) > accuracy:
        return 1.0
    if confidence(_SOFTEST) > accuracy:
        return float(np.exp(_SOFTEST))
    return float(
        np.exp(brentq(lambda log_temperature: confidence(log_temperature) - accuracy, 0.0, _SOFTEST))
    )


def _recall(mean: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimated recall (K,) of one teacher (U, K) under the labels (U, K); NaN if it never answered."""
    told = ~np.isnan(mean).any(axis=1)
    if not told.any():
        return np.full(labels.shape[1], np.nan)
    named = np.eye(labels.shape[1])[mean[told].argmax(axis=1)]
    counts = labels[told].sum(axis=0)
    return (labels[told] * named).sum(axis=0) / np.maximum(counts, 1e-12)
