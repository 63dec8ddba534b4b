"""Labels on which two teachers and a cross-fitted linear model of the clips agree, by expectation maximisation.

U clips, K classes, D features; natural logarithms. Two teachers, the audio-language model and the source
classifier, give log-probabilities t (U, K). A linear model is fitted to the labels on hidden states of the encoder
and predicts every clip out of fold, c (U, K), that is, from the labels of other clips alone: what it says of a
clip is then a third opinion and no echo of the clip's own label. A round is

    q_i  proportional to  exp(t_i + w log c_i + b),  the b (K,) such that the mean of q is the class prior.

Out-of-fold prediction is cross-fitting as in Chernozhukov et al. (Econometrics Journal, 2018); matching a class
prior by reweighting is Saerens et al. (Neural Computation, 2002) run the other way round.

Where speakers are unknown or their statistics not wanted, labels of a first few rounds help to find
pseudo-speakers in the hidden states; states standardised by these then give both the linear model's features and
what the source classifier says. Where no voices stand out, the states stay as they are. No argument of this module
carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax

from mifuse_cli.fusion import ridge
from mifuse_cli.fusion.voices import pseudo_speakers, standardised

ROUNDS = 10
FIRST_ROUNDS = 4
"""Of the labels that pseudo-speakers are found with: they need only be clear of the classes."""
_STOP = 0.005
_UNIFORM_SHARE = 0.5
_SLOPES = np.geomspace(0.5, 100, 40)
_TINY = 1e-12
_LALM_FLOOR, _SOURCE_FLOOR = 1e-2, 1e-3


@dataclass(frozen=True)
class Structure:
    """What is known of U clips beside the teachers' samples.

    Attributes:
        source: (U, K) mean prediction of the source classifier; drawn anew in the same way as those of `classify`.
        hidden: (U, S, D) hidden states of S layers, averaged over time, as the encoder gives them; the first of the
            layers tells voices apart.
        standardised: (U, S, D) the same, standardised by speaker or by all clips.
        fold: (U,) fold of every clip; each is predicted from the labels of the other folds.
        head_input: (U, L, D) hidden states that the source classifier sees, as the encoder gives them.
        classify: gives the source classifier's mean prediction (U, K) of head inputs (U, L, D) that are
            standardised by pseudo-speakers, and is told which grouping of them it is, from 0. None where speakers
            are known, so that no pseudo-speakers are looked for.
    """

    source: np.ndarray
    hidden: np.ndarray
    standardised: np.ndarray
    fold: np.ndarray
    head_input: np.ndarray
    classify: Callable[[np.ndarray, int], np.ndarray] | None


@dataclass(frozen=True)
class CrossFit:
    """Labels, and what each of three views (audio-language models, source classifier, structure) contributed to them.

    Attributes:
        labels: (U, K), proportional to prod_v views[:, v] ** exponents[:, v] * exp(b), with b (K,) such that their
            mean is `prior`.
        views: (U, 3, K) distributions, each matched to its class prior; uniform where a view is left out.
        exponents: (U, 3), 0 where a view is left out or has nothing to say of a clip.
        prior: (K,) mean of the labels.
        voices: number of pseudo-speakers in every grouping that was used, none where none were found.
    """

    labels: np.ndarray
    views: np.ndarray
    exponents: np.ndarray
    prior: np.ndarray
    voices: tuple[int, ...]


def cross_fit(
    lalm: np.ndarray,
    structure: Structure,
    *,
    without: Collection[str] = (),
    rng: np.random.Generator,
) -> CrossFit:
    """Labels of U clips.

    Args:
        lalm: (U, K) mean answers of the audio-language model, NaN rows for clips without one, of which the source
            classifier and the structure decide.
        structure: what the source classifier and the hidden states say of the clips.
        without: parts to leave out, of `settings.PARTS`.
        rng: source of the clusters' starts.

    Raises:
        ValueError: too many clips for their number of features, see `ridge.fits`.
    """
    matched = "matching" not in without

    def teachers_with(sources: list[np.ndarray]) -> Teachers:
        return Teachers.of(lalm, [] if "source" in without else sources, matched=matched)

    teachers = teachers_with([structure.source])
    if "structure" in without:
        labels = agreed(teachers.pooled(), matched)
        return teachers.contributions(labels)
    layers = range(structure.hidden.shape[1])
    student = ridge.cross_fitted((structure.standardised[:, layer] for layer in layers), structure.fold)
    voices: tuple[int, ...] = ()
    if structure.classify is not None and "voices" not in without:
        first, _ = agree(teachers.pooled(), student, FIRST_ROUNDS)
        groupings = pseudo_speakers(structure.hidden[:, 0], first, rng)
        clips, width = len(lalm), structure.hidden[0].size
        if not ridge.fits(clips, len(groupings) * width):
            groupings = groupings[:1]
        if groupings:
            voices = tuple(len(np.unique(groups)) for groups in groupings)
            heads = (standardised(structure.head_input, groups) for groups in groupings)
            teachers = teachers_with([structure.classify(head, number) for number, head in enumerate(heads)])
            evened = (
                standardised(structure.hidden[:, layer], groups) for groups in groupings for layer in layers
            )
            student = ridge.cross_fitted(evened, structure.fold)
    labels, predicted = agree(teachers.pooled(), student)
    return teachers.contributions(labels, predicted, student.weight, voices)


def match(logits: np.ndarray, prior: np.ndarray, steps: int = 50) -> np.ndarray:
    """softmax(logits + b) with the b (K,) that makes the mean over clips the prior (Sinkhorn).

    Args:
        logits: (U, K), finite.
        prior: (K,) above 0, of sum 1.
        steps: of the fixed point b <- b + log prior - log mean.

    Returns:
        Probabilities (U, K).
    """
    shift = np.zeros(logits.shape[1])
    for _ in range(steps):
        shift += np.log(prior) - np.log(np.maximum(softmax(logits + shift, axis=1).mean(axis=0), 1e-8))
    return softmax(logits + shift, axis=1)


def _matched_log(probs: np.ndarray, floor: float, matched: bool = True) -> np.ndarray:
    """Log-probabilities (U, K) of a teacher, matched to uniform classes unless told not to."""
    logs = np.log(np.maximum(probs, floor))
    if not matched:
        return log_softmax(logs, axis=1)
    return np.log(match(logs, np.full(probs.shape[1], 1 / probs.shape[1])))


@dataclass(frozen=True)
class Teachers:
    """Log-probabilities of two teachers.

    Both are taken to see each class equally often, as the diversity loss does, which takes away a teacher's bias
    to a class. Probabilities are floored first, since the logarithm of few coarse answers is mostly noise.

    Attributes:
        lalm: (U, K), NaN rows where there is no answer.
        source: (U, K), mean of those of the source classifier; None if it is left out.
    """

    lalm: np.ndarray
    source: np.ndarray | None

    @classmethod
    def of(cls, lalm: np.ndarray, sources: Sequence[np.ndarray], *, matched: bool = True) -> Teachers:
        """Teachers that say this.

        Args:
            lalm: (U, K) mean answers, NaN rows where there is none.
            sources: (U, K) mean predictions of the source classifier, one for each way to standardise its input;
                their matched log-probabilities are averaged. None at all leaves the audio-language model alone.
            matched: False leaves the class marginals of the teachers as they are.
        """
        answered = ~np.isnan(lalm).any(axis=1)
        said = np.full(lalm.shape, np.nan)
        if answered.any():
            said[answered] = _matched_log(lalm[answered], _LALM_FLOOR, matched)
        if not sources:
            return cls(said, None)
        return cls(said, np.mean([_matched_log(probs, _SOURCE_FLOOR, matched) for probs in sources], axis=0))

    def exponents(self) -> np.ndarray:
        """Exponents (U, 2) of both: half and half, or 1 for the only one that says something of a clip."""
        there = ~np.isnan(self.lalm).any(axis=1)
        return np.stack(
            [
                np.where(there, 0.5 if self.source is not None else 1.0, 0.0),
                np.where(there, 0.5, 1.0) if self.source is not None else np.zeros(len(there)),
            ],
            axis=1,
        )

    def pooled(self) -> np.ndarray:
        """What the teachers say together, t (U, K): their log-probabilities weighed by `exponents`."""
        both = self.exponents()
        together = both[:, :1] * np.nan_to_num(self.lalm)
        return together if self.source is None else together + both[:, 1:] * self.source

    def contributions(
        self,
        labels: np.ndarray,
        structure: np.ndarray | None = None,
        weight: float = 0.0,
        voices: tuple[int, ...] = (),
    ) -> CrossFit:
        """The labels (U, K) with what they are made of.

        Args:
            labels: (U, K).
            structure: (U, K) what the linear model predicts; None if it is left out.
            weight: its exponent.
            voices: as in `CrossFit`.
        """
        uniform = np.full(labels.shape, 1 / labels.shape[1])
        views = [
            softmax(np.nan_to_num(self.lalm), axis=1),
            uniform if self.source is None else softmax(self.source, axis=1),
            uniform if structure is None else structure,
        ]
        exponents = np.column_stack([self.exponents(), np.full(len(labels), weight)])
        return CrossFit(labels, np.stack(views, axis=1), exponents, labels.mean(axis=0), voices)


def agreed(teachers: np.ndarray, matched: bool = True) -> np.ndarray:
    """Labels (U, K) of the teachers t (U, K) alone, matched to uniform classes or as they are."""
    classes = teachers.shape[1]
    return match(teachers, np.full(classes, 1 / classes)) if matched else softmax(teachers, axis=1)


def calibrated(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores (U, K) times the slope under which softmax is likeliest to have given the labels (U, K) (Platt).

    Ridge regression gives differences of probabilities; the slope makes log-odds of them. The scores are out
    of fold, so the slope does not overrate the fit.
    """
    likelihood = [(labels * log_softmax(slope * scores, axis=1)).sum() for slope in _SLOPES]
    return scores * _SLOPES[int(np.argmax(likelihood))]


