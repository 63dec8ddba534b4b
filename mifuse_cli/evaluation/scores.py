"""Scores of predictions against true labels; pure functions over arrays.

Axes: U clips, K classes, S speakers. A clip without a prediction (NaN row) counts as wrong in every score
that counts clips and is left out of those that need probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mifuse_cli.evaluation.bootstrap import bootstrap_metrics, interval
from mifuse_cli.evaluation.decisions import predicted_classes, prior_corrected_classes
from mifuse_cli.evaluation.tallies import ECE_BINS, tally, unweighted_accuracy

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """What `score` found; all rates are in [0, 1].

    Attributes:
        ua: unweighted accuracy, the mean of the recalls of the classes that occur, of the most probable class,
            argmax p, as are wa, macro_f1, recall and confusion.
        ua_low, ua_high: 95 % bootstrap interval of ua.
        ua_prior_corrected: unweighted accuracy of the class with the largest p / prior, see
            `decisions.prior_corrected_classes`.
        ua_prior_corrected_low, ua_prior_corrected_high: its 95 % interval, over the same draws.
        wa: weighted accuracy, the share of clips that are predicted correctly.
        macro_f1: mean F1 of the classes that occur.
        ece: expected calibration error over 15 equal bins of confidence.
        recall: by class; None where the class does not occur.
        marginal: mean predicted probability by class.
        confusion: (K, K + 1) counts, true by predicted class, last column for "no prediction".
        n: clips; missing: clips without a prediction; speakers: number of speakers, 0 if unknown.
        interval: what the interval was resampled over, "speakers" or "clips".
    """

    ua: float
    ua_low: float
    ua_high: float
    ua_prior_corrected: float
    ua_prior_corrected_low: float
    ua_prior_corrected_high: float
    wa: float
    macro_f1: float
    ece: float
    recall: tuple[float | None, ...]
    marginal: tuple[float, ...]
    confusion: np.ndarray
    n: int
    missing: int
    speakers: int
    interval: str


def score(
    truth: np.ndarray,
    probs: np.ndarray,
    *,
    speakers: list[str] | None = None,
    prior: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Score:
    """Score predictions.

    The interval is a percentile bootstrap that draws whole speakers where they are known (clips of one
    speaker are not independent), else clips.

    Args:
        truth: (U,) true class indices.
        probs: (U, K) predicted distributions, NaN rows where there is none.
        speakers: name of the speaker of every clip, or None.
        prior: (K,) mean predicted distribution over all clips that were predicted, where those that are scored are
            only a part of them; None: the mean over those that are scored.
        resamples: number of bootstrap draws.
        rng: random generator of the draws.
    """
    classes = probs.shape[1]
    missing = np.isnan(probs).any(axis=1)
    predicted = predicted_classes(probs)
    counts = confusion(truth, predicted, classes)
    support = counts.sum(axis=1)
    both = ("ua", "ua_prior_corrected")
    bounds = dict.fromkeys(both, (float("nan"), float("nan")))
    counted = tally("", truth, probs[None, None], speakers, prior=prior)
    if len(counted.support) > 1:
        draws = bootstrap_metrics([counted], both, resamples=resamples, rng=rng)
        bounds = {name: interval(draws[name][0, 0]) for name in both}
    return Score(
        **rates(truth, probs, prior),
        ua_low=bounds["ua"][0],
        ua_high=bounds["ua"][1],
        ua_prior_corrected_low=bounds["ua_prior_corrected"][0],
        ua_prior_corrected_high=bounds["ua_prior_corrected"][1],
        recall=tuple(float(counts[k, k] / support[k]) if support[k] else None for k in range(classes)),
        marginal=tuple(map(float, probs[~missing].mean(axis=0))) if (~missing).any() else (),
        confusion=counts,
        n=len(truth),
        missing=int(missing.sum()),
        speakers=len(set(speakers)) if speakers else 0,
        interval="speakers" if speakers else "clips",
    )


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Clips (K, K + 1) by true and predicted class.

    Args:
        truth: (U,) true class indices.
        predicted: (U,) predicted ones, K for none.
        classes: K.
    """
    counts = np.zeros((classes, classes + 1), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def rates(truth: np.ndarray, probs: np.ndarray, prior: np.ndarray | None = None) -> dict[str, float]:
    """``ua``, ``ua_prior_corrected``, ``wa``, ``macro_f1`` and ``ece`` as in `Score`, without intervals.

    Args:
        truth: (U,) true class indices.
        probs: (U, K) predicted distributions, NaN rows where there is none.
        prior: as of `score`.
    """
    classes = probs.shape[1]
    known = ~np.isnan(probs).any(axis=1)
    counts = confusion(truth, predicted_classes(probs), classes)
    hits, support, given = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)[:classes]
    there = support > 0
    return {
        "ua": float(unweighted_accuracy(hits, support)),
        "ua_prior_corrected": accuracy(truth, prior_corrected_classes(probs, prior), classes),
        "wa": float(hits.sum() / len(truth)),
        "macro_f1": float((2 * hits[there] / (support + given)[there]).mean()),
        "ece": expected_calibration_error(truth[known], probs[known]),
    }


def accuracy(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Unweighted accuracy in [0, 1] of predicted (U,) class indices, K for none, against true ones (U,)."""
    counts = confusion(truth, predicted, classes)
    return float(unweighted_accuracy(np.diag(counts), counts.sum(axis=1)))


def reliability(
    truth: np.ndarray, probs: np.ndarray, bins: int = ECE_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reliability diagram: confidence and accuracy of predictions by equal-width bins of confidence.

    Args:
        truth: (U,) class indices.
        probs: (U, K) distributions without NaN.
        bins: number of bins I over [0, 1].

    Returns:
        clips, mean confidence and accuracy, (I,) each; the last two NaN in an empty bin.
    """
    confidence = probs.max(axis=1) if len(probs) else np.zeros(0)
    right = probs.argmax(axis=1) == truth if len(probs) else np.zeros(0)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    clips = np.bincount(index, minlength=bins)
    some = np.where(clips > 0, clips, np.nan)
    sure, accuracy = (np.bincount(index, values, bins) / some for values in (confidence, right))
    return clips, sure, accuracy


def expected_calibration_error(truth: np.ndarray, probs: np.ndarray, bins: int = ECE_BINS) -> float:
    """ECE = sum_b |B_b| / U * |accuracy(B_b) - confidence(B_b)| over the bins of `reliability`.

    Args:
        truth: (U,) class indices.
        probs: (U, K) distributions without NaN.
        bins: number of bins over [0, 1].

    Returns:
        NaN without any clip.
    """
    if len(truth) == 0:
        return float("nan")
    clips, sure, accuracy = reliability(truth, probs, bins)
    return float(np.nansum(clips * np.abs(accuracy - sure)) / len(truth))


def signature(**parts: object) -> str:
    """Protocol in one line, ``key:value`` joined by ``|``; lists are joined by ``+``. Printed beside a score."""
    texts = (
        f"{key}:{'+'.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in parts.items()
    )
    return "|".join(("UA", *texts))
