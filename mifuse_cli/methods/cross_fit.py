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

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from scipy import linalg
from scipy.special import log_softmax, softmax

from mifuse_cli.errors import InputError

LARGEST = 20_000
"""Clips, at most: some four matrices of U x U float32 are held at once, and solving takes time of order U^3.

On one core, `fuse` took 45 s and 2 GB for 10,000 clips; 20,000 need four times the memory and eight times as long.
"""
RIDGE = 0.3
ROUNDS = 10
FIRST_ROUNDS = 4
"""Of the labels that pseudo-speakers are told apart by: they need only be clear of the classes."""
_STOP = 0.005
_FOLDS = 5
_UNIFORM_SHARE = 0.5
_SLOPES = np.geomspace(0.5, 100, 40)
_TINY = 1e-12
_LALM_FLOOR, _SOURCE_FLOOR = 1e-2, 1e-3

_DIMENSIONS, _RESOLUTIONS = 50, (0.4, 0.6, 1.0)
_VOICES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24)
_FEWEST_CLIPS = 15
_STARTS = 3
_FOUND = 1 / 3
_PSEUDO_CLIPS = 10


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


def gram(layers: Iterable[np.ndarray]) -> np.ndarray:
    """Linear kernel (U, U) of the layers' features (U, D) side by side, divided by their number; float32.

    Raises:
        InputError: more than `LARGEST` clips.
    """
    total, width = None, 0
    for layer in layers:
        if len(layer) > LARGEST:
            raise InputError(
                f"--recipe best: {len(layer)} clips, at most {LARGEST} fit its matrices between clips. "
                "Adapt to a part of the clips, or use --recipe paper."
            )
        features = np.ascontiguousarray(layer, dtype=np.float32)
        products = features @ features.T
        total = products if total is None else np.add(total, products, out=total)
        width += features.shape[1]
    if total is None:
        raise ValueError("no layer")
    total /= width
    return total


def folds(clips: int, rng: np.random.Generator) -> np.ndarray:
    """Random fold (U,) of every clip; takes of one speaker or sentence may help each other."""
    return rng.permutation(clips) % _FOLDS


