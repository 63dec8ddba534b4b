"""EMO-TTA (Shi et al., "Improving Test-Time Adaptation of Audio-Language Models for Speech Emotion Recognition",
arXiv 2509.25495), simplified.

Nothing is trained: the audio-language model's answer p_i to a clip is the prior of a Gaussian discriminant analysis
of its features x_i, with a mean mu_k and a share pi_k for each class and one covariance Sigma, which follow from all
clips by expectation and maximisation:

    gamma_i  proportional to  p_i * exp(g_i),   g_ik = <x_i, P mu_k> - <mu_k, P mu_k> / 2 + log pi_k
    n_k = sum_i a_i gamma_ik,   n = sum_k n_k,   pi_k = n_k / n,   mu_k = sum_i a_i gamma_ik x_i / n_k
    Sigma = sum_ik a_i gamma_ik (x_i - mu_k)(x_i - mu_k)^T / n

where a_i = exp(-H(p_i)) trusts sure answers more, and P is an inverse of Sigma shrunk to a multiple of the identity,
(n + D) (n Sigma + tr(Sigma) I)^-1 for D features.

Of the paper we know the Gaussian discriminant analysis, which statistics are updated, the prior and the weighting by
entropy, not the exact updates, constants and fusion. Unknown and therefore 1 are the factors of the entropy and of
g. A ridge like that in P is reported of FreeTTA (Dai and Yang, "Free on the Fly", CVPR 2025), the same procedure for
images, with D in place of n + D, which lets g fade as clips are added.

Ours: features are the head's hidden units, of unit length, since an LALM behind an API gives no embeddings. Nor does
it give those of class names, with which the original starts before it updates the statistics clip by clip: here
gamma = p at first, and five rounds over all clips follow. In simulations five rounds help, but rounds until nothing
changes may end at chance where classes are no clear clusters. 1e-3 is added to answers, so that their zeros veto
nothing; a clip without an answer counts as answered uniformly.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

_EPSILON = 1e-3
_TINY = 1e-12


def emo_tta(units: np.ndarray, answers: np.ndarray, *, rounds: int = 5) -> np.ndarray:
    """Posteriors gamma (U, K) of the clips.

    Args:
        units: (U, H) hidden units.
        answers: (U, K) mean answers of the audio-language model, NaN rows where there is none.
        rounds: of maximisation and expectation after the first.
    """
    features = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), _TINY).astype(np.float64)
    prior = np.where(np.isnan(answers), 1.0, answers) + _EPSILON
    prior /= prior.sum(axis=1, keepdims=True)
    trust = np.exp((prior * np.log(prior)).sum(axis=1, keepdims=True))
    posterior = prior
    for _ in range(rounds + 1):
        posterior = softmax(np.log(prior) + _log_odds(features, trust * posterior), axis=1)
    return posterior


def _log_odds(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores g (U, K) of features (U, D), with the statistics that clips of weights (U, K) give."""
    width, counts = features.shape[1], weights.sum(axis=0)
    means = weights.T @ features / counts[:, None]
    scatter = (weights.sum(axis=1, keepdims=True) * features).T @ features - (
        counts[:, None] * means
    ).T @ means
    ridge = (np.trace(scatter) / counts.sum() + _TINY) * np.eye(width)
    pulled = (counts.sum() + width) * np.linalg.solve(scatter + ridge, means.T)
    return features @ pulled - (means.T * pulled).sum(axis=0) / 2 + np.log(counts / counts.sum())
