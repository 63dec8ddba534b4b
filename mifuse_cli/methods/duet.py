"""DUET (Dual-perspective pseudo labeling and Uncertainty-aware Exploration & exploitation Training, NeurIPS 2025),
the student's part.

Loss: 0.4 * CE(label, p) over the clips with a label + 0.4 * KL(q || p) + 0.2 * KL(p' || p), where q is the
audio-language model's mean answer and p, p' are the student's predictions of two views. A clip has a label from the
first time on that the student and the model agree on its class; it is the class of the mean of both. Agreement is
looked for at the start of each of 4 cycles. The classifier layer stays that of the source model. Equations and
weights are those of the authors' code for Office-Home (4 cycles; VisDA: 8); the paper's text was not at hand.

Left out: between two cycles the original also tunes the vision-language model's image encoder, by Tsallis mutual
information with an index that adapts to uncertainty. An API has no gradients: q stays as it is.

Ours: AdamW at a constant rate as for every method; the two views are the prediction without dropout (p', no
gradient flows into it) and that with it, since augmented waveforms would need the encoder; KL divergences are
computed as cross-entropies, which differ by a constant. Clips without an answer have neither label nor q.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mifuse_cli.methods.bank import predicted
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, predict


class Duet(Method):
    """Labels where student and audio-language model agree, its answers, and consistency under dropout.

    Args:
        lalm: (U, K) mean answers, NaN rows where there is none.
        epochs: of the whole run.
        cycles: number of times that agreement is looked for; once an epoch if there are fewer epochs.
        pseudo_labels, answers, consistency: weights of the loss terms.
    """

    terms = ("pseudo_labels", "lalm", "consistency")
    rates: Mapping[str, float] = {**Method.rates, "out": 0.0}

    def __init__(
        self,
        lalm: np.ndarray,
        epochs: int,
        *,
        cycles: int = 4,
        pseudo_labels: float = 0.4,
        answers: float = 0.4,
        consistency: float = 0.2,
    ) -> None:
        super().__init__()
        self.epochs, self.cycles = epochs, cycles
        self.pseudo_labels, self.answers, self.consistency = pseudo_labels, answers, consistency
        answered = ~np.isnan(lalm).any(axis=1)
        self.answered = torch.from_numpy(answered)
        self.lalm = torch.from_numpy(np.where(answered[:, None], lalm, 0).astype(np.float32))
        self.targets["agreed"] = torch.zeros(len(lalm), dtype=torch.bool)

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Look for further clips on which both agree, if a cycle starts."""
        if epoch > 1 and self.cycles * (epoch - 1) // self.epochs == self.cycles * (epoch - 2) // self.epochs:
            return
        probs = torch.from_numpy(predict(model, inputs))
        agree = self.answered & (probs.argmax(dim=1) == self.lalm.argmax(dim=1))
        self.targets["agreed"] = self.targets["agreed"] | agree
        self.targets["labels"] = (probs + self.lalm).argmax(dim=1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the labels, to the answers, and to the predictions without dropout."""
        logits, index = batch.logits, batch.index
        labels = one_hot(self.targets["labels"][index], logits.shape[1]).to(logits)
        agreed, answered, lalm = (
            every[index].to(logits) for every in (self.targets["agreed"], self.answered, self.lalm)
        )
        steady = predicted(batch.head, batch.units)
        return {
            "pseudo_labels": self.pseudo_labels * soft_cross_entropy(logits, labels, agreed),
            "lalm": self.answers * soft_cross_entropy(logits, lalm, answered),
            "consistency": self.consistency * soft_cross_entropy(logits, steady),
        }
