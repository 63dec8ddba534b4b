"""Voices: clusters of clips that take the place of unknown speakers, and features from which the voice is evened out.

U clips, K classes, D features, V voices. Where every voice says every class equally often, a voice is evened out by
subtracting the mean of its clips. Where one voice says other classes than another, that erases emotion with the voice:
then the part of the mean that is due to the classes has to stay. How much of it is decided by how far the two teachers
agree that voices differ in their classes. No argument of this module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from scipy import sparse

from mifuse_cli.fusion import ridge

_DIMENSIONS, _RESOLUTIONS = 50, (0.4, 0.6, 1.0)
_VOICES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24)
_FEWEST_CLIPS = 15
_STARTS = 3
_FOUND = 1 / 3
_FEWEST_OF_VECTORS, _FEWEST_VOICES, _DRAWN = 5, 4, 0.8
_CORRELATED, _CONFOUNDED = 0.2, 0.2
_NOISE = 0.02
_CLIPS_OF_VARIANCE = 10
_AT_ONCE = 1024
"""Clips that are evened out at a time."""
_TINY = 1e-12


def pseudo_speakers(layer: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Three clusterings (U,) of the clips at different resolutions; an empty list if no stable clusters are
    found.

    The class means under the soft labels are subtracted from the features. Their principal components,
    whitened
    and scaled to unit length, as is usual for speaker embeddings (Garcia-Romero & Espy-Wilson, Interspeech
    2011), are clustered by k-means: using the first 20, 30 and 50 of them, or the same proportions if there
    are fewer. The number of clusters is chosen by stability (Ben-Hur et al., PSB 2002): the mean adjusted
    Rand index between the three clusterings is maximal. Up to 24 clusters with at least 15 clips on average
    are tried; if the index is below 1/3, no pseudo-speakers are used. Of more than `ridge.LARGEST` clips, as many
    are clustered, and the others join the nearest centre.

    Args:
        layer: (U, D) features of a low layer, where speakers differ most.
        labels: (U, K).
        rng: random generator for the initial cluster centres.
    """
    if _are_many(layer):
        labels = labels.astype(np.float32)
    points = _components(_without_classes(layer, labels))[:, :_DIMENSIONS]
    resolutions = [points[:, : max(1, round(share * points.shape[1]))] for share in _RESOLUTIONS]
    counts = (count for count in _VOICES if len(layer) >= _FEWEST_CLIPS * count)
    return _stablest([_clusters(first, count, rng) for first in resolutions] for count in counts)


def clustered_vectors(vectors: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Three clusterings (U,) of the vectors of a speaker encoder; an empty list if no stable clusters are found.

    As `pseudo_speakers`, with two differences: such vectors need no whitening, and 4 to 24 clusters with at least 5
    clips on average are tried. The three clusterings are of random 80 % of the clips (at most `ridge.LARGEST`), the
    others join the nearest centre.

    Args:
        vectors: (U, X).
        labels: (U, K) soft labels, whose class means are subtracted.
        rng: of the draws and initial cluster centres.
    """
    from sklearn.cluster import KMeans

    points = vectors - labels @ np.linalg.lstsq(labels, vectors, rcond=None)[0]
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), _TINY)

    def of_a_part(count: int) -> np.ndarray:
        most = min(round(_DRAWN * len(points)), ridge.LARGEST)
        drawn = points[rng.permutation(len(points))[:most]]
        means = KMeans(count, n_init=_STARTS, random_state=int(rng.integers(2**31)))
        return means.fit(drawn).predict(points)

    most = len(points) // _FEWEST_OF_VECTORS
    counts = (count for count in _VOICES if _FEWEST_VOICES <= count <= most)
    return _stablest([of_a_part(count) for _ in range(_STARTS)] for count in counts)


def _stablest(candidates: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """The clusterings (U,) that agree best with each other, by the mean adjusted Rand index; an empty list if it is
    below 1/3 for all candidates.
    """
    from sklearn.metrics import adjusted_rand_score

    best, agreement = [], _FOUND
    for groups in candidates:
        index = float(np.mean([adjusted_rand_score(*pair) for pair in combinations(groups, 2)]))
        if index >= agreement:
            best, agreement = groups, index
    return best


def _without_classes(layer: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Features (U, D) standardised, without the means of the classes under the labels (U, K)."""
    centred = layer - layer.mean(axis=0)
    centred = centred / np.maximum(centred.std(axis=0), 1e-5)
    # Means weighted by the soft labels; a class without clips has none.
    centred = centred - labels @ (labels.T @ centred / np.maximum(labels.sum(axis=0), _TINY)[:, None])
    centred = centred - centred.mean(axis=0)
    return centred / np.maximum(centred.std(axis=0), 1e-5)


def _components(centred: np.ndarray) -> np.ndarray:
    """Principal components (U, P) of features (U, D), in order of variance, scaled to unit variance."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, variances > 1e-6 * variances[-1]][:, ::-1]
    if _are_many(centred):
        axes = axes[:, :_DIMENSIONS]
    projected = centred @ axes
    return projected / np.maximum(projected.std(axis=0), _TINY)


def _clusters(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster (U,) of points (U, P), by k-means after scaling to unit length."""
    from sklearn.cluster import KMeans

    directions = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), _TINY)
    seed = int(rng.integers(2**31))
    means = KMeans(count, n_init=_STARTS, random_state=seed)
    if not _are_many(points):
        return means.fit_predict(directions)
    drawn = np.random.default_rng(seed).permutation(len(points))[: ridge.LARGEST]
    return means.fit(directions[drawn]).predict(directions)


