"""Fusing the samples of all teachers into one distribution for every clip."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli.fusion.calibration import label_free_temperature, with_temperature
from mifuse_cli.fusion.dawid_skene import dawid_skene
from mifuse_cli.fusion.estimators import (
    Samples,
    Summary,
    is_dead,
    mean_and_mi,
    share_identical,
    summarised,
    summed,
)
from mifuse_cli.fusion.forecast import Forecast, forecast, softness_of
from mifuse_cli.fusion.pools import pool_of, sharpened
from mifuse_cli.fusion.settings import CROSS_FIT, FusionSettings
from mifuse_cli.fusion.weightings import OF_MI, WEIGHTINGS, top_labels

if TYPE_CHECKING:
    from mifuse_cli.fusion.cross_fit import CrossFit, Structure

Random = Callable[[str], np.random.Generator]
"""Returns the random generator for one named use of the seed; draws for one use do not affect another's."""


@dataclass(frozen=True)
class Fusion:
    """Fused labels of U clips, and the contribution of each of T teachers; the classifier is the last
    teacher.

    All arrays except those of `cross_fit` are rounded to float32, the type in the artifact of ``mifuse
    fuse``, so that results do not depend on whether they were stored in between.

    Attributes:
        probs: (U, K) fused labels.
        weights: (U, T) weight of every teacher among the teachers, rows sum to 1.
        mean: (U, T, K) mean distributions, NaN where silent.
        mi: (U, T) mutual information in nats, NaN where silent.
        top_counts: (U, T, K) number of samples by most probable class, see `estimators.top_counts`.
        settings: as given, but with uniform weights instead of a weighting by mutual information if the
            answers of a teacher never vary, or there is one a clip.
        temperature: of every teacher, None where it was left as it is.
        identical: share of clips on which a teacher's answers do not vary, of every teacher.
        votes: whether the answers are single labels, of every teacher.
        cross_fit: result of `cross_fit`, None for weightings.
        forecast: what to expect of the labels of `cross_fit`, None for weightings.
        softness: temperature T of the labels of `cross_fit`, p^(1/T), at which they are as sure as they are expected to
            be right.
    """

    probs: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    mi: np.ndarray
    top_counts: np.ndarray
    settings: FusionSettings
    temperature: tuple[float | None, ...]
    identical: tuple[float, ...]
    votes: tuple[bool, ...]
    cross_fit: CrossFit | None = None
    forecast: Forecast | None = None
    softness: float = 1.0


def fuse_samples(
    samples: Sequence[Samples],
    settings: FusionSettings,
    *,
    structure: Structure | None = None,
    gold: np.ndarray | None = None,
    random: Random | None = None,
) -> Fusion:
    """Fuse the answers of T teachers, the classifier the last of them.

    Args:
        samples: (U, N, K) of every teacher, NaN rows where missing; N may differ between teachers. Those that are no
            arrays, but in a file, are read some clips at a time, unless a temperature is fitted.
        settings: how.
        structure: of the clips, needed for ``cross-fit`` alone.
        gold: (U,) true class of a few clips, -1 elsewhere, for ``cross-fit`` alone.
        random: needed for ``cross-fit`` alone.

    Raises:
        ValueError: a clip without any answer; ``cross-fit`` without structure; ``dawid-skene`` with fewer than
            three teachers; ``calibrate_lalm`` by self-agreement and a teacher with one answer a clip.
    """
    if "lalm" in settings.left_out:
        silent = np.float32(np.nan)
        samples = [*(np.broadcast_to(silent, one.shape) for one in samples[:-1]), samples[-1]]
    # As in artifacts, so that it does not matter whether samples were stored in between.
    samples = [np.asarray(one, np.float32) if isinstance(one, np.ndarray) else one for one in samples]
    summaries = [summarised(one) for one in samples]
    identical = tuple(map(share_identical, samples, summaries))
    votes = tuple(one.votes for one in summaries)
    temperature: tuple[float | None, ...] = (None,) * len(samples)
    if settings.calibrate_lalm != "none":
        believed = summaries[-1].total.argmax(axis=-1)
        of_lalms = (label_free_temperature(one[:], believed, settings.calibrate_lalm) for one in samples[:-1])
        temperature = (*of_lalms, None)
    answers = list(samples)
    for t, value in enumerate(temperature):
        if value is not None:
            answers[t] = with_temperature(samples[t][:], value)
            summaries[t] = summarised(answers[t])
    stats = [
        mean_and_mi(one, settings.mi_estimator, summary)
        for one, summary in zip(answers, summaries, strict=True)
    ]
    mean, mi = (np.stack(parts, axis=1) for parts in zip(*stats, strict=True))
    unknown = any(
        is_dead(share) or _is_unknown(share, one, settings)
        for share, one in zip(identical, summaries, strict=True)
    )
    if settings.weighting in OF_MI and unknown and not settings.keep_weighting:
        settings = settings.uniform()
    found, expected, softness = None, None, 1.0
    if settings.is_weighted:
        weights, probs = fuse_means(mean, mi, settings)
    else:
        if structure is None or random is None:
            raise ValueError("cross-fit needs the structure of the clips and a source of random draws")
        # Not above: SciPy, which the command line does without, takes a while to load.
        from mifuse_cli.fusion.cross_fit import cross_fit

        mean, mi = mean.astype(np.float32), mi.astype(np.float32)
        shares, lalm = fuse_answers(mean, mi, settings)
        rng = random("pseudo-speakers")
        found = cross_fit(lalm.astype(float), structure, without=settings.left_out, gold=gold, rng=rng)
        weights = _shares(shares, found.information)
        left_out = _not_judged(settings, len(samples))
        expected = forecast(mean.astype(float), found.labels, found.correlation, left_out)
        if gold is not None and (gold >= 0).any():
            # It is a line through labels that were made without any.
            expected = replace(expected, labels=float("nan"))
        softness = softness_of(found.labels, expected.labels)
        probs = sharpened(found.labels, softness * settings.sharpen)
    return Fusion(
        probs=probs.astype(np.float32, copy=False),
        weights=weights.astype(np.float32, copy=False),
        mean=mean.astype(np.float32, copy=False),
        mi=mi.astype(np.float32, copy=False),
        top_counts=np.stack([one.top_counts for one in summaries], axis=1).astype(np.float32, copy=False),
        settings=settings,
        temperature=temperature,
        identical=identical,
        votes=votes,
        cross_fit=found,
        forecast=expected,
        softness=softness,
    )


