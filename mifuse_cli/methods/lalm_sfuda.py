"""LALM-only adaptation: a student of the audio-language model's mean answers, with the diversity loss.

The paper's strongest baseline; its recipe there is unknown, this is ours: cross-entropy to the mean of the
answers, no classifier teacher, the student starting from the source weights. Clips without a valid answer
take part in the diversity term only. The means of several models are fused first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import fusion
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy


def fused_answers(mean: np.ndarray, mi: np.ndarray, *, weighting: str, tau: float, pool: str) -> np.ndarray:
    """The LALMs' distributions fused without the classifier; those of one LALM are left as they are.

    Weightings that need the classifier (``t3``) or three teachers (``dawid-skene``) are replaced by uniform ones.

    Args:
        mean: (U, T, K) mean distributions of the teachers, NaN where silent; the last one is the classifier.
        mi: (U, T) their mutual information.
        weighting: of the artifact, as in `fusion`.
        tau: likewise.
        pool: likewise.

    Returns:
        (U, K), NaN rows for clips that no LALM answered.
    """
    if mi.shape[1] == 2:
        return mean[:, 0]
    mean, mi = mean[:, :-1].astype(np.float64), mi[:, :-1].astype(np.float64)
    if weighting in ("t3", "dawid-skene"):
        weighting = "uniform"
    answered = ~np.isnan(mi).all(axis=1)
    targets = np.full((len(mean), mean.shape[-1]), np.nan)
    _, targets[answered] = fusion.fuse(mean[answered], mi[answered], weighting=weighting, tau=tau, pool=pool)
    return targets


class LalmLabels(Method):
    """Targets and loss of LALM-only adaptation.

    Args:
        mean: (U, K) mean answers, of `fused_answers`; NaN rows where there is none.
        diversity_weight: of the diversity term.
        diversity_prior: "uniform", or "labels" for the mean of the answers.
    """

    terms = ("cross_entropy", "diversity")

    def __init__(self, mean: np.ndarray, diversity_weight: float, diversity_prior: str) -> None:
        super().__init__()
        answered = ~np.isnan(mean).any(axis=1)
        self.answered = torch.from_numpy(answered.astype(np.float32))
        self.labels = torch.from_numpy(np.where(answered[:, None], mean, 0).astype(np.float32))
        classes = mean.shape[1]
        marginal = (
            mean[answered].mean(axis=0) if diversity_prior == "labels" else np.full(classes, 1 / classes)
        )
        self.prior = torch.from_numpy(marginal.astype(np.float32))
        self.diversity_weight = diversity_weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the answers and the weighted diversity term."""
        logits, index = batch.logits, batch.index
        labels, weights = self.labels[index].to(logits), self.answered[index].to(logits)
        return {
            "cross_entropy": soft_cross_entropy(logits, labels, weights),
            "diversity": self.diversity_weight * diversity(logits, self.prior.to(logits)),
        }
