"""DINE (Liang et al., "DINE: Domain Adaptation from Single and Multiple Black-box Predictors", CVPR 2022).

Distillation into a fresh head: KL(M_i || p_i) + IM(p) + mixup, where M starts as the teacher's answers, smoothed
by keeping the highest probability and spreading the rest over the other classes, and IM is
mean_i H(p_i) + KL(batch marginal || prior). Mixup: KL(lam p_a + (1 - lam) p_b || p(lam x_a + (1 - lam) x_b)) with
one lam ~ Beta(0.3, 0.3) a batch, the mixed predictions being the student's own, without a gradient. After each
tenth of the distillation M <- 0.6 M + 0.4 p: the teacher's final share of M is 0.6^9, a hundredth.
Then fine-tuning with IM alone.

Ours: AdamW at a constant rate as for every method; only the head is re-initialised, the encoder stays; mixup
mixes standardised features, since mixed waveforms would be two people talking at once. The first half of the
epochs
distils, the second fine-tunes (the paper's 30 + 30 are ``epochs=60``), without early stopping. Where an epoch
spans
several tenths, its refresh counts as that many with the same predictions. Clips without an answer do not take
part in the KL until the first refresh, at which their M becomes the student's prediction; the other terms have
them from the start. With four classes, ``top=0`` saves the teacher's second choice from the smoothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, predict


def smooth(probs: np.ndarray, top: int) -> np.ndarray:
    """Keep the ``top`` highest probabilities (..., K) and spread the rest evenly over the other classes.

    Of equal probabilities the one of the earlier class is kept; with ``top`` 0, or K and above, all are.
    """
    classes = probs.shape[-1]
    if not 0 < top < classes:
        return probs
    order = np.argsort(-probs, axis=-1, kind="stable")
    highest = np.zeros(probs.shape, dtype=bool)
    np.put_along_axis(highest, order[..., :top], True, axis=-1)
    rest = 1 - np.where(highest, probs, 0).sum(axis=-1, keepdims=True)
    return np.where(highest, probs, rest / (classes - top))


def divergence(targets: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    """KL(targets || softmax(logits)), both (B, K), averaged over the clips with weight (B,) 1 instead of 0."""
    each = (torch.special.xlogy(targets, targets) - targets * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (weights * each).sum() / weights.sum().clamp_min(1)


class Dine(Method):
    """Distillation from a memory that moves from the teacher's to the student's predictions, then
    fine-tuning.

    Args:
        teacher: (U, K) its answers, NaN rows where there is none.
        epochs: of the whole run.
        top: how many probabilities of an answer are kept; 0 keeps the whole distribution.
        memory: share of M that a refresh keeps.
        mixup: both parameters of the Beta distribution; 0 leaves the term out.
        diversity_weight: of the diversity term, 1 in the paper.
        prior: (K,) class marginal that the diversity term pulls to; uniform, as in the paper, if None.
    """

    fresh = True

    def __init__(
        self,
        teacher: np.ndarray,
        epochs: int,
        *,
        top: int = 1,
        memory: float = 0.6,
        mixup: float = 0.3,
        diversity_weight: float = 1.0,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.terms = ("distillation", "entropy", "diversity", *(("mixup",) if mixup else ()))
        self.distilled = (epochs + 1) // 2
        self.memory, self.mixup = memory, mixup
        self.diversity_weight, self.prior = diversity_weight, prior
        self.distils = True
        # A row of zeros stands for no answer.
        answers = np.nan_to_num(smooth(teacher, top), nan=0.0)
        self.targets["memory"] = torch.from_numpy(answers.astype(np.float32))

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Refresh the memory if the epoch before ended a tenth of the distillation."""
        self.distils = epoch <= self.distilled
        tenths = 10 * (epoch - 1) // self.distilled - 10 * max(epoch - 2, 0) // self.distilled
        if not self.distils or not tenths:
            return
        probs = torch.from_numpy(predict(model, inputs))
        memory = self.targets["memory"].to(probs)
        mixed = torch.lerp(probs, memory, self.memory**tenths)
        self.targets["memory"] = torch.where(memory.any(dim=1, keepdim=True), mixed, probs)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Divergence from the memory, information maximisation, and mixup; fine-tuning has the second alone."""
        logits = batch.logits
        terms = dict.fromkeys(self.terms, logits.new_zeros(()))
        terms["entropy"] = soft_cross_entropy(logits, batch.probs)
        terms["diversity"] = self.diversity_weight * diversity(logits, self.prior)
        if self.distils:
            memory = self.targets["memory"][batch.index].to(logits)
            terms["distillation"] = divergence(memory, logits, memory.any(dim=1).to(logits))
            if self.mixup:
                terms["mixup"] = self._consistency(batch)
        return terms

    def _consistency(self, batch: Batch) -> Tensor:
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        partners = torch.randperm(len(batch.index)).to(batch.logits.device)
        features, probs = (
            share * mine + (1 - share) * mine[partners] for mine in (batch.features, batch.probs.detach())
        )
        return divergence(probs, batch.head(features), torch.ones_like(probs[:, 0]))
