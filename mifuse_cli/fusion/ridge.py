"""Ridge regression of soft labels on features in which no clip is predicted from its own label.

U clips, K classes, P features. With the hat matrix H of the fit to all clips, the residuals of the clips in a group
that is left out of the fit are (I - H_gg)^-1 (y - H y)_g: no second fit is needed (Allen, Technometrics 1974, for
groups of one). H comes from the dual (U, U) or, of many clips, from the primal (P, P), with the same predictions. No
argument of this module carries a true label, and it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from scipy import linalg

LARGEST = 20_000
"""Largest U for which the dual is solved.

About three float32 matrices of that order are held at once, and solving takes cubic time: on one core 30 s and
1.5 GB for order 10,000.
"""
FEW = 5_000
"""Up to so many clips the dual is solved, which is quick; of more where the features are more than half as many."""
WIDEST = 4_096
"""Largest P of the primal. Of more features, the principal components of each layer with the largest variance are used,
so that memory and time are linear in U and bounded in P."""
RIDGE = 0.3
_ROWS, _ROWS_IN_CACHE = 4_096, 512
"""Clips at a time, where products between features are taken, and where not."""
_IN_FULL = 200_000_000
"""Numbers of features, 0.8 GB, above which they are kept as whole numbers of 16 bits, in a step for each feature; sums
are in single precision. They become floats in a third of the time of numbers in half precision."""
_LARGEST_STEP = 32_767


class LeftOut(Protocol):
    """Result of `left_out`: predicts clips from the labels of others."""

    def predict(self, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Scores (U, K) of the clips, each predicted from the labels (U, K) of the clips of other groups (U,); None:
        of all other clips.
        """
        ...


def left_out(clips: int, layers: Iterable[np.ndarray], features: int, ridge: float = RIDGE) -> LeftOut:
    """The regression on the concatenated features (U, D) of the layers, divided by sqrt(P).

    Args:
        clips: U.
        layers: of any widths; read one at a time.
        features: P, of all layers together.
        ridge: penalty.

    Raises:
        ValueError: no layer.
    """
    if clips <= LARGEST and (clips <= FEW or clips < 2 * features):
        return BetweenClips(gram(layers), ridge)
    found, step = side_by_side(layers, clips, features)
    return BetweenFeatures(found, ridge / step.astype(float) ** 2)


