"""Ridge regression of soft labels on features in which no clip is predicted from its own label.

U clips, K classes, P features. With the hat matrix H of the fit to all clips, the residuals of the clips in a group
that is left out of the fit are (I - H_gg)^-1 (y - H y)_g: no second fit is needed (Allen, Technometrics 1974, for
groups of one). H comes from the dual (U, U) or from the primal (P, P), with the same predictions. No argument of this
module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from scipy import linalg

LARGEST = 20_000
"""Largest U for which the dual is solved, and largest P for which the primal is.

About three float32 matrices of that order are held at once, and solving takes cubic time: on one core 30 s and
1.5 GB for order 10,000.
"""
RIDGE = 0.3


class LeftOut(Protocol):
    """Result of `left_out`: predicts clips from the labels of others."""

    def predict(self, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Scores (U, K) of the clips, each predicted from the labels (U, K) of the clips of other groups (U,); None:
        of all other clips.
        """
        ...


def left_out(clips: int, layers: Iterable[np.ndarray], ridge: float = RIDGE) -> LeftOut:
    """The regression on the concatenated features (U, D) of the layers, divided by sqrt(P).

    Args:
        clips: U.
        layers: of any widths; read one at a time.
        ridge: penalty.

    Raises:
        ValueError: no layer, or both clips and features are too many, see `fits`.
    """
    if clips <= LARGEST:
        return BetweenClips(gram(layers), ridge)
    return BetweenFeatures(side_by_side(layers), ridge)


def fits(clips: int, features: int) -> bool:
    """Whether the dual or the primal is small enough for `left_out`."""
    return min(clips, features) <= LARGEST


class BetweenClips:
    """The dual, kernel ridge regression: with B = (G + ridge I)^-1, I - H = ridge B."""

    def __init__(self, kernel: np.ndarray, ridge: float = RIDGE) -> None:
        """Take G (U, U), of `gram`, which is overwritten."""
        kernel[np.diag_indices_from(kernel)] += ridge
        factor, upward = linalg.lapack.get_lapack_funcs(("potrf", "potri"), (kernel,))
        lower, _ = factor(kernel, lower=1, overwrite_a=1)
        inverse, _ = upward(lower, lower=1, overwrite_c=1)
        self.inverse = np.tril(inverse)
        self.inverse += np.tril(inverse, -1).T

    def predict(self, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """As of `LeftOut`."""
        products = self.inverse @ labels.astype(self.inverse.dtype)
        if groups is None:
            return labels - products.astype(float) / self.inverse.diagonal()[:, None]
        scores = np.empty(labels.shape)
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            scores[own] = labels[own] - linalg.solve(
                self.inverse[np.ix_(own, own)], products[own], assume_a="pos"
            )
        return scores


class BetweenFeatures:
    """The primal: H = X (X'X + ridge I)^-1 X'."""

    def __init__(self, features: np.ndarray, ridge: float = RIDGE) -> None:
        """Take X (U, P), of `side_by_side`."""
        scatter = features.T @ features
        scatter[np.diag_indices_from(scatter)] += ridge
        self.features = features
        self.solver = linalg.cho_factor(scatter, lower=True, overwrite_a=True, check_finite=False)
        # Of one clip after the other: x' (X'X + ridge I)^-1 x.
        self.leverage = np.empty(len(features))
        for start in range(0, len(features), 4096):
            some = features[start : start + 4096]
            self.leverage[start : start + 4096] = np.einsum("ij,ji->i", some, self._solved(some.T))

    def predict(self, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """As of `LeftOut`."""
        fitted = self.features @ self._solved(self.features.T @ labels.astype(self.features.dtype))
        residuals = labels - fitted.astype(float)
        if groups is None:
            return labels - residuals / (1 - self.leverage[:, None])
        scores = np.empty(labels.shape)
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            mine = self.features[own]
            within = np.eye(len(own)) - mine @ self._solved(mine.T)
            scores[own] = labels[own] - linalg.solve(within, residuals[own])
        return scores

    def _solved(self, right: np.ndarray) -> np.ndarray:
        return linalg.cho_solve(self.solver, right, check_finite=False)


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
