"""SHOT (Liang, Hu and Feng, "Do We Really Need to Access the Source Data?", ICML 2020).

Loss: mean_i H(p_i) + KL(batch marginal || prior) + beta * CE(pseudo-label, p). The first two are information
maximisation: with a uniform prior the second is log K - H(batch marginal). The classifier layer stays that of
the source model; the layers below are adapted to it. Without pseudo-labels, beta = 0, this is SHOT-IM.

Ours: AdamW as for every method, and the head's hidden units (no batch normalisation, no weight normalisation of
the classifier) as the features that pseudo-labels come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from mifuse_cli.errors import InputError
from mifuse_cli.methods.bank import predicted
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, units


def pseudo_labels(units: Tensor, probs: Tensor, threshold: int = 0) -> Tensor:
    """Classes of the nearest centroids by cosine, in two rounds.

    The centroids of the first round are means weighted by the probabilities, those of the second are means of
    the first round's classes. In each round, only classes assigned to more than ``threshold`` clips so far
    (by highest probability, then by the first round) are candidates.

    Args:
        units: (U, H).
        probs: (U, K).
        threshold: see above; 0 in the paper, 10 for targets that lack some of the classes.

    Returns:
        (U,) class indices.

    Raises:
        InputError: no class has that many clips.
    """
    points = normalize(torch.cat([units, torch.ones_like(units[:, :1])], dim=1), dim=1)
    shares, labels = probs, probs.argmax(dim=1)
    for _ in range(2):
        counts = torch.bincount(labels, minlength=probs.shape[1])
        candidates = torch.nonzero(counts > threshold).flatten()
        if not len(candidates):
            raise InputError(
                f"no class is predicted for more than {threshold} of {len(labels)} clips, so that there is "
                "none to give as a pseudo-label; take a lower threshold"
            )
        # A cosine does not depend on a centroid's length: sums serve as well as means.
        centroids = normalize(shares.T @ points, dim=1)[candidates]
        labels = candidates[(points @ centroids.T).argmax(dim=1)]
        shares = one_hot(labels, probs.shape[1]).to(points)
    return labels


class Shot(Method):
    """Information maximisation and pseudo-labels, renewed every epoch, under a frozen classifier.

    Args:
        beta: weight of the cross-entropy to the pseudo-labels; 0 leaves them out.
        threshold: of `pseudo_labels`.
        diversity_weight: of the diversity term, 1 in the paper.
        prior: (K,) class marginal that the diversity term pulls to; uniform, as in the paper, if None.
    """

    rates: Mapping[str, float] = {**Method.rates, "out": 0.0}

    def __init__(
        self,
        *,
        beta: float = 0.3,
        threshold: int = 0,
        diversity_weight: float = 1.0,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.terms = ("entropy", "diversity", "pseudo_labels") if beta else ("entropy", "diversity")
        self.beta, self.threshold = beta, threshold
        self.diversity_weight, self.prior = diversity_weight, prior

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Give every clip a new pseudo-label."""
        if self.beta:
            hidden = units(model, inputs)
            probs = predicted(model.head, hidden)
            self.targets["pseudo_labels"] = pseudo_labels(hidden, probs, self.threshold)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Entropy of the predictions, diversity, and cross-entropy to the pseudo-labels."""
        logits = batch.logits
        terms = {
            "entropy": soft_cross_entropy(logits, batch.probs),
            "diversity": self.diversity_weight * diversity(logits, self.prior),
        }
        if self.beta:
            labels = self.targets["pseudo_labels"][batch.index].to(logits.device)
            terms["pseudo_labels"] = self.beta * cross_entropy(logits, labels)
        return terms
