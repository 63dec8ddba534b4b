"""Labels and accuracies from the hard labels of three or more teachers, after Dawid and Skene (1979)."""

from __future__ import annotations

import numpy as np

LEAST_TEACHERS = 3
_ITERATIONS = 100
_TOLERANCE = 1e-5
_OTHER, _SAME = 1.0, 5.0
"""Pseudo-counts of a confusion matrix off and on the diagonal: a prior that teachers are better than chance."""


def dawid_skene(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of the true class, and accuracy of the teachers, by expectation maximisation.

    P(k | clip) is proportional to pi_k prod_t C_t[k, l_t], C_t[k, l] the share of clips of class k that
    teacher t calls l. It starts from the shares of the votes and stops after 100 steps or when no
    posterior moves by 1e-5. Counts get a prior of 5 on the diagonal, 1 elsewhere and 1 for each class.

    The teachers' errors have to be independent. With two teachers it cannot be decided which one is right;
    several samples of one model count as one teacher, since they repeat its errors.

    Args:
        labels: (U, T) class indices, -1 where a teacher is silent; at least one a clip.
        classes: K.

    Returns:
        posterior (U, K) and accuracy (T,), the sum over k of pi_k C_t[k, k].

    Raises:
        ValueError: fewer than three teachers have answers.
    """
    speaking = int((labels >= 0).any(axis=0).sum())
    if speaking < LEAST_TEACHERS:
        raise ValueError(
            f"Dawid-Skene needs {LEAST_TEACHERS} distinct teachers, found {speaking}: "
            "with fewer there is no majority that tells who errs"
        )
    votes = np.eye(classes + 1)[labels][..., :classes]
    prior_counts = _OTHER + (_SAME - _OTHER) * np.eye(classes)
    posterior = votes.sum(axis=1)
    posterior /= posterior.sum(axis=1, keepdims=True)
    for _ in range(_ITERATIONS):
        before = posterior
        prior = posterior.sum(axis=0) + 1
        prior /= prior.sum()
        confusion = np.einsum("uk,utl->tkl", posterior, votes) + prior_counts
        confusion /= confusion.sum(axis=-1, keepdims=True)
        logs = np.log(prior) + np.einsum("utl,tkl->uk", votes, np.log(confusion))
        posterior = np.exp(logs - logs.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        if np.abs(posterior - before).max() < _TOLERANCE:
            break
    return posterior, np.einsum("k,tkk->t", prior, confusion)
