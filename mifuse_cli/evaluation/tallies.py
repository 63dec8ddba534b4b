"""Counts of one transfer, and the metrics of many systems that follow from them however often a clip is drawn.

R systems, N seeds of each, U clips, S units, K classes, I bins of confidence, B bootstrap draws. A unit is what is
drawn as a whole: a speaker, or a clip where speakers are not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mifuse_cli.evaluation.decisions import DECISIONS, predicted_classes, prior_corrected_classes

ECE_BINS = 15
METRICS = {
    "ua": f"UA, {DECISIONS[0]}",
    "ua_prior_corrected": f"UA, {DECISIONS[1]}",
    "wa": "WA",
    "macro_f1": "macro F1",
    "ece": "ECE",
}
"""Titles of the metrics of a `Tally`."""


def best_of(metric: str, values: Mapping[str, float]) -> str:
    """Name of the best value of a metric: the highest, but the lowest expected calibration error (ECE)."""
    sign = -1 if metric == "ece" else 1
    return max(values, key=lambda name: sign * values[name])


def unweighted_accuracy(hits: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur, in [0, 1].

    Args:
        hits: (..., K) clips of every class that are predicted rightly.
        support: (..., K) clips of every class.

    Returns:
        (...), NaN where no class occurs.
    """
    return _over_classes(hits, support, support)


@dataclass(frozen=True)
class Tally:
    """Counts in one transfer by unit, which all metrics follow from.

    Attributes:
        corpus: the target corpus; transfers to the same corpus share their bootstrap draws.
        units: S names of speakers, or of clips where speakers are not known.
        support: (S, K) number of clips.
        hits: (S, R, N, K) those of them that are predicted correctly by argmax p.
        corrected: (S, R, N, K) those that are predicted correctly by argmax p/prior.
        given: (S, R, N, K) clips that argmax p says are of a class.
        gaps: (S, R, N, I) sum over the clips in a bin of confidence: 1 if correct, less the confidence.
        answered: (S, R, N, 1) clips with a prediction.
    """

    corpus: str
    units: tuple[str, ...]
    support: np.ndarray
    hits: np.ndarray
    corrected: np.ndarray
    given: np.ndarray
    gaps: np.ndarray
    answered: np.ndarray

    def metric(self, name: str, times: np.ndarray | None = None) -> np.ndarray:
        """One of `METRICS`, in [0, 1].

        Classes without clips in a draw are left out of its means. NaN where there is no clip, or for the ECE no
        prediction.

        Args:
            name: of the metric.
            times: (B, S) how often every unit is drawn; None: each once.

        Returns:
            (R, N, B), or (R, N) without ``times``.
        """
        if times is None:
            return self.metric(name, np.ones((1, len(self.support))))[..., 0]
        support = times @ self.support
        match name:
            case "ua":
                return unweighted_accuracy(_drawn(self.hits, times), support)
            case "ua_prior_corrected":
                return unweighted_accuracy(_drawn(self.corrected, times), support)
            case "wa":
                return _ratio(_drawn(self.hits, times).sum(axis=-1), support.sum(axis=-1))
            case "macro_f1":
                given = _drawn(self.given, times)
                return _over_classes(2 * _drawn(self.hits, times), support + given, support)
            case "ece":
                gaps = np.abs(_drawn(self.gaps, times)).sum(axis=-1)
                return _ratio(gaps, _drawn(self.answered, times)[..., 0])
        raise KeyError(name)


def _drawn(counts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Sums (R, N, B, ...) of counts (S, R, N, ...) over units, each as often as drawn (B, S)."""
    return np.moveaxis(np.tensordot(times, counts, axes=1), 0, 2)


def _over_classes(part: np.ndarray, whole: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Mean (...) of part / whole (..., K) over the classes with support (..., K), NaN without any."""
    rates = np.where(support > 0, part / np.maximum(whole, 1), 0.0)
    return _ratio(rates.sum(axis=-1), (support > 0).sum(axis=-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def tally(
    corpus: str,
    truth: np.ndarray,
    probs: np.ndarray,
    units: Sequence[str] | None,
    *,
    prior: np.ndarray | None = None,
) -> Tally:
    """Count by unit what the metrics need.

    Args:
        corpus: name of the target.
        truth: (U,) true class indices.
        probs: (R, N, U, K) predicted distributions; NaN rows where there is none, which count as wrong.
        units: speaker of every clip, or its id where speakers are not known; None counts every clip as a unit.
        prior: (K,) class prior, or (R, N, K), of the prior-corrected decision; None: the mean of ``probs``.
    """
    clips, classes = probs.shape[2:]
    names, group = np.unique(np.arange(clips) if units is None else units, return_inverse=True)
    probs = probs.astype(float)
    predicted = predicted_classes(probs)
    right = predicted == truth
    confidence = np.where(predicted < classes, probs.max(axis=-1), 0.0)
    # Without a prediction a clip is in no bin: it gets the number behind the last.
    bins = np.where(
        predicted < classes, np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1), ECE_BINS
    )

    def by_unit(place: np.ndarray, size: int, value: np.ndarray | float) -> np.ndarray:
        """Sums (S, R, N, size) of values (R, N, U) at places (R, N, U) from 0 to size."""
        systems, seeds = np.arange(len(probs))[:, None, None], np.arange(probs.shape[1])[:, None]
        sums = np.zeros((len(names), *probs.shape[:2], size + 1))
        np.add.at(sums, (group, systems, seeds, place), value)
        return sums[..., :size]

    support = np.zeros((len(names), classes))
    np.add.at(support, (group, truth), 1)
    of_truth = np.broadcast_to(truth, predicted.shape)
    return Tally(
        corpus,
        tuple(map(str, names)),
        support,
        hits=by_unit(of_truth, classes, right),
        corrected=by_unit(of_truth, classes, prior_corrected_classes(probs, prior) == truth),
        given=by_unit(predicted, classes, 1),
        gaps=by_unit(bins, ECE_BINS, right - confidence),
        answered=by_unit(np.where(predicted < classes, 0, 1), 1, 1),
    )