def fits(clips: int, features: int) -> bool:
    """Whether `left_out` uses all features, instead of components of them."""
    return clips <= LARGEST or features <= WIDEST


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
    """The primal: H = X (X'X + R)^-1 X', with R = ridge I, or of features in steps of s, R = ridge diag(1 / s^2)."""

    def __init__(self, features: np.ndarray, ridge: float | np.ndarray = RIDGE) -> None:
        """Take X (U, P), of `side_by_side`, and the ridge, or that of every feature (P,)."""
        self.features = features
        scatter = np.zeros((features.shape[1],) * 2, self._kind)
        for _, some in self._parts():
            scatter += some.T @ some
        scatter[np.diag_indices_from(scatter)] += ridge
        self.scatter = scatter
        self.solver = linalg.cho_factor(scatter, lower=True, check_finite=False)
        # Of one clip after the other: x' (X'X + ridge I)^-1 x.
        self.leverage = np.empty(len(features), self._kind)
        for part, some in self._parts():
            halfway = linalg.solve_triangular(self.solver[0], some.T, lower=True, check_finite=False)
            self.leverage[part] = np.einsum("ji,ji->i", halfway, halfway)

    def predict(self, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """As of `LeftOut`."""
        told = labels.astype(self._kind)
        moments = self._moments(told)
        weights = linalg.cho_solve(self.solver, moments, check_finite=False)
        residuals = np.empty(labels.shape)
        for part, some in self._parts(at_a_time=_ROWS_IN_CACHE):
            residuals[part] = labels[part] - (some @ weights).astype(float)
        if groups is None:
            return labels - residuals / (1 - self.leverage[:, None])
        scores = np.empty(labels.shape)
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            if len(own) > self.features.shape[1]:
                scores[own] = self._without(own, told, moments)
                continue
            mine = self.features[own].astype(self._kind, copy=False)
            within = np.eye(len(own)) - mine @ linalg.cho_solve(self.solver, mine.T, check_finite=False)
            scores[own] = labels[own] - linalg.solve(within, residuals[own])
        return scores

    def _without(self, own: np.ndarray, labels: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Scores (V, K) of clips by a second fit, to all others: for groups of more clips than features."""
        scatter, moments = self.scatter.copy(), moments.copy()
        for part, some in self._parts(own):
            scatter -= some.T @ some
            moments -= some.T @ labels[own[part]]
        weights = linalg.solve(scatter, moments, assume_a="pos", overwrite_a=True, check_finite=False)
        return np.concatenate([some @ weights for _, some in self._parts(own)]).astype(float)

    def _moments(self, labels: np.ndarray) -> np.ndarray:
        total = np.zeros((self.features.shape[1], labels.shape[1]), self._kind)
        for part, some in self._parts(at_a_time=_ROWS_IN_CACHE):
            total += some.T @ labels[part]
        return total

    @property
    def _kind(self) -> np.dtype:
        return np.result_type(self.features.dtype, np.float32)

    def _parts(
        self, rows: np.ndarray | None = None, at_a_time: int = _ROWS
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """All clips, or those at some positions, a part after the other, in the precision of sums."""
        for start in range(0, len(self.features if rows is None else rows), at_a_time):
            part = slice(start, start + at_a_time)
            some = self.features[part] if rows is None else self.features[rows[part]]
            yield part, some.astype(self._kind, copy=False)


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


def side_by_side(layers: Iterable[np.ndarray], clips: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated features (U, P) of the layers, divided by sqrt(P); of more than `WIDEST`, components of them.

    Args:
        layers: of (U, D) features each.
        clips: U.
        features: P.

    Returns:
        They in float32 and ones (P,); if they are very many, whole numbers (int16) and the step of each feature (P,).
    """
    width = min(features, WIDEST)
    full = clips * width <= _IN_FULL
    found, steps = np.empty((clips, width), np.float32 if full else np.int16), np.ones(width, np.float32)
    filled = 0
    for layer in layers:
        axes = None
        if features > WIDEST:
            axes = _largest(layer, max(1, layer.shape[1] * WIDEST // features))
        columns = slice(filled, filled + (layer.shape[1] if axes is None else axes.shape[1]))
        if not full:
            largest = np.max([np.abs(some).max(axis=0) for _, some in _scaled(layer, axes, features)], axis=0)
            steps[columns] = np.where(largest > 0, largest, 1) / _LARGEST_STEP
        for part, some in _scaled(layer, axes, features):
            found[part, columns] = some if full else np.rint(some / steps[columns])
        filled = columns.stop
    return found[:, :filled], steps[:filled]


def _scaled(layer: np.ndarray, axes: np.ndarray | None, features: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Features of a layer (U, D), or their components along axes, divided by sqrt(P), a part after the other."""
    for start in range(0, len(layer), _ROWS):
        part = slice(start, start + _ROWS)
        some = np.asarray(layer[part], np.float32)
        yield part, (some if axes is None else some @ axes) / np.float32(np.sqrt(features))


def _largest(layer: np.ndarray, number: int) -> np.ndarray:
    """Axes (D, N) of the principal components of features (U, D) that have the largest variance."""
    scatter = np.zeros((layer.shape[1],) * 2)
    for start in range(0, len(layer), _ROWS):
        some = np.asarray(layer[start : start + _ROWS], np.float32)
        scatter += some.T @ some
    _, axes = linalg.eigh(scatter, subset_by_index=[layer.shape[1] - number, layer.shape[1] - 1])
    return axes[:, ::-1].astype(np.float32)
