"""Cross-fitted ridge regression of soft labels on features: each clip is predicted from the labels of the
other folds.

U clips, K classes, P features. It is solved in the dual (U, U) or in the primal (P, P), with the same
predictions. No argument of this module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from scipy import linalg

LARGEST = 20_000
"""Largest U for which the dual is solved, and largest P for which the primal is.

About four float32 matrices of that order are held at once, and solving takes cubic time: on one core 45 s and
2 GB for order 10,000.
"""
RIDGE = 0.3
FOLDS = 5


class CrossFitted(Protocol):
    """Result of `cross_fitted`.

    Attributes:
        weight: 1 - df/U, where df are the effective degrees of freedom of the fit to all clips: a
            flexible fit to few clips overfits and is given less weight.
    """

    weight: float

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """Scores (U, K) of the clips, each fitted to the labels (U, K) of the other folds."""
        ...


def cross_fitted(layers: Iterable[np.ndarray], fold: np.ndarray, ridge: float = RIDGE) -> CrossFitted:
    """The regression on the concatenated features (U, D) of the layers, divided by sqrt(P).

    Args:
        layers: of any widths; read one at a time.
        fold: (U,) fold of every clip.
        ridge: penalty.

    Raises:
        ValueError: both clips and features are too many, see `fits`.
    """
    if len(fold) <= LARGEST:
        return BetweenClips(gram(layers), fold, ridge)
    return BetweenFeatures(side_by_side(layers), fold, ridge)


def fits(clips: int, features: int) -> bool:
    """Whether the dual or the primal is small enough for `cross_fitted`."""
    return min(clips, features) <= LARGEST


class BetweenClips:
    """The dual, kernel ridge regression: S y predicts y (U, K); S (U, U) is computed once for all labels.

    S[test, train] = G[test, train] (G[train, train] + ridge I)^-1, and 0 within a fold.
    """

    def __init__(self, kernel: np.ndarray, fold: np.ndarray, ridge: float = RIDGE) -> None:
        """Take G (U, U), of `gram`, and the fold (U,) of every clip."""
        # 1 - tr G (G + ridge I)^-1 / U
        self.weight = ridge * _trace_of_inverse(kernel, ridge) / len(kernel)
        self.smoother = np.zeros_like(kernel)
        for held in np.unique(fold):
            test, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
            if len(train):
                inner = kernel[np.ix_(train, train)]
                inner[np.diag_indices_from(inner)] += ridge
                cross = kernel[np.ix_(train, test)]
                solved = linalg.solve(inner, cross, assume_a="pos", overwrite_a=True)
                self.smoother[np.ix_(test, train)] = solved.T

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """Scores (U, K) of the clips, each fitted to the labels (U, K) of the other folds."""
        return (self.smoother @ labels.astype(self.smoother.dtype)).astype(float)


class BetweenFeatures:
    """The primal: x' (X'X + ridge I)^-1 X'y, X and y without the fold of x."""

    def __init__(self, features: np.ndarray, fold: np.ndarray, ridge: float = RIDGE) -> None:
        """Take X (U, P), of `side_by_side`, and the fold (U,) of every clip."""
        clips, width = features.shape
        self.features, self.fold = features, fold
        scatter = features.T @ features
        self.weight = 1 - (width - ridge * _trace_of_inverse(scatter, ridge)) / clips
        self.solvers = {}
        for held in np.unique(fold):
            mine = features[fold == held]
            inner = scatter - mine.T @ mine
            inner[np.diag_indices_from(inner)] += ridge
            self.solvers[held] = linalg.cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """Scores (U, K) of the clips, each fitted to the labels (U, K) of the other folds."""
        labels = labels.astype(self.features.dtype)
        moments = self.features.T @ labels
        scores = np.empty(labels.shape)
        for held, solver in self.solvers.items():
            own = self.fold == held
            mine = self.features[own]
            scores[own] = mine @ linalg.cho_solve(solver, moments - mine.T @ labels[own], check_finite=False)
        return scores


def gram(layers: Iterable[np.ndarray]) -> np.ndarray:
    """Linear kernel (U, U) of the concatenated features (U, D) of the layers, divided by P; float32."""
    total, width = None, 0
    for layer in layers:
        features = np.ascontiguousarray(layer, dtype=np.float32)
        products = features @ features.T
        total = products if total is None else np.add(total, products, out=total)
        width += features.shape[1]
    if total is None:
        raise ValueError("no layer")
    total /= width
    return total


def side_by_side(layers: Iterable[np.ndarray]) -> np.ndarray:
    """The concatenated features (U, P) of the layers, divided by sqrt(P); float32.

    Raises:
        ValueError: more than `LARGEST` features.
    """
    features = np.concatenate([np.asarray(layer, dtype=np.float32) for layer in layers], axis=1)
    clips, width = features.shape
    if not fits(clips, width):
        raise ValueError(f"{clips} clips with {width} features: at most {LARGEST} of either fit the matrices")
    features /= np.sqrt(width)
    return features


def _trace_of_inverse(matrix: np.ndarray, ridge: float) -> float:
    """Trace of (M + ridge I)^-1 = (L L')^-1, by Cholesky: the sum of squares of L^-1."""
    shifted = matrix.copy()
    shifted[np.diag_indices_from(shifted)] += ridge
    lower = linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
    (invert,) = linalg.get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert(lower, lower=1)
    return float(np.einsum("ij,ij->", inverse, inverse, dtype=np.float64))
