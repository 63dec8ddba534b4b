"""Figures over several worlds: averages, paired differences, ranks, and transfers that a method makes worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mifuse_cli import evaluation, provenance
from mifuse_cli.steps.compare_worlds.config import CompareWorldsConfig
from mifuse_cli.steps.compare_worlds.reading import World, read_tallies

TEACHERS = ("lalm", "source-only")
"""Rows that show what was there before the adaptation. A method does harm where it is worse than the better one."""


@dataclass(frozen=True)
class _Scores:
    """Metrics of R systems in the T transfers of W worlds, means over seeds.

    Attributes:
        systems: R names.
        world_of: (T,) index of the world of every transfer.
        points: (R, T) by metric, in [0, 1].
        draws: (R, T, B) bootstrap draws by metric.
    """

    systems: tuple[str, ...]
    world_of: np.ndarray
    points: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]

    def by_world(self, values: np.ndarray) -> np.ndarray:
        """Means (R, W, ...) of values (R, T, ...) over the transfers of each world."""
        worlds = range(self.world_of.max() + 1)
        return np.stack([values[:, self.world_of == number].mean(axis=1) for number in worlds], axis=1)


def results(
    config: CompareWorldsConfig, worlds: Sequence[World], systems: Sequence[str], ours: str
) -> dict[str, Any]:
    """All figures, as ``results.json`` holds them; rates in per cent, the ECE too.

    Args:
        config: of the step.
        worlds: W comparisons over the same classes.
        systems: R names that all of them have.
        ours: the one whose differences are told.

    Raises:
        InputError, ArtifactError: as `reading.read_tallies`.
    """
    scores = _scores(config, worlds, systems)
    ranks = _ranks(scores, [name for name in systems if all(name in world.methods for world in worlds)])
    harm = _harm(scores, worlds)
    means = {metric: scores.by_world(values) for metric, values in scores.points.items()}
    baselines = [name for name in worlds[0].baselines if name in ranks and name != ours]
    best = {
        metric: evaluation.best_of(
            metric, {name: float(of[systems.index(name)].mean()) for name in baselines}
        )
        for metric, of in means.items()
        if baselines
    }
    return {
        "worlds": {
            world.name: {
                "protocol": world.protocol,
                "seeds": list(world.seeds),
                "transfers": [f"{source}>{target}" for source, target in world.transfers],
            }
            for world in worlds
        },
        "classes": list(worlds[0].classes),
        "drawn": "+".join(
            sorted({kind for world in worlds for kind in world.drawn.split("+")}, reverse=True)
        ),
        "resamples": config.resamples,
        "ours": ours,
        "systems": {
            name: {
                "group": worlds[0].groups[name],
                **{
                    metric: {
                        "worlds": {
                            world.name: _percent(value)
                            for world, value in zip(worlds, of[number], strict=True)
                        },
                        "mean": _percent(of[number].mean()),
                    }
                    for metric, of in means.items()
                },
                "rank": ranks.get(name),
                "harm": harm.get(name),
            }
            for number, name in enumerate(systems)
        },
        "against_best": {
            metric: {"baseline": name, **_difference(scores, worlds, metric, ours, name)}
            for metric, name in best.items()
        },
    }


def _scores(config: CompareWorldsConfig, worlds: Sequence[World], systems: Sequence[str]) -> _Scores:
    by_world = [read_tallies(world, systems) for world in worlds]
    tallies = [one for found in by_world for one in found]
    return _Scores(
        systems=tuple(systems),
        world_of=np.repeat(np.arange(len(worlds)), [len(found) for found in by_world]),
        points={
            metric: np.stack([one.metric(metric).mean(axis=1) for one in tallies], axis=1)
            for metric in evaluation.METRICS
        },
        # The draws of compare, so that one world has the intervals of its own table.
        draws=evaluation.bootstrap_metrics(
            tallies,
            evaluation.METRICS,
            resamples=config.resamples,
            rng=provenance.rng(config.seed, "compare"),
        ),
    )


def _difference(
    scores: _Scores, worlds: Sequence[World], metric: str, first: str, second: str
) -> dict[str, Any]:
    """First less second in points with 95 % intervals, in every world and for the mean over worlds."""
    a, b = scores.systems.index(first), scores.systems.index(second)
    point = scores.by_world(scores.points[metric][[a]] - scores.points[metric][[b]])[0]
    draws = scores.by_world(scores.draws[metric][[a]] - scores.draws[metric][[b]])[0]
    return {
        "worlds": {
            world.name: _with_interval(point[number], draws[number]) for number, world in enumerate(worlds)
        },
        "mean": _with_interval(point.mean(), draws.mean(axis=0)),
    }


def _with_interval(point: float, draws: np.ndarray) -> dict[str, float]:
    low, high = evaluation.interval(draws)
    return {"difference": _percent(point), "low": _percent(low), "high": _percent(high)}


def _ranks(scores: _Scores, methods: Sequence[str]) -> dict[str, float]:
    """Mean rank over transfers by UA, 1 for the best."""
    if not methods:
        return {}
    ua = scores.points["ua"][[scores.systems.index(name) for name in methods]]
    ranks = evaluation.average_ranks(ua[..., None])
    return {name: round(float(rank), 3) for name, rank in zip(methods, ranks, strict=True)}


def _harm(scores: _Scores, worlds: Sequence[World]) -> dict[str, dict[str, Any]]:
    """Transfers in which the UA of a system is below that of the better teacher, with the 95 % interval below 0.

    Empty where one of the teachers is missing.
    """
    if not set(TEACHERS) <= set(scores.systems):
        return {}
    names = [f"{world.name}: {source}>{target}" for world in worlds for source, target in world.transfers]
    ua, draws = scores.points["ua"], scores.draws["ua"]
    rows = np.array([scores.systems.index(name) for name in TEACHERS])
    better = rows[ua[rows].argmax(axis=0)]
    transfers = np.arange(len(names))
    gap = draws - draws[better, transfers]
    found = {}
    for name, of in zip(scores.systems, gap, strict=True):
        worse = [names[t] for t in transfers if evaluation.interval(of[t])[1] < 0]
        found[name] = {"transfers": len(worse), "of": len(names), "which": worse}
    return found


def _percent(value: float) -> float:
    return round(100 * float(value), 3)
