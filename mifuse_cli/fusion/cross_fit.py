"""Labels on which two teachers and a cross-fitted linear model of the clips agree, by expectation maximisation.

U clips, K classes, D features; natural logarithms. Two teachers, the audio-language model and the source
classifier, give log-probabilities t (U, K). A linear model is fitted to the labels on hidden states of the
encoder and predicts every clip out of fold, c (U, K), from the labels of the other folds: its prediction is
then independent of the clip's own label. A round is

    q_i  proportional to  exp(t_i + w log c_i + b),  the b (K,) such that the mean of q is the class prior.

Out-of-fold prediction is cross-fitting as in Chernozhukov et al. (Econometrics Journal, 2018); matching a class
prior by reweighting is Saerens et al. (Neural Computation, 2002) run the other way round.

Unless the input is standardised by known speakers, the labels of the first few rounds are used to find
pseudo-speakers, clusters of the hidden states. Hidden states standardised by pseudo-speaker are then the
input of both the linear model and the source classifier. If no stable clusters are found, the hidden states
are used as they are. No argument of this module
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
"""Rounds for the labels with which pseudo-speakers are found: they only have to remove the class means."""
_STOP = 0.005
_UNIFORM_SHARE = 0.5
_SLOPES = np.geomspace(0.5, 100, 40)
_TINY = 1e-12
_LALM_FLOOR, _SOURCE_FLOOR = 1e-2, 1e-3


@dataclass(frozen=True)
class Structure:
    """What `cross_fit` uses of U clips besides the answers of the LALMs.

    Attributes:
        source: (U, K) mean prediction of the source classifier over dropout passes, sampled in the same
            way as in `classify`.
        hidden: (U, S, D) hidden states of S layers, averaged over time, as the encoder gives them; the
            first of the layers is used to find pseudo-speakers.
        standardised: (U, S, D) the same, standardised by speaker or by all clips.
        fold: (U,) fold of every clip; each is predicted from the labels of the other folds.
        head_input: (U, L, D) hidden states that the source classifier sees, as the encoder gives them.
        classify: function from head inputs (U, L, D) standardised by pseudo-speaker and the number of the
            clustering (from 0) to the source classifier's mean prediction (U, K); None where known speakers
            are used, which disables pseudo-speakers.
        voice: (U, V) vectors of length 1 of a speaker encoder; None where there is none.
    """

    source: np.ndarray
    hidden: np.ndarray
    standardised: np.ndarray
    fold: np.ndarray
    head_input: np.ndarray
    classify: Callable[[np.ndarray, int], np.ndarray] | None
    voice: np.ndarray | None = None


@dataclass(frozen=True)
class CrossFit:
    """Labels, and what each of three views (audio-language models, source classifier, structure) contributed to them.

    Attributes:
        labels: (U, K), proportional to prod_v views[:, v] ** exponents[:, v] * exp(b), with b (K,) such that their
            mean is `prior`.
        views: (U, 3, K) distributions, each matched to its class prior; uniform where a view is left out.
        exponents: (U, 3), 0 where a view is left out or has no answer for a clip.
        prior: (K,) mean of the labels.
        voices: number of pseudo-speakers in every clustering that was used; empty if none were found.
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
        lalm: (U, K) mean answers of the audio-language model, NaN rows for clips without an answer, which
            are labelled by the source classifier and the structure alone.
        structure: predictions of the source classifier and hidden states of the clips.
        without: parts to leave out, of `settings.PARTS`.
        rng: random generator for the initial cluster centres.

    Raises:
        ValueError: too many clips for their number of features, see `ridge.fits`.
    """
    matched = "matching" not in without

    def teachers_with(sources: list[np.ndarray]) -> MatchedTeachers:
        return MatchedTeachers.of(lalm, [] if "source" in without else sources, matched=matched)

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
class MatchedTeachers:
    """Log-probabilities of two teachers.

    Each is matched to a uniform class prior, as the diversity loss assumes, which removes a teacher's bias
    towards a class. Probabilities are floored first, since the logarithm of a mean of few coarse answers is
    mostly noise.

    Attributes:
        lalm: (U, K), NaN rows where there is no answer.
        source: (U, K), mean of those of the source classifier; None if it is left out.
    """

    lalm: np.ndarray
    source: np.ndarray | None

    @classmethod
    def of(cls, lalm: np.ndarray, sources: Sequence[np.ndarray], *, matched: bool = True) -> MatchedTeachers:
        """Teachers with these mean distributions.

        Args:
            lalm: (U, K) mean answers, NaN rows where there is none.
            sources: (U, K) mean predictions of the source classifier, one for each standardisation of its
                input; their matched log-probabilities are averaged. An empty list leaves the audio-language
                model as the only teacher.
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
        """Exponents (U, 2) of both: 1/2 each, or 1 for the only teacher with an answer for a clip."""
        there = ~np.isnan(self.lalm).any(axis=1)
        return np.stack(
            [
                np.where(there, 0.5 if self.source is not None else 1.0, 0.0),
                np.where(there, 0.5, 1.0) if self.source is not None else np.zeros(len(there)),
            ],
            axis=1,
        )

    def pooled(self) -> np.ndarray:
        """The pooled log-probabilities t (U, K) of the teachers, weighted by `exponents`."""
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
        """The labels (U, K) with the views and exponents that they were made from.

        Args:
            labels: (U, K).
            structure: (U, K) predictions of the linear model; None if it is left out.
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
    """Scores (U, K) times the slope that maximises the likelihood of the labels (U, K) under softmax (Platt
    scaling).

    Ridge regression predicts probabilities, not logits; the slope brings them to the scale of logits. The
    scores are out of fold, so the slope is not inflated by overfitting.
    """
    likelihood = [(labels * log_softmax(slope * scores, axis=1)).sum() for slope in _SLOPES]
    return scores * _SLOPES[int(np.argmax(likelihood))]


def agree(
    teachers: np.ndarray, student: ridge.CrossFitted, rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray]:
    """Labels q (U, K) on which the teachers and the cross-fitted linear model agree, and the model's
    predictions.

    The class prior is the mean of the uniform prior and the marginal estimated from all three views: a
    uniform prior would impose equal classes on an unbalanced target, an estimated one alone would follow the
    teachers' biases. Rounds end when fewer than 0.5 % of the clips change their class.

    Args:
        teachers: t (U, K), of `MatchedTeachers.pooled`.
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
