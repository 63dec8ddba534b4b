"""Pools of weighted distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mifuse_cli.fusion.estimators import summed

LOG_POOL_FLOOR = 1e-3
"""Lower bound of probabilities in a product, so that a single zero does not veto a class."""


def linear_pool(weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """sum_t w_t p_t. Even with calibrated teachers it is underconfident (Gneiting & Ranjan 2013)."""
    return _normalized(summed(weights[..., None] * probs, 1))


def log_pool(weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Proportional to prod_t p_t^w_t, probabilities floored at 0.001."""
    return _product(weights, probs)


def product_of_experts(weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Proportional to prod_t p_t^(n w_t), n the number of teachers with a positive weight: prod_t p_t for
    equal weights.

    Probabilities are floored at 0.001. Independent evidence adds up, so it is sharper than `log_pool`
    (Hinton 2002).
    """
    return _product(weights * (weights > 0).sum(axis=1, keepdims=True), probs)


def sharpened(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Proportional to p^(1 / T), T of 0.5 to 1 to correct the underconfidence of a linear pool; above 1 it
    flattens.

    Args:
        probs: (U, K) distributions.
        temperature: T, above 0.
    """
    if temperature == 1:
        return probs
    # Divided by the highest first: a small T would round all powers down to 0.
    return _normalized((probs / probs.max(axis=-1, keepdims=True)) ** (1 / temperature))


_POOLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "linear": linear_pool,
    "log": log_pool,
    "poe": product_of_experts,
}
"""From weights (U, T) that sum to 1 and distributions (U, T, K) without NaN to distributions (U, K)."""

POOLS = tuple(_POOLS)


def pool_of(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The pool of this name, one of `POOLS`."""
    return _POOLS[name]


def _product(exponents: np.ndarray, probs: np.ndarray) -> np.ndarray:
    logs = summed(exponents[..., None] * np.log(np.maximum(probs, LOG_POOL_FLOOR)), 1)
    return _normalized(np.exp(logs - logs.max(axis=-1, keepdims=True)))


def _normalized(probs: np.ndarray) -> np.ndarray:
    return probs / summed(probs, -1)[..., None]
