"""The systems that are compared: their definitions, and the groups of the tables that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mifuse_cli import fusion
from mifuse_cli.fusion import FusionSettings
from mifuse_cli.methods.adaptation import METHODS, WITHOUT_STUDENT

OURS = "mifuse-cross-fit"
PAPER = "mifuse-mi"
UNIFORM = "mifuse-uniform"
LALM = "lalm"
ORACLE = "oracle"
ANSWERS = (1, 3, 10, 20)
"""Numbers of answers a clip in the ablations, besides --n-answers."""
GOLD = (12, 25, 50, 100)
"""Numbers of clips whose true class is given, with --protocol few-gold."""
MI = FusionSettings(weighting="mi")
"""The paper's weighting."""

GROUPS = {
    "teachers": "teachers, and their fused labels without a student",
    "baselines": "methods of others",
    "fusion": "the student of labels fused by mutual information, as in the paper, and by uniform weights",
    "cross-fit": "ours: cross-fitted labels and their student",
    "weightings": "the paper's student with other weightings, pools, estimators and temperatures",
    "ablations": "parts left out, and other numbers of answers",
    "few-gold": "ours with the true class of a few clips, only with --protocol few-gold",
    "oracle": "trained on target labels: an upper bound, no adaptation",
}
MAIN = ("teachers", "baselines", "fusion", "cross-fit")


@dataclass(frozen=True)
class System:
    """One row of a comparison.

    Attributes:
        name: of the row, without commas; a variant is named SYSTEM/VARIANT.
        group: one of `GROUPS`.
        shows: what is scored: a trained "student", or without training the "source" model, the "lalm", or
            the fused "labels", or the "predictions" of a method that makes no student.
        method: of the student, as in `mifuse train`, or of the predictions.
        fusion: how its teachers are fused, as in `mifuse fuse`.
        answers: number of LALM answers a clip; None for --n-answers.
        training: training options that override those of the comparison.
        gold: number of clips whose true class is given to the fusion.
        together: whether the student predicts the clips of a fold together, see `methods.student.centred`.
    """

    name: str
    group: str
    shows: str = "student"
    method: str = "mifuse"
    fusion: FusionSettings = MI
    answers: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    gold: int = 0
    together: bool = False


def _all() -> Iterator[System]:
    ways = {"uniform": FusionSettings(weighting="uniform"), "mi": MI, "cross-fit": FusionSettings()}
    yield System("source-only", "teachers", shows="source")
    yield System(LALM, "teachers", shows="lalm")
    for name in ("uniform", "mi"):
        yield System(f"labels-{name}", "teachers", shows="labels", fusion=ways[name])
    for method in METHODS:
        if method not in ("mifuse", ORACLE):
            # TENT has no diversity term and is designed for one pass.
            training = {"epochs": 1} if method == "tent" else {}
            shows = "predictions" if method in WITHOUT_STUDENT else "student"
            yield System(method, "baselines", shows=shows, method=method, training=training)
    yield System(UNIFORM, "fusion", fusion=ways["uniform"])
    yield System(PAPER, "fusion")
    yield System("labels-cross-fit", "cross-fit", shows="labels", fusion=ways["cross-fit"])
    yield System(OURS, "cross-fit", fusion=ways["cross-fit"])
    yield from _weightings()
    yield from _ablations(PAPER, MI)
    yield from _ablations(OURS, ways["cross-fit"])
    for gold in GOLD:
        yield System(f"{OURS}/gold-{gold}", "few-gold", fusion=ways["cross-fit"], gold=gold)
    yield System(ORACLE, "oracle", method=ORACLE)


def _weightings() -> Iterator[System]:
    def weighted(variant: str, weighting: str = "mi", **changes: Any) -> System:
        name = "/".join(filter(None, (f"mifuse-{weighting}", variant)))
        return System(name, "weightings", fusion=FusionSettings(weighting=weighting, **changes))

    for weighting in fusion.WEIGHTINGS:
        # Dawid-Skene needs three teachers; the others are in other groups.
        if weighting not in ("mi", "uniform", "shuffled-mi", "dawid-skene"):
            yield weighted("", weighting)
    for pool in fusion.POOLS[1:]:
        yield weighted(f"{pool}-pool", "uniform", pool=pool)
        yield weighted(f"{pool}-pool", pool=pool)
    yield weighted("tau-0.5", tau=0.5)
    yield weighted("sharpened", sharpen=0.5)
    for estimator in fusion.MI_ESTIMATORS:
        if estimator not in ("bayes", "scaled"):  # These two are the same unless answers are votes.
            yield weighted(estimator, mi_estimator=estimator)
    for calibration in fusion.CALIBRATIONS[1:]:
        yield weighted(f"lalm-by-{calibration}", calibrate_lalm=calibration)


def _ablations(name: str, settings: FusionSettings) -> Iterator[System]:
    def variant(what: str, **changes: Any) -> System:
        return System(f"{name}/{what}", "ablations", **{"fusion": settings, **changes})

    def without(what: str, parts: str) -> System:
        return variant(what, fusion=FusionSettings(weighting=settings.weighting, without=parts))

    yield variant("no-diversity", training={"diversity_weight": 0.0})
    if settings.is_weighted:
        yield variant("no-ema", training={"ema": 0.0})
        yield variant("no-refresh", training={"refresh": 0})
        yield variant("shuffled-mi", fusion=FusionSettings(weighting="shuffled-mi"))
        # The LALM alone is lalm-sfuda.
        yield without("source-alone", "lalm")
    else:
        yield without("lalm-alone", "source")
        yield without("source-alone", "lalm")
        yield without("no-voices", "voices")
        yield without("no-structure", "structure,voices")
        yield without("uniform-prior", "prior")
        yield variant("together", together=True)
    for answers in ANSWERS:
        yield variant(f"{answers}-answers" if answers > 1 else "1-answer", answers=answers)


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
