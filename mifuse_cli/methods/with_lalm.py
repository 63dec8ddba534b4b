"""Any method plus cross-entropy to the audio-language model's mean answers.

For a fair comparison: a gain over a method without the LALM could be due to the LALM alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms


class WithLalm(Method):
    """A method with one additional loss term; everything else is that method's.

    Args:
        method: the other one.
        labels: (U, K) mean answers, NaN rows where there is none; those clips do not count in the term.
        weight: of the term.
    """

    def __init__(self, method: Method, *, labels: Tensor, weight: float = 1.0) -> None:
        super().__init__()
        self.method, self.weight = method, weight
        self.terms = (*method.terms, "lalm")
        self.teacher, self.fresh, self.rates = method.teacher, method.fresh, method.rates
        # One mapping for both, so that what is restored from the disk reaches the other method.
        self.targets = method.targets
        self.answered = ~labels.isnan().any(dim=1)
        self.labels = torch.where(self.answered[:, None], labels, 0)

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Renew the other method's targets."""
        self.method.begin_epoch(epoch, model, inputs)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The other method's terms, and cross-entropy to the answers, averaged over the clips with one."""
        labels, answered = (every[batch.index].to(batch.logits) for every in (self.labels, self.answered))
        term = self.weight * soft_cross_entropy(batch.logits, labels, answered)
        return {**self.method.loss(batch), "lalm": term}


def mean_with_lalm(probs: Tensor, answers: np.ndarray) -> Tensor:
    """Mean (U, K) of predictions (U, K) and mean answers (U, K), the prediction alone where these are NaN.

    What a method that trains nothing gets for its predictions if it is to use the model.
    """
    said = torch.from_numpy(answers).to(probs)
    return torch.where(said.isnan().any(dim=1, keepdim=True), probs, (probs + said) / 2)
