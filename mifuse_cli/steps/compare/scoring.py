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

METRICS = ("ua", "wa", "macro_f1", "ece")
Predicted = Mapping[tuple[str, str, int], np.ndarray]
"""Predictions (R, U, K) of the plan's systems by source, target and seed."""


@dataclass(frozen=True)
class _Accuracy:
    """Unweighted accuracy of R systems in T transfers with N seeds, and B bootstrap draws of it.

    Attributes:
        names: R names.
        ua: (R, T, N) in [0, 1].
        draws: (R, T + 1, B), means over seeds; last the mean over transfers.
    """

    names: Sequence[str]
    ua: np.ndarray
    draws: np.ndarray

    def of(self, name: str) -> np.ndarray:
        """Unweighted accuracy (T, N) of a system."""
        return self.ua[self.names.index(name)]

    def difference(self, first: str, second: str, transfer: int | None = None) -> dict[str, float]:
        """First less second in points, in one transfer or on average, with the 95 % interval."""
        at = slice(None) if transfer is None else transfer
        point = (self.of(first)[at] - self.of(second)[at]).mean()
        a, b = (
            self.draws[self.names.index(name), -1 if transfer is None else transfer]
            for name in (first, second)
        )
        low, high = evaluation.interval(a - b)
        return {"difference": _percent(point), "low": _percent(low), "high": _percent(high)}


def results(config: CompareConfig, plan: Plan, probs: Predicted) -> dict[str, Any]:
    """All figures, as ``results.json`` holds them; rates in per cent, except those of ``scores`` and the ECE."""
    accuracy = _accuracy(config, plan, probs)
    scores = _scores(plan, probs)
    columns = [f"{source}>{target}" for source, target in plan.transfers]
    # Only methods are ranked, neither teachers' labels nor ablations.
    methods = [one for one in plan.systems if one.group in MAIN and one.shows != "labels"]
    ranks = _ranks(methods, accuracy)
    others = [one.name for one in methods if one.group not in ("fusion", "cross-fit")]
    best = max(others, key=lambda name: accuracy.of(name).mean(), default=None)
    compared = dict.fromkeys((LALM, *([best] if best else []), UNIFORM, PAPER, OURS))
    references = [name for name in compared if name in accuracy.names]
    systems = {}
    for number, system in enumerate(plan.systems):
        values = 100 * accuracy.of(system.name)
        systems[system.name] = {
            "group": system.group,
            "ua": {
                **{column: _over_seeds(values[at]) for at, column in enumerate(columns)},
                "average": _over_seeds(values.mean(axis=0)),
            },
            **{metric: _mean(scores[metric][number]) for metric in METRICS[1:]},
            "rank": ranks.get(system.name),
            "against": {
                other: accuracy.difference(system.name, other) for other in references if other != system.name
            },
        }
    return {
        "protocol": _protocol(config, plan),
        "classes": list(plan.classes),
        "transfers": columns,
        "seeds": plan.seeds,
        "drawn": drawn(plan),
        "clips": {name: len(corpus.clips) for name, corpus in plan.corpora.items()},
        "best_baseline": best,
        "systems": systems,
        "standing": _standing(methods, columns, accuracy),
        "scores": [
            {
                "system": one.name,
                "group": one.group,
                "source": source,
                "target": target,
                "seed": seed,
                **{metric: round(float(scores[metric][number, at, run]), 6) for metric in METRICS},
            }
            for number, one in enumerate(plan.systems)
            for at, (source, target) in enumerate(plan.transfers)
            for run, seed in enumerate(plan.seeds)
        ],
    }


def _accuracy(config: CompareConfig, plan: Plan, probs: Predicted) -> _Accuracy:
    tallies = []
    for source, target in plan.transfers:
        predicted = evaluation.predicted_classes(
            np.stack([probs[source, target, seed] for seed in plan.seeds], axis=1)
        )
        speakers = plan.corpora[target].speakers
        tallies.append(evaluation.tally(target, plan.truth[target], predicted, len(plan.classes), speakers))
    rng = provenance.rng(config.seed, "compare")
    return _Accuracy(
        names=[one.name for one in plan.systems],
        ua=np.stack([one.ua() for one in tallies], axis=1),
        draws=evaluation.bootstrap_ua(tallies, resamples=config.resamples, rng=rng),
    )


def _ranks(methods: Sequence[System], accuracy: _Accuracy) -> dict[str, float]:
    if not methods:
        return {}
    ranks = evaluation.average_ranks(np.stack([accuracy.of(one.name) for one in methods]))
    return {one.name: round(float(rank), 3) for one, rank in zip(methods, ranks, strict=True)}


def _standing(
    methods: Sequence[System], columns: Sequence[str], accuracy: _Accuracy
) -> dict[str, dict[str, Any]]:
    """For every transfer: the best other method, and whether ours is ahead of it, higher, tied, or behind.

    Ahead or behind: the 95 % interval of the difference is above or below 0. Higher or tied: the interval
    contains 0 and the difference is positive or not. Empty where there is nothing to compare.
    """
    rivals = [one.name for one in methods if one.name != OURS]
    if OURS not in accuracy.names or not rivals:
        return {}
    found = {}
    for at, column in enumerate(columns):
        best = max(rivals, key=lambda name: accuracy.of(name)[at].mean())
        gap = accuracy.difference(OURS, best, at)
        found[column] = {"best_other": best, **gap, "state": _state(**gap)}
    return found


def _state(difference: float, low: float, high: float) -> str:
    if low > 0 or high < 0:
        return "ahead" if low > 0 else "behind"
    return "higher" if difference > 0 else "tied"


def _scores(plan: Plan, probs: Predicted) -> dict[str, np.ndarray]:
    """Every metric (R, T, N)."""
    shape = (len(plan.systems), len(plan.transfers), len(plan.seeds))
    found = {metric: np.full(shape, np.nan) for metric in METRICS}
    for at, (source, target) in enumerate(plan.transfers):
        for run, seed in enumerate(plan.seeds):
            for number, one in enumerate(probs[source, target, seed]):
                for metric, value in evaluation.rates(plan.truth[target], one.astype(float)).items():
                    found[metric][number, at, run] = value
    return found


def _protocol(config: CompareConfig, plan: Plan) -> str:
    folds = {"folds": f"{config.folds}(speakers)"} if config.protocol == "inductive" else {}
    return evaluation.signature(
        protocol=config.protocol,
        **folds,
        checkpoint="last",
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


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(values.mean()), 3),
        "std": round(std, 3),
        "seeds": [round(float(value), 3) for value in values],
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(np.nanmean(values)), 5) if np.isfinite(values).any() else None


def _percent(value: float) -> float:
    return round(100 * float(value), 3)
