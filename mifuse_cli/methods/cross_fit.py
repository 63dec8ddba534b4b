"""Labels from two teachers and from the structure of the unlabelled clips, by expectation maximisation.

U clips, K classes, D features; natural logarithms. Two teachers, the audio-language model and the source
classifier, give log-probabilities t (U, K). A linear student is fitted to the labels on features of an encoder
and predicts every clip out of fold, c (U, K), that is, from the labels of other clips alone: what it says of a
clip is then a third opinion and no echo of the clip's own label. A round is

    q_i  proportional to  exp(t_i + w log c_i + b),  the b (K,) such that the mean of q is the class prior.

Out-of-fold prediction is cross-fitting as in Chernozhukov et al. (Econometrics Journal, 2018); matching a class
prior by reweighting is Saerens et al. (Neural Computation, 2002) run the other way round. No argument of this
module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, softmax

from mifuse_cli.methods.ridge import CrossFitted

ROUNDS = 10
FIRST_ROUNDS = 4
"""Of the labels that pseudo-speakers are told apart by: they need only be clear of the classes."""
_STOP = 0.005
_UNIFORM_SHARE = 0.5
_SLOPES = np.geomspace(0.5, 100, 40)
_TINY = 1e-12
_LALM_FLOOR, _SOURCE_FLOOR = 1e-2, 1e-3


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


def pooled(lalm: np.ndarray, sources: Sequence[np.ndarray], *, matched: bool = True) -> np.ndarray:
    """What the teachers say together, t (U, K): the mean of their matched log-probabilities.

    Both are taken to see each class equally often, as the diversity loss does, which takes away a teacher's bias
    to a class. Probabilities are floored first, since the logarithm of few coarse answers is mostly noise. A clip
    that the LALM did not answer has the source classifier's word alone, of full weight.

    Args:
        lalm: (U, K) mean answers, NaN rows where there is none.
        sources: (U, K) mean predictions of the source classifier, one for each way to standardise its input;
            their matched log-probabilities are averaged. None at all leaves the LALM alone.
        matched: False leaves the class marginals of the teachers as they are.
    """
    answered = ~np.isnan(lalm).any(axis=1)
    together = np.full(lalm.shape, -np.log(lalm.shape[1]))
    if sources:
        together = np.mean([_matched_log(probs, _SOURCE_FLOOR, matched) for probs in sources], axis=0)
    if answered.any():
        said = _matched_log(lalm[answered], _LALM_FLOOR, matched)
        together[answered] = 0.5 * said + 0.5 * together[answered] if sources else said
    return together


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


def fuse(teachers: np.ndarray, student: CrossFitted, rounds: int = ROUNDS) -> np.ndarray:
    """Labels q (U, K) that the teachers and the cross-fitted student agree on.

    The class prior is half uniform, half estimated as the mean of what all three say: uniform alone would force
    equal classes on a target that is not balanced, estimation alone would follow the teachers' biases. Rounds
    end when fewer than 0.5 % of the clips change their class.

    Args:
        teachers: t (U, K), of `pooled`.
        student: of `ridge.cross_fitted`.
        rounds: at most.
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
        labels = match(teachers + weight * np.log(match(scores, prior) + _TINY), prior)
        if (labels.argmax(axis=1) != before).mean() < _STOP:
            break
    return labels