def _are_many(clips: np.ndarray) -> bool:
    """Whether there are so many clips (U, ...) that clusters are found in a part of them, and the others join the
    nearest centre."""
    return len(clips) > ridge.LARGEST


def _members(group: np.ndarray, voices: int) -> np.ndarray:
    """(U, V) 1 where a clip is of a voice, else 0; of many clips without the zeros."""
    if not _are_many(group):
        return np.eye(voices)[group]
    ones, clips = np.ones(len(group)), np.arange(len(group))
    return sparse.csr_array((ones, (clips, group)), shape=(len(group), voices))


def share_between(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """How far two views agree, and how much of that is between the groups.

    Args:
        one: (U, K) distributions by one view.
        other: (U, K) by another.
        groups: (U,) voices.

    Returns:
        the share of their covariance that lies between the groups, less what chance puts there (as omega squared for a
        variance), and their correlation. Voices that say all classes equally often give a share of 0, voices that say
        one class each 1: errors of two teachers about a voice are as likely to cancel as to add up.
    """
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    _, group = np.unique(groups, return_inverse=True)
    members = _members(group, group.max() + 1)
    counts = members.sum(axis=0)[:, None]
    total = float((one * other).sum())
    between = float((counts * (members.T @ one / counts) * (members.T @ other / counts)).sum())
    clips, voices = members.shape
    chance = (total - between) / max(clips - voices, 1)
    correlation = total / max(float(np.sqrt(np.square(one).sum() * np.square(other).sum())), _TINY)
    share = (between - (voices - 1) * chance) / (total + chance) if abs(total + chance) > _TINY else 0.0
    return share, correlation


def class_mix_to_keep(
    labels: np.ndarray,
    groups: np.ndarray,
    lalm: np.ndarray,
    source: np.ndarray | None,
    structure: ridge.LeftOut,
) -> float:
    """How much of the difference in classes between voices, as the labels have it, is to be believed: 0 to 1.

    The labels differ between voices because the voices say other classes, and because the labels are wrong about whole
    voices. The first part shows in both teachers, which err independently: the share of their covariance between
    voices, divided by the share of the labels' variance between voices, is the slope of the true differences on those
    of the labels. If the teachers hardly agree, the linear model takes the place of the source classifier, predicting
    every voice from the others; since it learns the answers' errors, it only decides between 0 and 1.

    Args:
        labels: (U, K).
        groups: (U,) voices.
        lalm: (U, K) distributions by the audio-language models, without NaN.
        source: (U, K) by the source classifier; None if it is left out.
        structure: linear model of the hidden states.
    """
    if source is not None:
        share, correlation = share_between(lalm, source, groups)
        if correlation > _CORRELATED:
            differ, _ = share_between(labels, labels, groups)
            return float(np.clip(share / max(differ, _NOISE), 0, 1))
    share, _ = share_between(lalm, structure.predict(lalm, groups), groups)
    return float(share > _CONFOUNDED)


def evened(features: np.ndarray, groups: np.ndarray, labels: np.ndarray, kept: float) -> np.ndarray:
    """Features (U, ...) without the offset and scale of voices.

    The offset of a voice is the mean of its clips, less what its class mix accounts for: the class means, estimated
    within voices, times the difference of its mean label to that of all clips, times ``kept``. Variances within voices
    are shrunk towards the pooled one with the weight of 10 clips, since voices may have few.

    Args:
        features: (U, ...).
        groups: (U,) voices.
        labels: (U, K).
        kept: of `class_mix_to_keep`.
    """
    flat = features.reshape(len(features), -1)
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group).astype(float)[:, None]
    voices = len(counts)
    mix = np.stack([np.bincount(group, one) for one in labels.T], axis=1) / counts
    told = labels - mix[group]
    # All that is needed are sums by voice, and by class within voices. Those of squares are of numbers near 0, so that
    # variances keep their digits.
    near = flat[0].astype(float)
    total, squares = np.zeros((2, voices, flat.shape[1]))
    by_class = np.zeros((labels.shape[1], flat.shape[1]))
    for part in _parts(len(flat)):
        some, members = flat[part] - near, np.eye(voices)[group[part]]
        total += members.T @ some
        squares += members.T @ np.square(some)
        by_class += told[part].T @ some
    clips = len(flat)
    mean = total.sum(axis=0) / clips
    scale = np.maximum(np.sqrt(np.maximum(squares.sum(axis=0) / clips - np.square(mean), 0)), 1e-6)
    means = np.linalg.solve(told.T @ told + 0.5 * np.eye(labels.shape[1]), by_class / scale)
    offsets = (total / counts - mean) / scale - kept * (mix - labels.mean(axis=0)) @ means
    within = np.maximum(squares - np.square(total) / counts, 0) / np.square(scale)
    pooled = within.sum(axis=0) / clips
    variance = (within + _CLIPS_OF_VARIANCE * pooled) / (counts + _CLIPS_OF_VARIANCE)
    offsets, spread = near + mean + offsets * scale, scale * np.sqrt(np.maximum(variance, _TINY))
    found = np.empty(flat.shape, np.float32)
    for part in _parts(clips):
        of = group[part]
        found[part] = (flat[part] - offsets[of]) / spread[of]
    return found.reshape(features.shape)


def _parts(clips: int) -> Iterable[slice]:
    """All clips, a part after the other."""
    return (slice(start, start + _AT_ONCE) for start in range(0, clips, _AT_ONCE))
