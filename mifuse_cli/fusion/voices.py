"""Pseudo-speakers: groups of unlabelled clips that sound like one voice, and features standardised by them.

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
