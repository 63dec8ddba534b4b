"""Unweighted accuracy of many systems on the same clips, its bootstrap for paired differences, and ranks.

R systems, N seeds of each, T transfers, U clips, S speakers, K classes, B bootstrap draws. Clips of one speaker
are not independent, so whole speakers are drawn; a draw is the same for all systems and seeds, and for all
transfers to the same corpus, which makes differences paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def unweighted_accuracy(hits: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur, in [0, 1].

    Args:
        hits: (..., K) clips of every class that are predicted rightly.
        support: (..., K) clips of every class.

    Returns:
        (...), NaN where no class occurs.
    """
    recalls = np.where(support > 0, hits / np.maximum(support, 1), 0.0)
    occur = (support > 0).sum(axis=-1)
    return np.where(occur > 0, recalls.sum(axis=-1) / np.maximum(occur, 1), np.nan)


_BATCH = 100
"""Draws at a time, which bounds the memory."""


@dataclass(frozen=True)
class Tally:
    """Counts of correct predictions in one transfer, by speaker and class.

    Attributes:
        corpus: the target corpus; transfers to the same corpus share their bootstrap draws.
        hits: (R, N, S, K) number of correctly predicted clips.
        support: (S, K) number of clips.
    """

    corpus: str
    hits: np.ndarray
    support: np.ndarray

    def ua(self) -> np.ndarray:
        """Unweighted accuracy (R, N) in [0, 1]."""
        return unweighted_accuracy(self.hits.sum(axis=2), self.support.sum(axis=0))

    def drawn(self, speakers: np.ndarray) -> np.ndarray:
        """Unweighted accuracy (R, B), mean over seeds, of draws (B, S) of speakers.

        Classes without clips in a draw are left out of its mean.
        """
        times = np.zeros((len(speakers), len(self.support)))
        np.add.at(times, (np.arange(len(speakers))[:, None], speakers), 1)
        support = times @ self.support
        hits = np.einsum("bs,rsk->rbk", times, self.hits.mean(axis=1))
        return unweighted_accuracy(hits, support)


def tally(
    corpus: str, truth: np.ndarray, predicted: np.ndarray, classes: int, speakers: Sequence[str] | None
) -> Tally:
    """Count correct predictions by speaker and class.

    Args:
        corpus: name of the target.
        truth: (U,) true class indices.
        predicted: (R, N, U) predicted class indices; K for no prediction, which counts as wrong.
        classes: K.
        speakers: of every clip; None counts every clip as one of its own.
    """
    groups = np.arange(len(truth)) if speakers is None else np.unique(speakers, return_inverse=True)[1]
    support = np.zeros((groups.max() + 1, classes))
    np.add.at(support, (groups, truth), 1)
    hits = np.zeros((groups.max() + 1, classes, *predicted.shape[:2]))
    np.add.at(hits, (groups, truth), np.moveaxis(predicted == truth, -1, 0))
    return Tally(corpus, np.moveaxis(hits, (0, 1), (2, 3)), support)


def bootstrap_ua(tallies: Sequence[Tally], *, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap draws of the unweighted accuracy, mean over seeds, of every system.

    Args:
        tallies: of T transfers, with the same systems and seeds.
        resamples: B.
        rng: source of the draws.

    Returns:
        (R, T + 1, B): each transfer, then the mean over transfers.
    """
    sizes = {one.corpus: len(one.support) for one in tallies}
    draws = []
    # Draw for draw as scipy.stats.bootstrap, which takes longer to import than all else that an evaluation does.
    for start in range(0, resamples, _BATCH):
        batch = min(_BATCH, resamples - start)
        drawn = {corpus: rng.integers(size, size=(batch, size)) for corpus, size in sizes.items()}
        each = np.stack([one.drawn(drawn[one.corpus]) for one in tallies], axis=1)
        draws.append(np.concatenate([each, each.mean(axis=1, keepdims=True)], axis=1))
    return np.concatenate(draws, axis=-1)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws (B,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def average_ranks(ua: np.ndarray) -> np.ndarray:
    """Mean rank (R,) of systems over transfers and seeds, 1 for the best, ties sharing theirs.

    Args:
        ua: (R, T, N) unweighted accuracy.
    """
    from scipy.stats import rankdata

    return rankdata(-np.round(ua, 9), axis=0).mean(axis=(1, 2))