def out_of_fold(kernel: np.ndarray, fold: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Smoother S (U, U) of kernel ridge regression: S y predicts y (U, K), each clip from the other folds.

    S[test, train] = G[test, train] (G[train, train] + ridge I)^-1, and 0 within a fold. It depends on the
    features alone, so that all rounds share it.

    Args:
        kernel: G (U, U).
        fold: (U,) of every clip.
        ridge: penalty, in units of the kernel.
    """
    smoother = np.zeros_like(kernel)
    for held in np.unique(fold):
        test, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        if len(train):
            inner = kernel[np.ix_(train, train)]
            inner[np.diag_indices_from(inner)] += ridge
            cross = kernel[np.ix_(train, test)]
            smoother[np.ix_(test, train)] = linalg.solve(inner, cross, assume_a="pos", overwrite_a=True).T
    return smoother


def student_weight(kernel: np.ndarray, ridge: float = RIDGE) -> float:
    """Share of the clips that are no degrees of freedom of the fit: w = 1 - tr G (G + ridge I)^-1 / U.

    A flexible fit to few clips learns their noise too, so its word counts less there. By Cholesky: the trace of
    (G + ridge I)^-1 = (L L')^-1 is the sum of squares of L^-1.
    """
    shifted = kernel.copy()
    shifted[np.diag_indices_from(shifted)] += ridge
    lower = linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
    (invert,) = linalg.get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert(lower, lower=1)
    return ridge * float(np.einsum("ij,ij->", inverse, inverse, dtype=np.float64)) / len(kernel)


def calibrated(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores (U, K) times the slope under which softmax is likeliest to have given the labels (U, K) (Platt).

    Ridge regression gives differences of probabilities; the slope makes log-odds of them. The scores are out
    of fold, so the slope does not overrate the fit.
    """
    likelihood = [(labels * log_softmax(slope * scores, axis=1)).sum() for slope in _SLOPES]
    return scores * _SLOPES[int(np.argmax(likelihood))]


def fuse(teachers: np.ndarray, kernel: np.ndarray, fold: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """Labels q (U, K) that the teachers and the cross-fitted student agree on.

    The class prior is half uniform, half estimated as the mean of what all three say: uniform alone would force
    equal classes on a target that is not balanced, estimation alone would follow the teachers' biases. Rounds
    end when fewer than 0.5 % of the clips change their class.

    Args:
        teachers: t (U, K), of `pooled`.
        kernel: G (U, U), of `gram`.
        fold: (U,), of `folds`.
        rounds: at most.
    """
    classes = teachers.shape[1]
    prior = np.full(classes, 1 / classes)
    labels = agreed(teachers)
    smoother, weight = out_of_fold(kernel, fold), student_weight(kernel)
    for _ in range(rounds):
        scores = calibrated((smoother @ labels.astype(smoother.dtype)).astype(float), labels)
        together = softmax(teachers + weight * np.log(match(scores, prior) + _TINY), axis=1)
        prior = _UNIFORM_SHARE / classes + (1 - _UNIFORM_SHARE) * together.mean(axis=0)
        before = labels.argmax(axis=1)
        labels = match(teachers + weight * np.log(match(scores, prior) + _TINY), prior)
        if (labels.argmax(axis=1) != before).mean() < _STOP:
            break
    return labels


def pseudo_speakers(layer: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups (U,) of clips that sound like one voice, in three resolutions; none where no voices stand out.

    The means of the classes under the labels are taken out of the features. Their principal components, whitened
    and scaled to unit length, as is usual for features of speakers (Garcia-Romero & Espy-Wilson, Interspeech
    2011), are clustered by k-means: the first 20, 30 and 50 of them or, of fewer, shares like these. How many
    voices there are is told by stability (Ben-Hur et al., PSB 2002): by the adjusted Rand index between the three
    clusterings, which is highest where the clusters are really there. At most 24 are tried, with 15 clips or more
    on average; an index below 1/3 says that there is nothing to be found.

    Args:
        layer: (U, D) features of a low layer, where voices differ most.
        labels: (U, K).
        rng: source of the clusters' starts.
    """
    from sklearn.metrics import adjusted_rand_score

    points = _components(_without_classes(layer, labels))[:, :_DIMENSIONS]
    resolutions = [points[:, : max(1, round(share * points.shape[1]))] for share in _RESOLUTIONS]
    best, agreement = [], _FOUND
    for count in _VOICES:
        if len(layer) >= _FEWEST_CLIPS * count:
            groups = [_clusters(first, count, rng) for first in resolutions]
            index = np.mean([adjusted_rand_score(*pair) for pair in combinations(groups, 2)])
            if index >= agreement:
                best, agreement = groups, index
    return best


def _without_classes(layer: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Features (U, D) standardised, without the means of the classes under the labels (U, K)."""
    centred = layer - layer.mean(axis=0)
    centred = centred / np.maximum(centred.std(axis=0), 1e-5)
    # Soft means; a class that nobody is in has none.
    centred = centred - labels @ (labels.T @ centred / np.maximum(labels.sum(axis=0), _TINY)[:, None])
    centred = centred - centred.mean(axis=0)
    return centred / np.maximum(centred.std(axis=0), 1e-5)


def _components(centred: np.ndarray) -> np.ndarray:
    """Principal components (U, P) of features (U, D), the largest first, all of deviation 1."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, variances > 1e-6 * variances[-1]][:, ::-1]
    projected = centred @ axes
    return projected / np.maximum(projected.std(axis=0), _TINY)


def _clusters(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster (U,) of points (U, P) by their direction."""
    from sklearn.cluster import KMeans

    directions = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), _TINY)
    seed = int(rng.integers(2**31))
    return KMeans(count, n_init=_STARTS, random_state=seed).fit_predict(directions)


def standardised(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Features (U, ...) with mean 0 and deviation about 1 in each group (U,).

    Variances are shrunk to that of all clips around their groups' means, as by 10 more clips, since groups may
    be small.
    """
    out = np.empty_like(features)
    for group in np.unique(groups):
        out[groups == group] = features[groups == group] - features[groups == group].mean(axis=0)
    overall = np.maximum(out.var(axis=0), _TINY)
    for group in np.unique(groups):
        mine = out[groups == group]
        variance = (np.square(mine).sum(axis=0) + _PSEUDO_CLIPS * overall) / (len(mine) + _PSEUDO_CLIPS)
        out[groups == group] = mine / np.sqrt(variance)
    return out
