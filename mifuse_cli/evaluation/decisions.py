"""From probabilities to a class: the most probable one, or the one that gains most on how often it is predicted.

The most probable class, argmax_k p_k, has the highest weighted accuracy (WA) that the probabilities allow. The highest
unweighted accuracy (UA), in which rare classes count as much as frequent ones, has argmax_k p_k / pi_k, where pi is the
class prior under which p is right (Menon et al., Long-tail learning via logit adjustment, 2021, arXiv 2007.07314). Here
pi is the mean of the predicted probabilities, which takes no label.

Axes: U clips, K classes. A clip without a prediction is a row of NaN and gets the class index K from either decision.
"""

from __future__ import annotations

import numpy as np

DECISIONS = ("argmax p", "prior-corrected argmax p/prior")
"""The two decisions as protocol lines name them."""


def predicted_classes(probs: np.ndarray) -> np.ndarray:
    """Most probable class (...) of distributions (..., K); K where there is none (NaN)."""
    missing = np.isnan(probs).any(axis=-1)
    return np.where(missing, probs.shape[-1], np.where(missing[..., None], 0, probs).argmax(axis=-1))


def predicted_prior(probs: np.ndarray) -> np.ndarray:
    """Mean (..., K) of distributions (..., U, K) over the clips that have one; 0 where none has."""
    known = ~np.isnan(probs).any(axis=-1, keepdims=True)
    clips = np.maximum(known.sum(axis=-2), 1)
    return np.where(known, probs, 0).sum(axis=-2) / clips


def prior_corrected_classes(probs: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Class (..., U) with the largest p_k / pi_k; K where there is no distribution (NaN).

    Args:
        probs: (..., U, K) distributions.
        prior: (..., K) pi, of all clips that were predicted; None: `predicted_prior` of these. A class whose prior is
            0 is never chosen: it has no probability for any of the clips that the prior is of.
    """
    pi = (predicted_prior(probs) if prior is None else np.asarray(prior))[..., None, :]
    gain = np.full(probs.shape, -np.inf)
    np.divide(probs, pi, out=gain, where=np.broadcast_to(pi > 0, probs.shape))
    missing = np.isnan(probs).any(axis=-1)
    return np.where(missing, probs.shape[-1], np.where(missing[..., None], 0, gain).argmax(axis=-1))
