"""AaD (Yang et al., "Attracting and Dispersing", NeurIPS 2022).

Loss: mean_i [ - sum_k <S_k, p_i> + alpha_t * sum_j <p_i, p_j> ], k over the neighbours of clip i in the bank of
predictions S, j over the other clips of the batch, alpha_t = alpha (1 + 10 t/T)^-beta. There is no term for the
class marginal; dispersion does that work.

Ours: AdamW as for every method; t counts epochs from 0 (the paper: steps), T is their number; the bank's
predictions are those without dropout. The paper's sum over j grows with the batch: by default it is divided by
B - 1, and alpha is the number of neighbours, so that attraction to the mean neighbour and repulsion from the
batch mean have equal strength; with a much smaller alpha a class can vanish. The paper's setting is
``alpha=1, normalise=False``
with beta from 0 to 5.
"""

from __future__ import annotations

from torch import Tensor

from mifuse_cli.methods.bank import Banked, nearest
from mifuse_cli.methods.loop import Batch
from mifuse_cli.model.classifier import Classifier, Features, Waveforms


class Aad(Banked):
    """Attraction to neighbours and dispersion of the batch.

    Args:
        epochs: T, of the whole run.
        neighbours: of a clip.
        alpha: weight of the dispersion at first.
        beta: how fast that weight decays; 0 keeps it.
        normalise: whether the dispersion is divided by B - 1, which makes it the same for any batch size.
    """

    terms = ("attraction", "dispersion")

    def __init__(
        self,
        *,
        epochs: int,
        neighbours: int = 5,
        alpha: float = 5.0,
        beta: float = 0.0,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.epochs, self.neighbours = epochs, neighbours
        self.alpha, self.beta, self.normalise = alpha, beta, normalise
        self.weight = alpha

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Fill the banks in epoch 1; decay the weight of the dispersion."""
        super().begin_epoch(epoch, model, inputs)
        self.weight = self.alpha * (1 + 10 * (epoch - 1) / self.epochs) ** -self.beta

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Minus the agreement with the neighbours, and the weighted agreement within the batch."""
        index, probs = self.remember(batch), batch.probs
        near = nearest(self.targets["units"], index, self.neighbours)
        pull = self.targets["probs"][near].sum(dim=1)
        pairs = probs.sum(dim=0).square().sum() - probs.square().sum()
        others = max(len(probs) - 1, 1) if self.normalise else 1
        return {
            "attraction": -(pull * probs).sum(dim=-1).mean(),
            "dispersion": self.weight * pairs / (len(probs) * others),
        }
