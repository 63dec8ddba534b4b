"""Temperature of a teacher that gives probabilities but no logits, fitted without labels.

A calibrated teacher is right as often as it is sure. How often it is right is not known; how often two of its
answers about a clip agree is, and estimates it where the teacher is calibrated (Jiang et al., ICLR 2022).
"""

from __future__ import annotations

import numpy as np

from mifuse_cli.fusion.estimators import are_votes, is_dead, share_identical

CALIBRATIONS = ("none", "self-agreement", "source-agreement")
"""What the rate at which answers are taken to be right comes from."""
PROBABILITY_FLOOR = 1e-3
"""Added to stated probabilities before the logarithm: answers hold exact zeros, and few steps below 0.01."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Temperatures that a fit may give."""


def label_free_temperature(samples: np.ndarray, believed: np.ndarray, calibration: str) -> float | None:
    """Temperature that the answers (U, N, K) of a teacher get.

    Args:
        samples: NaN rows where missing.
        believed: (U,) classes that the classifier believes in.
        calibration: one of `CALIBRATIONS`.

    Returns:
        None where the answers stay as they are: without calibration, for votes, which have no probabilities, and
        for a teacher that agrees with itself because it is not random.

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
    """Share of pairs of answers about the same clip with the same most probable class, every clip alike.

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
        rate: how often the answers are taken to be right, as `self_agreement` or `agreement_with` tell.

    Returns:
        T within 0.05 and 20; a bound if even it does not get there.

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
