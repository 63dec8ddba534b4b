"""A student of fused labels; with ``refresh``, MI-Fuse (arXiv 2509.20706).

Loss: CE(fused label, p) + weight * KL(batch marginal || prior). With ``refresh``, a classifier teacher follows the
student by exponential moving average; every ``refresh`` epochs it is sampled anew with dropout, its mean and mutual
information are renewed, and the labels are fused again. The audio-language models' answers stay as they were.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import fusion, provenance
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.methods.teachers import Teachers
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, sample


class FusedLabels(Method):
    """Targets and loss.

    Args:
        teachers: the fused labels, and what they were fused from.
        refresh: epochs between two fusions; 0 keeps the labels as they are, without an EMA teacher.
        diversity_weight: of the diversity term.
        diversity_prior: "uniform", or "labels" for the mean of the fused labels.
        seed: of the teacher's dropout passes.
    """

    terms = ("cross_entropy", "diversity")

    def __init__(
        self, teachers: Teachers, *, refresh: int, diversity_weight: float, diversity_prior: str, seed: int
    ) -> None:
        super().__init__()
        self.teacher = refresh > 0
        self.settings, self.passes = teachers.settings, teachers.passes
        self.mean, self.mi = teachers.mean.astype(np.float64), teachers.mi.astype(np.float64)
        self.refresh, self.seed = refresh, seed
        self.diversity_weight, self.diversity_prior = diversity_weight, diversity_prior
        self.targets = {"fused": torch.from_numpy(teachers.probs.astype(np.float32))}

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Sample the teacher and fuse again, in epochs 1 + refresh, 1 + 2 refresh, ...

        Epoch 1 takes the labels as they were given: the teacher has not moved since.
        """
        if not self.refresh or epoch == 1 or (epoch - 1) % self.refresh:
            return
        seed = provenance.named_seed(self.seed, "teacher", epoch)
        samples = sample(model, inputs, self.passes, seed).astype(np.float64)
        self.mean[:, -1], self.mi[:, -1] = fusion.mean_and_mi(samples, self.settings.mi_estimator)
        _, fused = fusion.fuse_means(self.mean, self.mi, self.settings)
        self.targets["fused"] = torch.from_numpy(fused.astype(np.float32))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the fused labels and the weighted diversity term."""
        logits = batch.logits
        fused = self.targets["fused"].to(logits)
        prior = fused.mean(dim=0) if self.diversity_prior == "labels" else None
        return {
            "cross_entropy": soft_cross_entropy(logits, fused[batch.index]),
            "diversity": self.diversity_weight * diversity(logits, prior),
        }
