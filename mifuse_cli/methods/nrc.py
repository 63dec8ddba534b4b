"""NRC (Yang et al., "Exploiting the Intrinsic Neighborhood Structure", NeurIPS 2021).

Loss: - mean_i [ sum_k A_ik <S_k, p_i> + w sum_k sum_m <S_m, p_i> ] + KL(batch marginal || prior), k over the
neighbours of clip i, m over those of k, S the predictions in the bank. A_ik is 1 where i is among the neighbours
of k as well, else w. Clip i itself may be among the m, which acts as self-regularisation without a separate
term.

Ours: AdamW as for every method, one number of neighbours throughout (the paper's scripts change it by data set,
and once halfway), the bank's predictions without dropout. With few classes and many clips of each, larger
neighbourhoods than 5 may serve better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mifuse_cli.methods.bank import Banked, nearest
from mifuse_cli.methods.loop import Batch
from mifuse_cli.methods.losses import diversity


class Nrc(Banked):
    """Agreement with neighbours and their neighbours, and diversity.

    Args:
        neighbours: N, of a clip.
        expanded: M, of a neighbour; also those among which a clip must be for full affinity.
        weight: w, of neighbours that are not mutual and of their neighbours.
        diversity_weight: of the diversity term, 1 in the paper.
        prior: (K,) class marginal that the diversity term pulls to; uniform, as in the paper, if None.
    """

    terms = ("neighbours", "expanded", "diversity")

    def __init__(
        self,
        *,
        neighbours: int = 5,
        expanded: int = 5,
        weight: float = 0.1,
        diversity_weight: float = 1.0,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.neighbours, self.expanded, self.weight = neighbours, expanded, weight
        self.diversity_weight, self.prior = diversity_weight, prior

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Minus the weighted agreement with neighbours and with theirs, and diversity."""
        index, logits, probs = self.remember(batch), batch.logits, batch.probs
        units, said = self.targets["units"], self.targets["probs"]
        near = nearest(units, index, self.neighbours)
        # Clips of a batch share neighbours, whose own are looked up once.
        distinct, place = near.unique(return_inverse=True)
        beyond = nearest(units, distinct, self.expanded)[place]
        mutual = (beyond == index[:, None, None]).any(dim=-1)
        affinity = torch.where(mutual, 1.0, self.weight).to(probs)
        pull = torch.einsum("bn,bnk->bk", affinity, said[near])
        return {
            "neighbours": -(pull * probs).sum(dim=-1).mean(),
            "expanded": -self.weight * (said[beyond].sum(dim=(1, 2)) * probs).sum(dim=-1).mean(),
            "diversity": self.diversity_weight * diversity(logits, self.prior),
        }