def _is_unknown(identical: float, summary: Summary, settings: FusionSettings) -> bool:
    """Whether nothing tells how the answers of a teacher vary: there is one a clip, and no estimate from one vote."""
    estimated = summary.votes and settings.mi_estimator == "bayes"
    return bool(np.isnan(identical)) and bool(summary.count.any()) and not estimated


def _not_judged(settings: FusionSettings, teachers: int) -> list[int]:
    """Teachers, by position, of which the labels tell nothing: those left out, and one that alone makes the labels."""
    if "structure" in settings.left_out and settings.left_out & {"lalm", "source"}:
        return list(range(teachers))
    lalms, source = range(teachers - 1), teachers - 1
    return [
        *(lalms if "lalm" in settings.left_out else ()),
        *([source] if "source" in settings.left_out else ()),
    ]


def _shares(lalm: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Weights (U, T) of the teachers for every clip: their shares of the information about the labels.

    Args:
        lalm: (U, T - 1) shares of the LALMs among themselves, 0 rows where there is no answer.
        information: (2,) of the LALMs together and of the source classifier.
    """
    both = np.column_stack([information[0] * lalm.sum(axis=1), np.full(len(lalm), information[1])])
    # A clip without any teacher that tells something: NaN.
    with np.errstate(invalid="ignore"):
        both = both / both.sum(axis=1, keepdims=True)
    return np.hstack([lalm * both[:, :1], both[:, 1:]])


def fuse_means(mean: np.ndarray, mi: np.ndarray, settings: FusionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Weights and fused distributions of clips with at least one teacher that answered.

    For ``dawid-skene`` the distribution is the posterior of `dawid_skene`, whatever ``pool`` is; its weights
    are only reported.

    Args:
        mean: (U, T, K) mean distributions, NaN where a teacher is silent.
        mi: (U, T) mutual information, NaN where a teacher is silent.
        settings: how to weigh and pool.

    Returns:
        weights (U, T) and probs (U, K); rows of both sum to 1.

    Raises:
        ValueError: a clip without any teacher, or ``dawid-skene`` with fewer than three teachers.
    """
    silent = np.isnan(mi)
    if silent.all(axis=1).any():
        raise ValueError("every clip needs at least one teacher with a valid distribution")
    with warnings.catch_warnings():
        # numpy warns about means over nothing (a teacher or clip without answers); their weight is 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        weights = np.where(silent, 0.0, WEIGHTINGS[settings.weighting](mean, mi, settings.tau))
    weights = weights / summed(weights, 1)[:, None]
    if settings.weighting == "dawid-skene":
        probs, _ = dawid_skene(top_labels(mean, mi), mean.shape[-1])
    else:
        known = np.where(silent[..., None], 1 / mean.shape[-1], mean) if silent.any() else mean
        probs = pool_of(settings.pool)(weights, known)
    return weights, sharpened(probs, settings.sharpen)


def fuse_answers(mean: np.ndarray, mi: np.ndarray, settings: FusionSettings) -> tuple[np.ndarray, np.ndarray]:
    """The audio-language models' distributions fused without the classifier; those of a single one are
    returned unchanged.

    Weightings that need the classifier (``t3``) or three teachers (``dawid-skene``) are replaced by uniform ones, and
    so is ``cross-fit``, which treats the LALMs as one teacher.

    Args:
        mean: (U, T, K) mean distributions of all teachers, NaN where silent; the last one is the classifier.
        mi: (U, T) their mutual information.
        settings: how to weigh and pool.

    Returns:
        weights (U, T - 1), 0 where silent, and distributions (U, K), NaN rows for clips that no model answered.
    """
    answered = ~np.isnan(mi[:, :-1]).all(axis=1)
    weights = answered[:, None].astype(float)
    if mi.shape[1] == 2:
        return weights, mean[:, 0]
    mean, mi = mean[:, :-1].astype(np.float64), mi[:, :-1].astype(np.float64)
    if settings.weighting in ("t3", "dawid-skene", CROSS_FIT):
        settings = settings.uniform()
    weights = np.zeros(mi.shape)
    probs = np.full((len(mean), mean.shape[-1]), np.nan)
    unsharpened = FusionSettings.of({**settings.parameters(), "sharpen": 1.0})
    weights[answered], probs[answered] = fuse_means(mean[answered], mi[answered], unsharpened)
    return weights, probs
