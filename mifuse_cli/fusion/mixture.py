"""Labels by a mixture model of what is known about a clip: the answers of the audio-language models, the source
classifier, and a linear model of the hidden states.

U clips, K classes; natural logarithms. Given the class k of clip i,

- the mean answer v_i (K,) has the log-likelihood sum_j v_ij log C_kj, where C is a confusion matrix (Dawid & Skene,
  Applied Statistics 1979, with shares of votes instead of votes);
- what the source classifier and the linear model say, u_i, is normal with a mean of the class and a covariance that all
  classes share, as in linear discriminant analysis. Both hear the same hidden states and share errors, which the
  covariance takes into account; a teacher that tells the classes apart on other data only has the same mean for all of
  them, and little say.

Confusion matrix, means, covariance and class prior are estimated together with the labels by expectation maximisation,
the prior as in Saerens et al. (Neural Computation 2002). The linear model predicts each clip from the labels of the
others, see `ridge`, and is fitted anew in every round. No argument of this module but ``gold`` carries a true label,
and it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import helmert
from scipy.special import log_softmax, softmax

from mifuse_cli.fusion.ridge import LeftOut

ROUNDS = 20
"""At most; rounds end when 0.2 % of the clips or fewer change their class."""
_STOP = 0.002
_ANCHOR = 60.0
"""Weight, in clips, of the labels at the start beside those of all clips, where means, covariance and confusion matrix
are estimated. It ties every class to its name: without it, the mixture may find a group of clips that is no class. Few
clips say less about what is a class than many."""
_CORRELATED = 0.35
"""Correlation of the two teachers from which the source classifier alone may be a start. At 0, one of them is wrong
about everything, and it is more likely the classifier, which knows another domain."""
_LALM_FLOOR, _SOURCE_FLOOR = 1e-2, 1e-9
"""Probabilities are taken to be at least this. That of the classifier is low, since floored ones fall into a few
points, which a normal distribution takes for classes."""
_NAMED, _OTHER, _CLIPS_OF_MEAN, _CLIPS_OF_COVARIANCE, _CLIPS_OF_PRIOR = 2.0, 0.5, 2.0, 5.0, 1.0
"""Weights, in clips, of what is assumed before any clip is seen: that a class is named by its name, or by any name;
that a mean is that of all clips, the features are uncorrelated, and the classes equally frequent."""
_LEAST_ABOVE_CHANCE = 0.01
_GOLD = 10.0
"""Clips that a gold label counts for in means, covariance, confusion matrix and prior."""
GOLD_TO_CHOOSE = 20
"""Gold labels from which they choose among the results of several starts; fewer choose at random."""
_TINY = 1e-12


@dataclass(frozen=True)
class TwoTeachers:
    """Distributions of the two teachers.

    Attributes:
        lalm: (U, K) mean answers of the audio-language models, floored, NaN rows where there is none; None if they are
            left out.
        source: (U, K) distributions of the source classifier, matched to uniform classes; None if it is left out.
    """

    lalm: np.ndarray | None
    source: np.ndarray | None

    @classmethod
    def of(cls, lalm: np.ndarray | None, sources: list[np.ndarray]) -> TwoTeachers:
        """The teachers with these mean distributions.

        Args:
            lalm: (U, K), NaN rows where there is no answer.
            sources: (U, K) mean predictions of the source classifier, one for each standardisation of its input; their
                logarithms are averaged. An empty list leaves it out.
        """
        said = None
        if lalm is not None:
            said = np.maximum(lalm, _LALM_FLOOR)
            said = said / said.sum(axis=1, keepdims=True)
        if not sources:
            return cls(said, None)
        logs = [np.log(_matched(np.log(np.maximum(probs, _SOURCE_FLOOR)))) for probs in sources]
        return cls(said, softmax(np.mean(logs, axis=0), axis=1))

    @property
    def heard(self) -> np.ndarray:
        """(U,) whether there is an answer for a clip; only for teachers with `lalm`."""
        assert self.lalm is not None
        return ~np.isnan(self.lalm).any(axis=1)

    @property
    def answers(self) -> np.ndarray:
        """(U, K) mean answers matched to uniform classes, uniform without one; only for teachers with `lalm`."""
        assert self.lalm is not None
        answers = np.full(self.lalm.shape, 1 / self.lalm.shape[1])
        if self.heard.any():
            answers[self.heard] = _matched(np.log(self.lalm[self.heard]))
        return answers

    @property
    def correlation(self) -> float:
        """Of the two teachers' distributions over the clips with an answer, each matched to uniform classes; NaN if one
        is left out."""
        if self.lalm is None or self.source is None or not self.heard.any():
            return float("nan")
        one, other = _matched(np.log(self.lalm[self.heard])), _matched(np.log(self.source[self.heard]))
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)
        scale = np.sqrt(np.square(one).sum() * np.square(other).sum())
        return float((one * other).sum() / scale) if scale > _TINY else 0.0

    def starts(self) -> dict[str, np.ndarray]:
        """Labels (U, K) to start from, by name, all matched to uniform classes.

        They are those of both teachers pooled, with the same say even if the classifier is the surer one, and those of
        each of them. If the two hardly correlate, not those of the classifier, and those of the LALMs with a smaller
        say of the classifier, down to none.
        """
        if self.lalm is None:
            assert self.source is not None
            return {"source": self.source}
        answers = self.answers
        if self.source is None:
            return {"lalm": answers}
        said, source = (np.log(np.maximum(probs, _TINY)) for probs in (answers, self.source))
        surest = _spread(said[self.heard])
        if not surest > _TINY:
            # Answers that never vary, or none.
            return {"source": self.source}
        source *= min(1.0, surest / max(_spread(source), _TINY))

        def pooled(share: float) -> np.ndarray:
            return _matched(
                np.where(self.heard[:, None], (1 - share) * said + share * source, 2 * share * source)
            )

        if self.correlation > _CORRELATED:
            return {"both": pooled(0.5), "source": self.source, "lalm": answers}
        return {"both": pooled(0.5), "lalm": pooled(0.5 * max(self.correlation, 0.0) / _CORRELATED)}

    def recall(self, labels: np.ndarray) -> np.ndarray:
        """(T, K) estimated recall of every class of the LALMs and of the source classifier, if the labels (U, K) are
        right; NaN rows for teachers that are left out."""
        found = []
        for probs in (self.lalm, self.source):
            if probs is None:
                found.append(np.full(labels.shape[1], np.nan))
                continue
            told = ~np.isnan(probs).any(axis=1)
            named = np.eye(labels.shape[1])[probs[told].argmax(axis=1)]
            mine = labels[told]
            found.append((mine * named).sum(axis=0) / np.maximum(mine.sum(axis=0), _TINY))
        return np.stack(found)

    def information(self, labels: np.ndarray) -> np.ndarray:
        """(2,) mutual information in nats between the labels (U, K) and what the LALMs and the source classifier say;
        0 for those that are left out."""
        found = []
        for probs in (self.lalm, self.source):
            if probs is None:
                found.append(0.0)
                continue
            told = ~np.isnan(probs).any(axis=1)
            joint = labels[told].T @ probs[told] / max(told.sum(), 1)
            apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
            found.append(float((joint * np.log(np.maximum(joint, _TINY) / np.maximum(apart, _TINY))).sum()))
        return np.maximum(found, 0.0)


@dataclass(frozen=True)
class Mixture:
    """Result of `settled`: labels, proportional to prior * answers * acoustics.

    Attributes:
        labels: (U, K).
        answers: (U, K) likelihood of every class by the answers, scaled to sum 1; uniform where there is none.
        acoustics: (U, K) likelihood by source classifier and linear model, scaled to sum 1.
        prior: (K,) estimated class prior.
        start: name of the start, see `TwoTeachers.starts`.
        others: labels (U, K) reached from other starts, by name.
    """

    labels: np.ndarray
    answers: np.ndarray
    acoustics: np.ndarray
    prior: np.ndarray
    start: str
    others: dict[str, np.ndarray]


def settled(
    teachers: TwoTeachers,
    structure: LeftOut | None,
    *,
    gold: np.ndarray | None = None,
    uniform: bool = False,
    rounds: int = ROUNDS,
) -> Mixture:
    """Labels from every start, of which those are taken under which both teachers are well above chance.

    Expectation maximisation finds the labels that are nearest to its start. Under wrong ones, one of the teachers seems
    to be right less often: what counts is the geometric mean of the two unweighted accuracies under the labels, less
    chance. With 20 gold labels or more, those are taken that give the gold clips the highest likelihood.

    Args:
        teachers: at least one.
        structure: linear model of the hidden states; None if it is left out.
        gold: (U,) true class of the few clips where it is known, -1 elsewhere; None: of no clip.
        uniform: whether the class prior is uniform instead of estimated.
        rounds: at most, from every start.
    """
    starts = teachers.starts()
    if gold is None:
        gold = np.full(len(next(iter(starts.values()))), -1)
    found = {
        name: _maximised(teachers, structure, start, gold=gold, uniform=uniform, rounds=rounds)
        for name, start in starts.items()
    }

    def support(name: str) -> float:
        labels, answers, acoustics, prior = found[name]
        if (gold >= 0).sum() >= GOLD_TO_CHOOSE:
            told = log_softmax(np.log(prior) + answers + acoustics, axis=1)
            return float(told[gold >= 0, gold[gold >= 0]].mean())
        above = teachers.recall(labels).mean(axis=1) - 1 / labels.shape[1]
        return float(np.nanmean(np.log(np.maximum(above, _LEAST_ABOVE_CHANCE))))

    best = max(found, key=support)
    labels, answers, acoustics, prior = found[best]
    others = {name: one[0] for name, one in found.items() if name != best}
    return Mixture(labels, softmax(answers, axis=1), softmax(acoustics, axis=1), prior, best, others)


def alone(name: str, said: np.ndarray, gold: np.ndarray | None) -> Mixture:
    """The labels of one teacher without structure: what it says, since nothing else tells where it is wrong.

    Args:
        name: "lalm" or "source".
        said: (U, K) its distributions, NaN rows where it is silent, which become uniform.
        gold: as in `settled`.
    """
    classes = said.shape[1]
    said = np.where(np.isnan(said), 1 / classes, said)
    known = np.full(len(said), -1) if gold is None else gold
    labels = np.where((known >= 0)[:, None], np.eye(classes)[known], said)
    even = np.full(labels.shape, 1 / classes)
    answers, acoustics = (said, even) if name == "lalm" else (even, said)
    return Mixture(labels, answers, acoustics, even[0], name, {})


def _maximised(
    teachers: TwoTeachers,
    structure: LeftOut | None,
    start: np.ndarray,
    *,
    gold: np.ndarray,
    uniform: bool,
    rounds: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels (U, K), log-likelihoods (U, K) by answers and by acoustics, and the prior (K,)."""
    classes = start.shape[1]
    contrasts = helmert(classes).T
    fixed = [] if teachers.source is None else [np.log(np.maximum(teachers.source, _TINY)) @ contrasts]
    known, weight = gold >= 0, np.where(gold >= 0, _GOLD, 1.0)[:, None]
    start = np.where(known[:, None], np.eye(classes)[gold], start)
    labels, prior = start, np.full(classes, 1 / classes)
    anchor = _ANCHOR / (_ANCHOR + len(start))
    answers, acoustics = np.zeros(start.shape), np.zeros(start.shape)
    for _ in range(rounds):
        if not uniform:
            prior = (weight * labels).sum(axis=0) + _CLIPS_OF_PRIOR
            prior = prior / prior.sum()
        believed = weight * ((1 - anchor) * labels + anchor * start)
        told = fixed if structure is None else [*fixed, structure.predict(labels) @ contrasts]
        if told:
            acoustics = _by_acoustics(np.hstack(told), believed)
        if teachers.lalm is not None:
            answers = _by_answers(teachers.lalm, believed)
        before = labels.argmax(axis=1)
        labels = softmax(np.log(prior) + answers + acoustics, axis=1)
        labels[known] = start[known]
        if (labels.argmax(axis=1) != before).mean() < _STOP:
            break
    return labels, answers, acoustics, prior


