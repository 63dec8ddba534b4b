"""Computing the figures of the tables from predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mifuse_cli import evaluation, provenance
from mifuse_cli.steps.compare.config import CompareConfig
from mifuse_cli.steps.compare.planning import Plan
from mifuse_cli.steps.compare.systems import LALM, MAIN, OURS, PAPER, UNIFORM, System

Predicted = Mapping[tuple[str, str, int], np.ndarray]
"""Predictions (R, U, K) of the plan's systems by source, target and seed."""


@dataclass(frozen=True)
class _Scores:
    """Metrics of R systems in T transfers with N seeds, and B bootstrap draws of them.

    Attributes:
        names: R names.
        points: (R, T, N) by metric, in [0, 1].
        draws: (R, T, B) by metric, means over seeds.
    """

    names: Sequence[str]
    points: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]

    def of(self, name: str, metric: str = "ua") -> np.ndarray:
        """A metric (T, N) of a system."""
        return self.points[metric][self.names.index(name)]

    def best(self, metric: str, names: Sequence[str]) -> str | None:
        """The system with the best average, None if there is none."""
        means = {name: float(self.of(name, metric).mean()) for name in names}
        return evaluation.best_of(metric, means) if means else None

    def difference(
        self, first: str, second: str, *, metric: str = "ua", transfer: int | None = None
    ) -> dict[str, float]:
        """First less second in points, in one transfer or on average, with the 95 % interval."""
        at = slice(None) if transfer is None else slice(transfer, transfer + 1)
        point = (self.of(first, metric)[at] - self.of(second, metric)[at]).mean()
        a, b = (self.draws[metric][self.names.index(name), at].mean(axis=0) for name in (first, second))
        low, high = evaluation.interval(a - b)
        return {"difference": _percent(point), "low": _percent(low), "high": _percent(high)}


def results(config: CompareConfig, plan: Plan, probs: Predicted) -> dict[str, Any]:
    """All figures, as ``results.json`` holds them; rates in per cent, the ECE too, except those of ``scores``."""
    scores = _scores(config, plan, probs)
    columns = [f"{source}>{target}" for source, target in plan.transfers]
    # Only methods are ranked, neither teachers' labels nor ablations.
    methods = [one for one in plan.systems if one.group in MAIN and one.shows != "labels"]
    ranks = _ranks(methods, scores)
    baselines = [one.name for one in methods if one.group not in ("fusion", "cross-fit")]
    best = {metric: scores.best(metric, baselines) for metric in evaluation.METRICS}
    compared = dict.fromkeys((LALM, *([best["ua"]] if best["ua"] else []), UNIFORM, PAPER, OURS))
    references = [name for name in compared if name in scores.names]
    systems = {}
    for system in plan.systems:
        systems[system.name] = {
            "group": system.group,
            **{
                metric: _averages(columns, 100 * scores.of(system.name, metric))
                for metric in evaluation.METRICS
            },
            "rank": ranks.get(system.name),
            "against": {
                other: scores.difference(system.name, other) for other in references if other != system.name
            },
            "against_best": {
                metric: scores.difference(system.name, other, metric=metric)
                for metric, other in best.items()
                if other and other != system.name
            },
        }
    return {
        "protocol": _protocol(config, plan),
        "classes": list(plan.classes),
        "transfers": columns,
        "seeds": plan.seeds,
        "drawn": drawn(plan),
        "clips": {name: len(corpus.clips) - len(plan.pool[name]) for name, corpus in plan.corpora.items()},
        "ours": OURS,
        "baselines": baselines,
        "best_baseline": best["ua"],
        "best_baselines": best,
        "systems": systems,
        "standing": _standing(methods, columns, scores),
        "scores": [
            {
                "system": one.name,
                "group": one.group,
                "source": source,
                "target": target,
                "seed": seed,
                **{
                    metric: round(float(scores.of(one.name, metric)[at, run]), 6)
                    for metric in evaluation.METRICS
                },
            }
            for one in plan.systems
            for at, (source, target) in enumerate(plan.transfers)
            for run, seed in enumerate(plan.seeds)
        ],
    }


