"""Pseudo-speakers: clusters of unlabelled clips that take the place of unknown speakers, and features
standardised within them.

U clips, K classes, D features. No argument of this module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

_DIMENSIONS, _RESOLUTIONS = 50, (0.4, 0.6, 1.0)
_VOICES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24)
_FEWEST_CLIPS = 15
_STARTS = 3
_FOUND = 1 / 3
_PSEUDO_CLIPS = 10
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
    are tried; if the index is below 1/3, no pseudo-speakers are used.

    Args:
        layer: (U, D) features of a low layer, where speakers differ most.
        labels: (U, K).
        rng: random generator for the initial cluster centres.
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
    # Means weighted by the soft labels; a class without clips has none.
    centred = centred - labels @ (labels.T @ centred / np.maximum(labels.sum(axis=0), _TINY)[:, None])
    centred = centred - centred.mean(axis=0)
    return centred / np.maximum(centred.std(axis=0), 1e-5)


def _components(centred: np.ndarray) -> np.ndarray:
    """Principal components (U, P) of features (U, D), in order of variance, scaled to unit variance."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, variances > 1e-6 * variances[-1]][:, ::-1]
    projected = centred @ axes
    return projected / np.maximum(projected.std(axis=0), _TINY)


def _clusters(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster (U,) of points (U, P), by k-means after scaling to unit length."""
    from sklearn.cluster import KMeans

    directions = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), _TINY)
    seed = int(rng.integers(2**31))
    return KMeans(count, n_init=_STARTS, random_state=seed).fit_predict(directions)


def standardised(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Features (U, ...) with mean 0 and deviation about 1 in each group (U,).

    Variances are shrunk towards the pooled within-group variance with the weight of 10 clips, since groups
    may be small.
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
