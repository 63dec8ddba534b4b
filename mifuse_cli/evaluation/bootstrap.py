"""Bootstrap of many systems on the same clips for paired differences, and ranks.

R systems, N seeds of each, T transfers, S units, G distinct outcomes of units, B bootstrap draws. Clips of one speaker
are not independent, so whole speakers are drawn (`tallies.Tally.units`). A draw is the same for all systems and seeds,
and for all transfers to the same corpus, which makes differences paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mifuse_cli.evaluation.tallies import Tally

_BATCH, _DRAWN = 100, 2**23
"""Draws at a time, fewer if that were more units than this: it bounds the memory."""
_COUNTS = {
    "ua": ("support", "hits"),
    "ua_prior_corrected": ("support", "corrected"),
    "wa": ("support", "hits"),
    "macro_f1": ("support", "hits", "given"),
    "ece": ("support", "gaps", "answered"),
}
"""What every metric is made of, attributes of a `Tally`."""
_MANY = 10_000
"""Units from which those with the same outcome are drawn together, if that makes them fewer."""


def bootstrap_metrics(
    tallies: Sequence[Tally], metrics: Iterable[str], *, resamples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Bootstrap draws of metrics, mean over seeds, of every system in every transfer.

    The units of transfers to the same corpus are drawn together, all that occur in any of them: a speaker is drawn
    equally often in each. A transfer none of whose units are drawn has the value NaN.

    Args:
        tallies: of T transfers, with the same systems.
        metrics: names among `METRICS`.
        resamples: B.
        rng: source of the draws.

    Returns:
        (R, T, B) by metric.
    """
    names, parts = tuple(metrics), []
    corpora = {
        one.corpus: _corpus([each for each in tallies if each.corpus == one.corpus], names) for one in tallies
    }
    at_once = max(1, min(_BATCH, _DRAWN // max((len(one.counts) for one in corpora.values()), default=1)))
    # Draw for draw as scipy.stats.bootstrap, which takes longer to import than all else that an evaluation does.
    for start in range(0, resamples, at_once):
        batch = min(at_once, resamples - start)
        drawn = {
            corpus: zip(one.tallies, one.drawn(batch, rng), strict=True) for corpus, one in corpora.items()
        }
        pairs = [next(drawn[one.corpus]) for one in tallies]
        parts.append(
            [
                np.stack([one.metric(name, often).mean(axis=1) for one, often in pairs], axis=1)
                for name in names
            ]
        )
    return {name: np.concatenate([part[n] for part in parts], axis=-1) for n, name in enumerate(names)}


@dataclass(frozen=True)
class _Corpus:
    """Transfers to the same corpus, whose units are drawn together.

    Attributes:
        tallies: of the transfers; those of distinct outcomes have G rows instead of one for every unit.
        columns: units of every tally, by position among those of the corpus.
        counts: (S,) ones, or (G,) units with each outcome.
    """

    tallies: list[Tally]
    columns: list[np.ndarray]
    counts: np.ndarray

    def drawn(self, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
        """How often (batch, S) or (batch, G) the units of every tally are drawn, as many as there are."""
        units = int(self.counts.sum())
        if len(self.counts) == units:
            times = _times(units, batch, rng)
        else:
            times = rng.multinomial(units, self.counts / units, size=batch).astype(float)
        return [times[:, of] for of in self.columns]


def _corpus(tallies: Sequence[Tally], metrics: Sequence[str]) -> _Corpus:
    """The units of some tallies; of many units, the distinct outcomes.

    A draw of units with replacement has a multinomial number of those with each outcome: as exact as drawing them one
    by one, but the time does not grow with their number.
    """
    place: dict[str, int] = {}
    for one in tallies:
        for name in one.units:
            place.setdefault(name, len(place))
    columns = [np.array([place[name] for name in one.units]) for one in tallies]
    by_unit = _Corpus(list(tallies), columns, np.ones(len(place)))
    # Sums of confidences, of which the ECE is made, are seldom the same.
    if len(place) < _MANY or "ece" in metrics:
        return by_unit
    parts = sorted({part for name in metrics for part in _COUNTS[name]})
    rows = [_rows(one, parts, of, len(place)) for one, of in zip(tallies, columns, strict=True)]
    _, first, counts = np.unique(np.hstack(rows), axis=0, return_index=True, return_counts=True)
    if len(counts) > len(place) / 2:
        return by_unit
    outcomes = np.arange(len(counts))
    chosen = [_chosen(one, of, first, len(place)) for one, of in zip(tallies, columns, strict=True)]
    return _Corpus(chosen, [outcomes] * len(tallies), counts)


def _rows(one: Tally, parts: Sequence[str], columns: np.ndarray, units: int) -> np.ndarray:
    """Some of the counts (S, ...) of every unit of the corpus; 0 for those that are not in this tally."""
    counts = [getattr(one, part) for part in parts]
    rows = np.zeros((units, sum(part[0].size for part in counts)), np.float32)
    rows[columns] = np.hstack([part.reshape(len(part), -1) for part in counts])
    return rows


def _chosen(one: Tally, columns: np.ndarray, units: np.ndarray, size: int) -> Tally:
    """The tally of some units of the corpus, by position."""
    at = np.full(size, -1)
    at[columns] = np.arange(len(columns))
    rows = at[units]

    def of(counts: np.ndarray) -> np.ndarray:
        return np.where((rows >= 0).reshape(-1, *[1] * (counts.ndim - 1)), counts[rows], 0.0)

    return replace(
        one,
        units=tuple(map(str, units)),
        support=of(one.support),
        hits=of(one.hits),
        corrected=of(one.corrected),
        given=of(one.given),
        gaps=of(one.gaps),
        answered=of(one.answered),
    )


def _times(size: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """How often (batch, size) each of ``size`` units is drawn when as many are drawn with replacement."""
    drawn = rng.integers(size, size=(batch, size)) + size * np.arange(batch)[:, None]
    return np.bincount(drawn.ravel(), minlength=batch * size).reshape(batch, size).astype(float)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws (B,); those without a value (NaN) are left out, NaN if none has one."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def average_ranks(ua: np.ndarray) -> np.ndarray:
    """Mean rank (R,) of systems over transfers and seeds, 1 for the best, ties sharing theirs.

    Args:
        ua: (R, T, N) unweighted accuracy.
    """
    from scipy.stats import rankdata

    return rankdata(-np.round(ua, 9), axis=0).mean(axis=(1, 2))
