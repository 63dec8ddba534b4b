"""T3A (Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization",
NeurIPS 2021).

Nothing is trained: the weights of the classifier layer become class centroids. The support set of class k holds
the layer's own weight w_k and the hidden units of the clips that are predicted as k, all of unit length. The M
supports of lowest entropy are kept, c_k is their sum, and the logit of class k is <z, c_k> / |c_k|, without a bias.

Ours: one pass, after which all clips are predicted from the same supports (the original is online: a clip is
predicted from those before it). The paper chooses M from 1, 5, 20, 50, 100 and no limit by source data, which are
gone here: ours is 100, so that classes with fewer clips than that are not filtered at all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.special import entr

from mifuse_cli.methods.bank import predicted
from mifuse_cli.model.classifier import Head


@torch.no_grad()
def adjust(head: Head, units: Tensor, probs: Tensor, *, keep: int = 100) -> float:
    """Replace the classifier layer of the head by the centroids of its support sets.

    Args:
        head: changed in place.
        units: (U, H) hidden units of the clips.
        probs: (U, K) predictions that give the clips their classes and entropies.
        keep: M, supports of a class.

    Returns:
        Mean entropy of the supports that were kept, in nats.
    """
    own = head.out.weight
    supports = normalize(torch.cat([own, units]), dim=1)
    entropies = entr(torch.cat([predicted(head, own), probs])).sum(dim=1)
    labels = torch.cat([torch.arange(len(own), device=own.device), probs.argmax(dim=1)])
    order = entropies.argsort(stable=True)
    kept = [order[labels[order] == k][:keep] for k in range(len(own))]
    own.copy_(normalize(torch.stack([supports[index].sum(dim=0) for index in kept]), dim=1))
    head.out.bias.zero_()
    return float(entropies[torch.cat(kept)].mean())
