"""A memory of all clips, for methods in which a clip learns from its neighbours: hidden units and predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.model.classifier import Classifier, Features, Head, Waveforms, units

# Entries of the similarity matrix computed at a time: 64 MB in single precision.
_CELLS = 1 << 24


@torch.no_grad()
def predicted(head: Head, units: Tensor) -> Tensor:
    """Probabilities (B, K) of hidden units (B, H) without dropout, whatever mode the head is in."""
    return head.output(units).softmax(dim=-1)


def nearest(bank: Tensor, index: Tensor, count: int) -> Tensor:
    """The nearest other clips by cosine, nearest first.

    A clip is left out of its own neighbours by its position in the bank, not as the first one found: clips
    with the same units are neighbours like any other.

    Args:
        bank: (U, H) of unit length.
        index: (Q,) positions of the clips to find neighbours of.
        count: N; U - 1 if that is less.

    Returns:
        (Q, N) positions.
    """
    found = []
    for part in index.split(max(1, _CELLS // len(bank))):
        similarity = bank[part] @ bank.T
        similarity.scatter_(1, part[:, None], -torch.inf)
        found.append(similarity.topk(min(count, len(bank) - 1), dim=1).indices)
    return torch.cat(found)


class Banked(Method):
    """A method with two banks over all clips: `units` (U, H) of unit length and `probs` (U, K).

    They are filled before the first epoch, and every batch replaces the entries of its clips by their current
    values before it searches for neighbours. Predictions in the bank are always made without dropout. No
    gradient flows into the banks.
    """

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Fill the banks in epoch 1; later epochs continue with the banks of the epoch before, or with those
        restored from disk.
        """
        if epoch == 1:
            hidden = units(model, inputs)
            self.targets["units"] = normalize(hidden, dim=1)
            self.targets["probs"] = predicted(model.head, hidden)
        for name in ("units", "probs"):
            self.targets[name] = self.targets[name].to(model.head.mix.device)

    def remember(self, batch: Batch) -> Tensor:
        """Put the batch's values into the banks; returns its positions (B,) on their device."""
        index = batch.index.to(batch.logits.device)
        self.targets["units"][index] = normalize(batch.units.detach(), dim=1)
        self.targets["probs"][index] = predicted(batch.head, batch.units)
        return index
