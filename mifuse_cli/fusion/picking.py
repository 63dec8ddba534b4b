"""Which clips to label by ear: a sample in which those that would help most are likelier, each with a known chance.

Clips about which the teachers disagree or are uncertain say most when they are labelled, but accuracy over such clips
is not that over all. Here every clip can be drawn, and its probability of being drawn is known, so that weighting by
its inverse gives an estimate for all clips (Horvitz & Thompson, 1952). The sample is stratified by the most probable
class of the labels; within a class it is drawn systematically with unequal probabilities (Madow, 1949) along a list
sorted by voice, which spreads it over the voices.

Axes: U clips, T teachers, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mifuse_cli.fusion.diagnostics import disagreements
from mifuse_cli.fusion.estimators import entropy

_LIKELIER = 9.0
"""How many times likelier the most informative clip is drawn than the least informative one, within a class."""


@dataclass(frozen=True)
class Picked:
    """Clips to label, in random order.

    Attributes:
        position: (n,) of the clips among all U.
        inclusion: (n,) probability with which each of them was to be drawn.
        stratum: (n,) most probable class of their labels.
        informative: (U,) of all clips, how much a label is expected to tell: 0 (least) to 1.
    """

    position: np.ndarray
    inclusion: np.ndarray
    stratum: np.ndarray
    informative: np.ndarray


def picked(
    probs: np.ndarray,
    mean: np.ndarray,
    mi: np.ndarray,
    voices: np.ndarray | None,
    number: int,
    rng: np.random.Generator,
) -> Picked:
    """Draw clips to label; every class of the labels gets the same number, as far as it has so many.

    Args:
        probs: (U, K) fused labels.
        mean: (U, T, K) mean distribution of every teacher, NaN where it gave none.
        mi: (U, T) mutual information of every teacher in nats, NaN where it gave no answer.
        voices: (U,) speaker or voice of every clip, None if unknown.
        number: of clips; U if there are not so many.
        rng: of the draw.
    """
    informative = _informative(probs, mean, mi)
    stratum = probs.argmax(axis=1)
    sizes = np.bincount(stratum, minlength=probs.shape[1])
    positions, inclusion = [], []
    for k, share in enumerate(_shares(sizes, number)):
        if share == 0:
            continue
        clips = rng.permutation(np.flatnonzero(stratum == k))
        if voices is not None:
            _, voice = np.unique(voices, return_inverse=True)
            clips = clips[np.argsort(rng.permutation(voice.max() + 1)[voice[clips]], kind="stable")]
        chance = inclusion_probabilities(_LIKELIER ** informative[clips], share)
        drawn = _systematic(chance, float(rng.random()))
        positions.append(clips[drawn])
        inclusion.append(chance[drawn])
    position, chance = np.concatenate(positions), np.concatenate(inclusion)
    order = rng.permutation(len(position))
    return Picked(position[order], chance[order], stratum[position[order]], informative)


def inclusion_probabilities(size: np.ndarray, number: int) -> np.ndarray:
    """Probabilities (U,) in proportion to sizes (U,), at most 1, that sum to ``number``, at most U."""
    chance, sure = np.zeros(len(size)), np.zeros(len(size), bool)
    while True:
        left = number - sure.sum()
        chance = np.where(sure, 1.0, left * size / max(size[~sure].sum(), 1e-300))
        above = (chance >= 1) & ~sure
        if not above.any():
            return chance
        sure |= above


def _systematic(chance: np.ndarray, start: float) -> np.ndarray:
    """Positions of a systematic sample: one for every whole number that the sums of ``chance`` pass from ``start``."""
    ends = np.cumsum(chance)
    ends[-1] = round(ends[-1])  # the probabilities sum to a whole number but for rounding
    passed = np.ceil(np.concatenate([[0.0], ends]) - start)
    return np.flatnonzero(np.diff(np.maximum(passed, 0)) > 0)


def _shares(sizes: np.ndarray, number: int) -> np.ndarray:
    """Clips (K,) to draw from strata of given sizes (K,): the same from each, as far as there are so many."""
    shares = np.zeros(len(sizes), int)
    for _ in range(min(number, int(sizes.sum()))):
        open_ = np.flatnonzero(shares < sizes)
        shares[open_[shares[open_].argmin()]] += 1
    return shares


def _informative(probs: np.ndarray, mean: np.ndarray, mi: np.ndarray) -> np.ndarray:
    """Rank (U,), 0 to 1, by the mean rank in disagreement of teachers, entropy of the label and their uncertainty."""
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(mi)
        uncertain = np.where(known, mi, 0.0).sum(axis=1) / np.where(
            known.any(axis=1), known.sum(axis=1), np.nan
        )
    ranks = [_ranks(one) for one in (disagreements(mean), entropy(probs), uncertain)]
    return _ranks(np.mean(ranks, axis=0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (U,) from 0 to 1, ties alike; 1/2 where there is no value."""
    from scipy.stats import rankdata

    found, known = np.full(len(values), 0.5), ~np.isnan(values)
    if known.sum() > 1:
        found[known] = (rankdata(values[known]) - 1) / (known.sum() - 1)
    return found
