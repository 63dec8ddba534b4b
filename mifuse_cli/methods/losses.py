"""Loss terms that several methods share. B clips in the batch, K classes; nats."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_k q_k log p_k averaged over clips, logits and targets (B, K), weights (B,) of the clips."""
    losses = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)
    if weights is None:
        return losses.mean()
    return (weights * losses).sum() / weights.sum().clamp_min(_EPSILON)


def diversity(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """KL(mean prediction || prior) of logits (B, K): 0 when the batch's marginal is the prior (K,).

    With a uniform prior (None), this is log K minus the entropy of the batch marginal, the
    diversity term of SHOT (Liang et al., ICML 2020) up to a constant.
    """
    marginal = logits.softmax(dim=-1).mean(dim=0)
    if prior is None:
        prior = torch.full_like(marginal, 1 / len(marginal))
    return (marginal * (torch.log(marginal + _EPSILON) - torch.log(prior.to(marginal) + _EPSILON))).sum()
