"""MI-Fuse (arXiv 2509.20706): a student of labels fused from an audio-language model and a classifier.

Loss: CE(fused label, p) + weight * KL(batch marginal || prior). The classifier teacher follows the student by
exponential moving average; every ``refresh`` epochs it is sampled anew with dropout, its mean and mutual
information are renewed, and the labels are fused again. The audio-language models' answers stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import fusion, provenance
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, sample


@dataclass(frozen=True)
class FusedOptions:
    """How labels are fused again, and how the loss is made up.

    Attributes:
        weighting, tau, pool, sharpen, estimator: as in `fusion`, taken from the fused artifact.
        passes: dropout passes of the teacher at a refresh.
        refresh: epochs between refreshes; 0 keeps the labels of the artifact.
        diversity_weight: of the diversity term.
        diversity_prior: "uniform", or "labels" for the mean of the fused labels.
        seed: of the dropout passes.
    """

    weighting: str
    tau: float
    pool: str
    sharpen: float
    estimator: str
    passes: int
    refresh: int
    diversity_weight: float
    diversity_prior: str
    seed: int


class FusedLabels(Method):
    """Targets and loss of MI-Fuse.

    Args:
        probs: (U, K) fused labels to start with.
        mean: (U, T, K) mean distributions of the teachers, NaN where silent; the last one is the classifier.
        mi: (U, T) their mutual information.
        options: see `FusedOptions`.
    """

    terms = ("cross_entropy", "diversity")
    teacher = True

    def __init__(self, probs: np.ndarray, mean: np.ndarray, mi: np.ndarray, options: FusedOptions) -> None:
        super().__init__()
        self.options = options
        self.mean, self.mi = mean.astype(np.float64), mi.astype(np.float64)
        self.targets = {"fused": torch.from_numpy(probs.astype(np.float32))}

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Sample the teacher and fuse again, in epochs 1 + refresh, 1 + 2 refresh, ...

        Epoch 1 takes the labels of the artifact: the teacher has not moved since.
        """
        options = self.options
        if not options.refresh or epoch == 1 or (epoch - 1) % options.refresh:
            return
        seed = provenance.named_seed(options.seed, "teacher", epoch)
        samples = sample(model, inputs, options.passes, seed).astype(np.float64)
        self.mean[:, -1], self.mi[:, -1] = fusion.mean_and_mi(samples, options.estimator)
        _, fused = fusion.fuse(
            self.mean,
            self.mi,
            weighting=options.weighting,
            tau=options.tau,
            pool=options.pool,
            sharpen=options.sharpen,
        )
        self.targets["fused"] = torch.from_numpy(fused.astype(np.float32))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the fused labels and the weighted diversity term."""
        logits = batch.logits
        fused = self.targets["fused"].to(logits)
        uniform = torch.full_like(fused[0], 1 / fused.shape[1])
        prior = uniform if self.options.diversity_prior == "uniform" else fused.mean(dim=0)
        return {
            "cross_entropy": soft_cross_entropy(logits, fused[batch.index]),
            "diversity": self.options.diversity_weight * diversity(logits, prior),
        }