def _by_answers(lalm: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-likelihood (U, K) of every class by the confusion matrix of the answers (U, K); 0 where there is none."""
    heard = ~np.isnan(lalm).any(axis=1)
    confusion = labels[heard].T @ lalm[heard] + _NAMED * np.eye(lalm.shape[1]) + _OTHER
    confusion /= confusion.sum(axis=1, keepdims=True)
    found = np.zeros(labels.shape)
    found[heard] = lalm[heard] @ np.log(confusion).T
    return found


def _by_acoustics(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-likelihood (U, K), up to a constant of the clip, of normal features (U, P) with a mean for every class."""
    scaled = features - features.mean(axis=0)
    scaled = scaled / np.maximum(scaled.std(axis=0), 1e-9)
    counts = labels.sum(axis=0)
    # Shrunk to the mean of all clips, which is 0.
    means = labels.T @ scaled / (counts + _CLIPS_OF_MEAN)[:, None]
    # sum_ik q_ik (u_i - m_k)(u_i - m_k)'
    crossed = scaled.T @ labels @ means
    scatter = scaled.T @ (labels.sum(axis=1, keepdims=True) * scaled) - crossed - crossed.T
    scatter += means.T @ (counts[:, None] * means)
    scatter += _CLIPS_OF_COVARIANCE * np.diag(scaled.var(axis=0))
    covariance = scatter / (counts.sum() + _CLIPS_OF_COVARIANCE) + 1e-9 * np.eye(scaled.shape[1])
    weights = np.linalg.solve(covariance, means.T)
    # The part of the exponent that all classes share is left out.
    return scaled @ weights - 0.5 * np.einsum("kp,pk->k", means, weights)


def _spread(logs: np.ndarray) -> float:
    """How sure a teacher is: the deviation of its log-probabilities (U, K) within clips."""
    if not len(logs):
        return 0.0
    return float(np.sqrt(np.square(logs - logs.mean(axis=1, keepdims=True)).mean()))


def _matched(logits: np.ndarray, steps: int = 50) -> np.ndarray:
    """softmax(logits + b) with the b (K,) that makes the mean over clips uniform (Sinkhorn).

    It removes a teacher's bias towards a class.
    """
    classes = logits.shape[1]
    shift = np.zeros(classes)
    for _ in range(steps):
        shift -= np.log(np.maximum(classes * softmax(logits + shift, axis=1).mean(axis=0), 1e-8))
    return softmax(logits + shift, axis=1)