def agree(
    teachers: np.ndarray, student: ridge.CrossFitted, rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray]:
    """Labels q (U, K) on which the teachers and the cross-fitted linear model agree, and what the model says.

    The class prior is half uniform, half estimated as the mean of what all three say: uniform alone would force
    equal classes on a target that is not balanced, estimation alone would follow the teachers' biases. Rounds
    end when fewer than 0.5 % of the clips change their class.

    Args:
        teachers: t (U, K), of `Teachers.pooled`.
        student: of `ridge.cross_fitted`.
        rounds: at most.

    Returns:
        labels (U, K), and the out-of-fold predictions (U, K) of the last round, matched to the class prior.
    """
    classes = teachers.shape[1]
    prior = np.full(classes, 1 / classes)
    labels = agreed(teachers)
    weight = student.weight
    for _ in range(rounds):
        scores = calibrated(student.predict(labels), labels)
        together = softmax(teachers + weight * np.log(match(scores, prior) + _TINY), axis=1)
        prior = _UNIFORM_SHARE / classes + (1 - _UNIFORM_SHARE) * together.mean(axis=0)
        before = labels.argmax(axis=1)
        predicted = match(scores, prior)
        labels = match(teachers + weight * np.log(predicted + _TINY), prior)
        if (labels.argmax(axis=1) != before).mean() < _STOP:
            break
    return labels, predicted
