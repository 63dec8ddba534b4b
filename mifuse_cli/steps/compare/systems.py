"""The systems that are compared: what each of them is made of, and which group of the table it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mifuse_cli import fusion
from mifuse_cli.methods.registry import METHODS

OURS = "mifuse-best"
PAPER = "mifuse-paper"
UNIFORM = "mifuse-uniform"
LALM = "lalm"
ORACLE = "oracle"
ANSWERS = (1, 3, 10, 20)
"""Answers a clip that ablations try beside the number that the comparison is about."""
WEIGHTING = fusion.Settings()
"""The paper's weighting, as `mifuse fuse` has it by default."""

GROUPS = {
    "teachers": "the teachers as they are, and their fused labels",
    "baselines": "methods that are not ours",
    "fusion": "the paper's student with its weighting, and with uniform weights",
    "best": "ours",
    "weightings": "the paper's student with other weightings, pools, estimators and temperatures",
    "ablations": "parts taken away, and other numbers of answers",
    "oracle": "trained on target labels: an upper bound, no adaptation",
}
MAIN = ("teachers", "baselines", "fusion", "best")


@dataclass(frozen=True)
class System:
    """One row of a comparison.

    Attributes:
        name: of the row.
        group: one of `GROUPS`.
        shows: what is scored: a "student", or without training "source", "lalm", "fused" or the "labels" that a
            student would learn from.
        method, recipe: of the student, as in `mifuse train`.
        fusion: how its teachers are fused.
        answers: of the LALM a clip; None for as many as the comparison is about.
        without: parts left out: of the recipe ``best`` as in `methods.best.PARTS`, of any other "lalm".
        training: options of the training that differ from the comparison's.
    """

    name: str
    group: str
    shows: str = "student"
    method: str = "mifuse"
    recipe: str = "paper"
    fusion: fusion.Settings = WEIGHTING
    answers: int | None = None
    without: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)


def _weighted(name: str, **changes: Any) -> System:
    return System(name, "weightings", fusion=fusion.Settings(**changes))


def _all() -> Iterator[System]:
    uniform = fusion.Settings(weighting="uniform")
    yield System("source-only", "teachers", shows="source")
    yield System(LALM, "teachers", shows="lalm")
    yield System("labels-uniform", "teachers", shows="fused", fusion=uniform)
    yield System("labels-paper", "teachers", shows="fused")
    for method in METHODS:
        if method not in ("mifuse", ORACLE):
            # TENT has nothing that holds the classes apart; one pass is how it is meant.
            training = {"epochs": 1} if method == "tent" else {}
            yield System(method, "baselines", method=method, training=training)
    yield System(UNIFORM, "fusion", fusion=uniform)
    yield System(PAPER, "fusion")
    yield System("labels-best", "best", shows="labels", recipe="best")
    yield System(OURS, "best", recipe="best")
    for weighting in fusion.WEIGHTINGS:
        # Dawid-Skene needs three teachers; the others stand elsewhere in the table.
        if weighting not in ("mi", "uniform", "shuffled-mi", "dawid-skene"):
            yield _weighted(weighting, weighting=weighting)
    for pool in fusion.POOLS[1:]:
        yield _weighted(f"uniform, {pool} pool", weighting="uniform", pool=pool)
        yield _weighted(f"mi, {pool} pool", pool=pool)
    yield _weighted("mi, tau 0.5", tau=0.5)
    yield _weighted("mi, sharpened", sharpen=0.5)
    for estimator in fusion.MI_ESTIMATORS:
        if estimator not in ("bayes", "scaled"):  # Which are one unless answers are votes.
            yield _weighted(f"mi, {estimator}", estimator=estimator)
    for calibration in fusion.CALIBRATIONS[1:]:
        yield _weighted(f"mi, LALM by {calibration}", calibrate=calibration)
    yield from _ablations("paper", PAPER)
    yield from _ablations("best", OURS)
    yield System(ORACLE, "oracle", method=ORACLE)


def _ablations(recipe: str, name: str) -> Iterator[System]:
    def without(what: str, **changes: Any) -> System:
        return System(f"{name}, {what}", "ablations", **{"recipe": recipe, **changes})

    yield without("no diversity", training={"diversity_weight": 0.0})
    if recipe == "paper":
        yield without("no EMA", training={"ema": 0.0})
        yield without("no refresh", training={"refresh": 0})
        yield without("shuffled MI", fusion=fusion.Settings(weighting="shuffled-mi"))
        # The LALM alone is lalm-sfuda.
        yield without("source alone", without=("lalm",))
    else:
        yield without("LALM alone", without=("source",))
        yield without("source alone", without=("lalm",))
        yield without("no pseudo-speakers", without=("voices",))
        yield without("no structure", without=("structure", "voices"))
        yield without("log pool alone", without=("matching", "structure", "voices"))
    for answers in ANSWERS:
        yield without(f"{answers} answers" if answers > 1 else "1 answer", answers=answers)


SYSTEMS = {one.name: one for one in _all()}


def chosen(names: Iterable[str]) -> list[System]:
    """Systems of the names, groups and ``main`` among ``names``, in the order of `SYSTEMS`.

    Raises:
        KeyError: with a name that is none of these.
    """
    wanted = set()
    for name in names:
        groups = MAIN if name == "main" else (name,)
        members = {one.name for one in SYSTEMS.values() if one.group in groups}
        wanted |= members or {SYSTEMS[name].name}
    return [one for one in SYSTEMS.values() if one.name in wanted]
