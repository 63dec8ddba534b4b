"""A run: all that is known about the clips of one target after one adaptation, as the report shows it.

Axes: U clips, N answers or dropout passes of a clip, T teachers, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mifuse_cli import evaluation, provenance
from mifuse_cli.artifacts import Evaluation, Fused, Header, Lalm, Training

ROLES = ("lalm", "source", "labels", "student")
"""What gives distributions, in the order in which they are shown."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A teacher, labels or a student: what gives every clip a distribution.

    Attributes:
        name: as shown.
        role: one of `ROLES`.
        probs: (U, K), NaN where there is none.
        mi: (U,) mutual information of a teacher's samples in nats, NaN without; None for others.
        score: what it scores, None where no true class is known.
        signature: protocol of the score in one line, "" where it was scored for the report.
    """

    name: str
    role: str
    probs: np.ndarray
    mi: np.ndarray | None = None
    score: evaluation.Score | None = None
    signature: str = ""

    @cached_property
    def predicted(self) -> np.ndarray:
        """Most probable class (U,), K where there is none."""
        return evaluation.predicted_classes(self.probs)


@dataclass(frozen=True, eq=False)
class Listed:
    """A file that the report was made from.

    Attributes:
        name: its path, as seen from the run's directory.
        kind: kind of artifact, or "checkpoint".
        header: its root attributes.
        parents: role, path and state of each: "unchanged", "changed", "absent" or "not compared".
    """

    name: str
    kind: str
    header: Header
    parents: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """Everything about one target.

    Attributes:
        name: as shown, such as ``emodb-nemo/seed0``.
        classes: K names.
        utt_id: (U,) ids, sorted.
        predictors: teachers, labels and students, in the order in which they are shown.
        truth: (U,) true class, -1 where it is not known or was given to ``fuse --gold``.
        speaker: (U,) speaker, "" where not known.
        files: what it was made from.
        fused: artifacts of fuse by the name of their labels.
        teachers: by the name of labels, the names of the predictors that were fused, in the artifact's order.
        lalms: artifacts of query-lalm by name.
        trainings: histories of the source model and the students by name.
        gold: number of clips whose true class was given.
        of_comparison: whether it is a part of a comparison, which has a table of its own.
    """

    name: str
    classes: tuple[str, ...]
    utt_id: np.ndarray
    predictors: tuple[Predictor, ...]
    truth: np.ndarray
    speaker: np.ndarray
    files: tuple[Listed, ...] = ()
    fused: dict[str, Fused] = field(default_factory=dict)
    teachers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lalms: dict[str, Lalm] = field(default_factory=dict)
    trainings: dict[str, Training] = field(default_factory=dict)
    gold: int = 0
    of_comparison: bool = False

    def of_role(self, *roles: str) -> list[Predictor]:
        """Predictors with one of these roles."""
        return [one for one in self.predictors if one.role in roles]

    def named(self, name: str) -> Predictor | None:
        """The predictor of this name, if there is one."""
        return next((one for one in self.predictors if one.name == name), None)

    @property
    def has_truth(self) -> bool:
        """Whether any true class is known."""
        return bool((self.truth >= 0).any())

    @property
    def main(self) -> list[Predictor]:
        """One predictor of each role, LALMs all: those that the table of clips compares.

        Of several labels or students those of cross-fit, which are our default, else the last.
        """
        chosen = self.of_role("lalm", "source")
        for role in ("labels", "student"):
            some = self.of_role(role)
            preferred = [one for one in some if "cross-fit" in one.name]
            chosen += (preferred or some)[-1:]
        return chosen


def scored(
    predictor: Predictor, truth: np.ndarray, speaker: np.ndarray, resamples: int = evaluation.RESAMPLES
) -> evaluation.Score:
    """Score of a predictor on the clips (U,) whose true class is known, 0 or more."""
    known = truth >= 0
    speakers = speaker[known].tolist()
    probs = predictor.probs.astype(float)
    answered = ~np.isnan(probs).any(axis=1)
    return evaluation.score(
        truth[known],
        probs[known],
        speakers=speakers if all(speakers) and len(set(speakers)) > 1 else None,
        prior=None if known.all() or not answered.any() else probs[answered].mean(axis=0),
        resamples=resamples,
        rng=provenance.rng(0, "evaluate"),
    )


def score_of(artifact: Evaluation) -> evaluation.Score:
    """The score that an artifact of evaluate holds; what an earlier version did not measure is NaN."""
    unmeasured = dict.fromkeys(
        ("ua_prior_corrected", "ua_prior_corrected_low", "ua_prior_corrected_high"), float("nan")
    )
    metrics: dict[str, Any] = {**unmeasured, **artifact.header.parameters["metrics"]}
    metrics["recall"], metrics["marginal"] = tuple(metrics["recall"]), tuple(metrics["marginal"])
    return evaluation.Score(**metrics, confusion=artifact.confusion)


def agreements(predictors: Sequence[Predictor]) -> np.ndarray:
    """Share (P, P) of the clips that two predictors both predict on which their most probable class is the same."""
    found = np.full((len(predictors), len(predictors)), np.nan)
    for i, one in enumerate(predictors):
        for j, other in enumerate(predictors):
            classes = one.probs.shape[1]
            both = (one.predicted < classes) & (other.predicted < classes)
            if both.any():
                found[i, j] = (one.predicted == other.predicted)[both].mean()
    return found
