"""RCL (Chen et al., "Empowering Source-Free Domain Adaptation via MLLM-Guided Reliability-Based Curriculum
Learning", WACV 2026, arXiv 2405.18376).

Several voters name the class of each clip. It is reliable if all name the same, less reliable if more than half do,
else unreliable. Loss: CE(label, p), in three stages:

1. Reliable clips alone, with the class that was named.
2. The less reliable ones too. The label is the student's own class where its probability is 0.7 or more, else the
   class of the majority.
3. All clips. The label is the student's own class where its probability is 0.9 or more, else the most probable of the
   classes that were named (the multi-hot mask). To this comes 0.5 * CE(own class, p) of a second view.

Stages, thresholds and weights are those of the authors' code for Office-Home; the stages share the epochs as 3 : 5 : 8,
as their steps do there.

Ours: the voters are the single answers of the audio-language models and the source model (the paper's are three
multimodal language models with one answer each). Answers of one model are not independent, so that agreement says
less than in the paper. A clip without an answer, on which the source model votes alone, is unreliable. AdamW at a
constant rate as for every method (the original: a tenth of it from the second stage on). The first view is the
prediction without dropout, which gives own classes and their probabilities, the second the one with dropout; with no
augmentation both losses are of the second view. The student is that of the last epoch (the original: of every stage
the best one by target labels).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from mifuse_cli.methods.bank import predicted
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms

_ENDS = (3 / 16, 8 / 16)
"""Ends of the first two stages, as shares of the epochs."""


def reliability(votes: np.ndarray) -> np.ndarray:
    """Stage (U,) from which on a clip is trained on: 1 reliable, 2 less reliable, 3 unreliable.

    Args:
        votes: (U, K) number of voters that named a class.
    """
    total, most = votes.sum(axis=1), votes.max(axis=1)
    stage = np.where(most > total - 1e-6, 1, np.where(most > total / 2, 2, 3))
    return np.where(total < 2, 3, stage)


class Rcl(Method):
    """Labels of voters and of the student itself, from reliable to unreliable clips.

    Args:
        votes: (U, K) number of voters that named a class; a vote may be shared by several.
        epochs: of the whole run.
        thresholds: probability from which on the student's own class is the label, in stages 2 and 3.
        consistency: weight of the cross-entropy to the student's own classes in stage 3.
    """

    terms = ("pseudo_labels", "consistency")

    def __init__(
        self,
        votes: np.ndarray,
        epochs: int,
        *,
        thresholds: tuple[float, float] = (0.7, 0.9),
        consistency: float = 0.5,
    ) -> None:
        super().__init__()
        self.epochs, self.thresholds, self.consistency = epochs, thresholds, consistency
        self.from_stage = torch.from_numpy(reliability(votes))
        self.votes = torch.from_numpy(votes)
        self.stage = 1

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Enter the stage of the epoch."""
        self.stage = 1 + sum((epoch - 1) / self.epochs >= end for end in _ENDS)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the stage's labels, and in the last stage to the student's own classes."""
        logits, index = batch.logits, batch.index
        votes, from_stage = (every[index].to(logits.device) for every in (self.votes, self.from_stage))
        steady = predicted(batch.head, batch.units)
        own = steady.argmax(dim=1)
        labels = votes.argmax(dim=1) if self.stage < 3 else (steady * (votes > 0)).argmax(dim=1)
        if self.stage > 1:
            sure = steady.amax(dim=1) >= self.thresholds[self.stage - 2]
            labels = torch.where(sure, own, labels)
        taken = (from_stage <= self.stage).to(logits)
        targets = one_hot(labels, logits.shape[1]).to(logits)
        terms = dict.fromkeys(self.terms, logits.new_zeros(()))
        terms["pseudo_labels"] = soft_cross_entropy(logits, targets, taken)
        if self.stage == 3:
            terms["consistency"] = self.consistency * cross_entropy(logits, own)
        return terms