def _scores(config: CompareConfig, plan: Plan, probs: Predicted) -> _Scores:
    tallies = []
    for source, target in plan.transfers:
        predicted = np.stack([probs[source, target, seed] for seed in plan.seeds], axis=1)
        corpus = plan.corpora[target]
        scored = np.setdiff1d(np.arange(len(corpus.clips)), plan.pool[target])
        units = [corpus.units[clip] for clip in scored]
        tallies.append(evaluation.tally(target, plan.truth[target][scored], predicted[:, :, scored], units))
    return _Scores(
        names=[one.name for one in plan.systems],
        points={
            metric: np.stack([one.metric(metric) for one in tallies], axis=1) for metric in evaluation.METRICS
        },
        draws=evaluation.bootstrap_metrics(
            tallies,
            evaluation.METRICS,
            resamples=config.resamples,
            rng=provenance.rng(config.seed, "compare"),
        ),
    )


def _ranks(methods: Sequence[System], scores: _Scores) -> dict[str, float]:
    if not methods:
        return {}
    ranks = evaluation.average_ranks(np.stack([scores.of(one.name) for one in methods]))
    return {one.name: round(float(rank), 3) for one, rank in zip(methods, ranks, strict=True)}


def _standing(
    methods: Sequence[System], columns: Sequence[str], scores: _Scores
) -> dict[str, dict[str, Any]]:
    """For every transfer: the best other method, and whether ours is ahead of it, higher, tied, or behind.

    Ahead or behind: the 95 % interval of the difference is above or below 0. Higher or tied: the interval
    contains 0 and the difference is positive or not. Empty where there is nothing to compare.
    """
    rivals = [one.name for one in methods if one.name != OURS]
    if OURS not in scores.names or not rivals:
        return {}
    found = {}
    for at, column in enumerate(columns):
        best = max(rivals, key=lambda name: scores.of(name)[at].mean())
        gap = scores.difference(OURS, best, transfer=at)
        found[column] = {"best_other": best, **gap, "state": _state(**gap)}
    return found


def _state(difference: float, low: float, high: float) -> str:
    if low > 0 or high < 0:
        return "ahead" if low > 0 else "behind"
    return "higher" if difference > 0 else "tied"


def _protocol(config: CompareConfig, plan: Plan) -> str:
    told = {}
    if config.protocol == "inductive":
        told["folds"] = f"{config.folds}(speakers)"
        if any(one.together for one in plan.systems):
            told["together"] = "scored-fold(where-named-so)"
    if config.protocol == "few-gold":
        told["kept"] = "+".join(f"{name}:{len(pool)}" for name, pool in plan.pool.items()) + "(not-scored)"
    return evaluation.signature(
        protocol=config.protocol,
        **told,
        checkpoint="last",
        decision=list(evaluation.DECISIONS),
        norm=plan.normalize,
        answers=config.n_answers,
        passes=config.n_samples,
        classes=list(plan.classes),
        seeds=plan.seeds,
        ci=f"95%/paired/{drawn(plan)}/{config.resamples}",
    )


def drawn(plan: Plan) -> str:
    """Resampling unit of the bootstrap for the table's caption: speakers, clips where speakers are not known,
    or both.
    """
    kinds = {"speakers" if corpus.speakers else "clips" for corpus in plan.corpora.values()}
    return "+".join(sorted(kinds, reverse=True))


def _averages(columns: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """Mean and deviation over seeds of values (T, N), for each transfer and for the average over transfers."""
    return {
        **{column: _over_seeds(values[at]) for at, column in enumerate(columns)},
        "average": _over_seeds(values.mean(axis=0)),
    }


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(values.mean()), 3),
        "std": round(std, 3),
        "seeds": [round(float(value), 3) for value in values],
    }


def _percent(value: float) -> float:
    return round(100 * float(value), 3)
