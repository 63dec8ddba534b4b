"""From what teachers answered to one distribution a clip."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mifuse_cli.fusion.calibration import label_free_temperature, with_temperature
from mifuse_cli.fusion.dawid_skene import dawid_skene
from mifuse_cli.fusion.estimators import is_dead, mean_and_mi, share_identical
from mifuse_cli.fusion.pools import pool_of, sharpened
from mifuse_cli.fusion.weightings import OF_MI, WEIGHTINGS, top_labels


@dataclass(frozen=True)
class Settings:
    """How to fuse.

    Attributes:
        weighting: a key of `WEIGHTINGS`.
        tau: temperature of ``mi`` and ``exp-entropy``, in nats.
        pool: one of `POOLS`.
        sharpen: temperature of what comes out.
        estimator: one of `MI_ESTIMATORS`.
        calibrate: one of `CALIBRATIONS`, of all teachers but the last.
        keep_weighting: weigh by mutual information even where a teacher's answers never vary.
    """

    weighting: str = "mi"
    tau: float = 0.1
    pool: str = "linear"
    sharpen: float = 1.0
    estimator: str = "bayes"
    calibrate: str = "none"
    keep_weighting: bool = False


@dataclass(frozen=True)
class Outcome:
    """What `fuse_samples` made of U clips and T teachers.

    Attributes:
        mean: (U, T, K) mean distributions, NaN where silent.
        mi: (U, T) mutual information, NaN where silent.
        weights: (U, T).
        probs: (U, K) fused.
        weighting: the one used: uniform in place of one of mutual information where a teacher is dead.
        temperature: of every teacher, None where it was left as it is.
        identical: share of clips on which a teacher's answers do not vary, of every teacher.
    """

    mean: np.ndarray
    mi: np.ndarray
    weights: np.ndarray
    probs: np.ndarray
    weighting: str
    temperature: tuple[float | None, ...]
    identical: tuple[float, ...]


def fuse_samples(samples: Sequence[np.ndarray], settings: Settings) -> Outcome:
    """Fuse the answers (U, N, K) of T teachers, NaN rows where missing, N of each its own; the classifier is last.

    Raises:
        ValueError: a clip without any answer; ``dawid-skene`` with fewer than three teachers; ``calibrate`` by
            self-agreement and a teacher with one answer a clip.
    """
    identical = tuple(map(share_identical, samples))
    believed = np.nanmean(samples[-1], axis=1).argmax(axis=-1)
    temperature = (*(label_free_temperature(one, believed, settings.calibrate) for one in samples[:-1]), None)
    answers = [
        one if t is None else with_temperature(one, t) for one, t in zip(samples, temperature, strict=True)
    ]
    stats = [mean_and_mi(one, settings.estimator) for one in answers]
    mean, mi = (np.stack(parts, axis=1) for parts in zip(*stats, strict=True))
    weighting = settings.weighting
    if weighting in OF_MI and any(map(is_dead, identical)) and not settings.keep_weighting:
        weighting = "uniform"
    weights, probs = fuse(
        mean, mi, weighting=weighting, tau=settings.tau, pool=settings.pool, sharpen=settings.sharpen
    )
    return Outcome(mean, mi, weights, probs, weighting, temperature, identical)


def fuse(
    mean: np.ndarray,
    mi: np.ndarray,
    *,
    weighting: str = "mi",
    tau: float = 0.1,
    pool: str = "linear",
    sharpen: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and fused distributions of clips with at least one teacher that answered.

    ``dawid-skene`` pools by itself: its distribution is the posterior of `dawid_skene` whatever ``pool`` is,
    and its weights are only told.

    Args:
        mean: (U, T, K) mean distributions, NaN where a teacher is silent.
        mi: (U, T) mutual information, NaN where a teacher is silent.
        weighting: a key of `WEIGHTINGS`.
        tau: temperature of ``mi`` and ``exp-entropy``, in nats.
        pool: one of `POOLS`.
        sharpen: temperature of what comes out, see `sharpened`.

    Returns:
        weights (U, T) and probs (U, K); rows of both sum to 1.

    Raises:
        ValueError: a clip without any teacher, or ``dawid-skene`` with fewer than three teachers.
    """
    silent = np.isnan(mi)
    if silent.all(axis=1).any():
        raise ValueError("every clip needs at least one teacher with a valid distribution")
    with warnings.catch_warnings():
        # A teacher that is silent everywhere has no mean MI, a clip no JS: numpy says so, and weight 0 follows.
        warnings.simplefilter("ignore", RuntimeWarning)
        weights = np.where(silent, 0.0, WEIGHTINGS[weighting](mean, mi, tau))
    weights = weights / weights.sum(axis=1, keepdims=True)
    if weighting == "dawid-skene":
        probs, _ = dawid_skene(top_labels(mean, mi), mean.shape[-1])
    else:
        probs = pool_of(pool)(weights, np.where(silent[..., None], 1 / mean.shape[-1], mean))
    return weights, sharpened(probs, sharpen)
