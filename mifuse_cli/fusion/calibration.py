"""Temperature of a teacher that gives probabilities but no logits, fitted without labels.

The mean confidence of a calibrated teacher equals its accuracy. Without labels the accuracy is unknown, but
the rate at which two of its answers about a clip agree estimates it if the teacher is calibrated (Jiang et
al., ICLR 2022).
"""

from __future__ import annotations

import numpy as np

from mifuse_cli.fusion.estimators import are_votes, is_dead, share_identical

CALIBRATIONS = ("none", "self-agreement", "source-agreement")
"""Ways to estimate the accuracy of a teacher's answers without labels."""
PROBABILITY_FLOOR = 1e-3
"""Added to stated probabilities before the logarithm: answers contain exact zeros and are rarely resolved
below 0.01.
"""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Temperatures that a fit may give."""


def label_free_temperature(samples: np.ndarray, believed: np.ndarray, calibration: str) -> float | None:
    """The label-free temperature for the answers (U, N, K) of a teacher.

    Args:
        samples: NaN rows where missing.
        believed: (U,) most probable classes of the source classifier.
        calibration: one of `CALIBRATIONS`.

    Returns:
        None if the answers are not rescaled: without calibration, for votes (single labels), which have
            no probabilities, and for a deterministic teacher, which agrees with itself trivially.

    Raises:
        ValueError: calibration by self-agreement, and no clip has two answers that could agree.
    """
    if calibration == "none" or are_votes(samples):
        return None
    if calibration == "source-agreement":
        return temperature_for(samples, agreement_with(samples, believed))
    if is_dead(share_identical(samples)):
        return None
    return temperature_for(samples, self_agreement(samples))


def with_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(z / T) with the softmax inverted: z = log(p + 0.001).

    A softmax over p itself would distort it (arXiv 2410.06707).

    Args:
        probs: (..., K) distributions; NaN is kept.
        temperature: T; below 1 sharpens, above 1 flattens.
    """
    logits = np.log(probs + PROBABILITY_FLOOR) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def self_agreement(samples: np.ndarray) -> float:
    """Share of pairs of answers about the same clip that have the same most probable class, averaged over
    clips.

    Args:
        samples: (U, N, K) distributions, NaN rows where missing.

    Returns:
        Mean over clips with two valid samples or more; NaN without any.
    """
    valid = ~np.isnan(samples).any(axis=-1)
    several = valid.sum(axis=1) > 1
    if not several.any():
        return float("nan")
    votes = _top(samples[several]) * valid[several][..., None]
    count = valid[several].sum(axis=1)
    same = (votes.sum(axis=1) ** 2).sum(axis=-1) - count
    return float((same / (count * (count - 1))).mean())


def agreement_with(samples: np.ndarray, labels: np.ndarray) -> float:
    """Share of answers (U, N, K) whose most probable class is the clip's in ``labels`` (U,)."""
    valid = ~np.isnan(samples).any(axis=-1)
    hits = np.take_along_axis(_top(samples), labels[:, None, None], axis=-1)[..., 0]
    return float(hits[valid].mean()) if valid.any() else float("nan")


def temperature_for(samples: np.ndarray, rate: float) -> float:
    """Temperature at which the mean highest probability of an answer is ``rate``.

    Args:
        samples: (U, N, K) distributions, NaN rows where missing.
        rate: estimated accuracy of the answers, from `self_agreement` or `agreement_with`.

    Returns:
        T in [0.05, 20]; the nearest bound if the rate cannot be reached.

    Raises:
        ValueError: the rate is NaN, or there is no valid answer.
    """
    answers = samples[~np.isnan(samples).any(axis=-1)]
    if np.isnan(rate) or not answers.size:
        raise ValueError("expected valid answers and a rate")
    low, high = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    while high - low > 1e-6:
        middle = (low + high) / 2
        surer = with_temperature(answers, np.exp(middle)).max(axis=-1).mean() > rate
        low, high = (middle, high) if surer else (low, middle)
    return float(np.exp((low + high) / 2))


def _top(samples: np.ndarray) -> np.ndarray:
    """One-hot of the most probable class; NaN rows are those of class 0."""
    return np.eye(samples.shape[-1])[np.nan_to_num(samples).argmax(axis=-1)]
