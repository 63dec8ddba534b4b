"""Bootstrap of many systems on the same clips for paired differences, and ranks.

R systems, N seeds of each, T transfers, S units, B bootstrap draws. Clips of one speaker are not independent, so whole
speakers are drawn (`tallies.Tally.units`). A draw is the same for all systems and seeds, and for all transfers to the
same corpus, which makes differences paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mifuse_cli.evaluation.tallies import Tally

_BATCH = 100
"""Draws at a time, which bounds the memory."""


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
    units: dict[str, dict[str, int]] = {}
    for one in tallies:
        place = units.setdefault(one.corpus, {})
        for name in one.units:
            place.setdefault(name, len(place))
    columns = [[units[one.corpus][name] for name in one.units] for one in tallies]
    names, parts = tuple(metrics), []
    # Draw for draw as scipy.stats.bootstrap, which takes longer to import than all else that an evaluation does.
    for start in range(0, resamples, _BATCH):
        batch = min(_BATCH, resamples - start)
        times = {corpus: _times(len(place), batch, rng) for corpus, place in units.items()}
        drawn = [times[one.corpus][:, of] for one, of in zip(tallies, columns, strict=True)]
        parts.append(
            [
                np.stack(
                    [one.metric(name, often).mean(axis=1) for one, often in zip(tallies, drawn, strict=True)],
                    axis=1,
                )
                for name in names
            ]
        )
    return {name: np.concatenate([part[n] for part in parts], axis=-1) for n, name in enumerate(names)}


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
