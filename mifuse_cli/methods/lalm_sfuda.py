"""LALM-only adaptation: a student of the audio-language model's mean answers, with the diversity loss.

The paper's strongest baseline; its details there are not known, ours are: cross-entropy to the mean of the
answers, no classifier teacher, the student starting from the source weights. Clips without a valid answer
take part in the diversity term only. The means of several models are fused first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy


class LalmLabels(Method):
    """Targets and loss of LALM-only adaptation.

    Args:
        answers: (U, K) mean answers, of `fusion.fuse_answers`; NaN rows where there is none.
        diversity_weight: of the diversity term.
        diversity_prior: "uniform", or "labels" for the mean of the answers.
    """

    terms = ("cross_entropy", "diversity")

    def __init__(self, answers: np.ndarray, diversity_weight: float, diversity_prior: str) -> None:
        super().__init__()
        answered = ~np.isnan(answers).any(axis=1)
        self.answered = torch.from_numpy(answered.astype(np.float32))
        self.labels = torch.from_numpy(np.where(answered[:, None], answers, 0).astype(np.float32))
        self.prior = None
        if diversity_prior == "labels":
            self.prior = torch.from_numpy(answers[answered].mean(axis=0).astype(np.float32))
        self.diversity_weight = diversity_weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the answers and the weighted diversity term."""
        logits, index = batch.logits, batch.index
        labels, weights = self.labels[index].to(logits), self.answered[index].to(logits)
        return {
            "cross_entropy": soft_cross_entropy(logits, labels, weights),
            "diversity": self.diversity_weight * diversity(logits, self.prior),
        }
