"""TENT (Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021).

Loss: mean_i H(p_i), without a diversity term: on targets with an uneven class marginal predictions drift
towards the most frequent class, the more so the longer it runs. Only the scale and the shift of the
standardised features are trained; the standardisation itself is the feature normalisation of the run.

Ours: any number of epochs, with predictions made afterwards; the original is online, with a single
pass in which every batch is predicted as it comes (one epoch comes closest). AdamW as for every method, whose
weight decay also reaches the scale (the original has none), and dropout is active while training. An encoder
has to stay frozen.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import soft_cross_entropy


class Tent(Method):
    """Entropy of the predictions, minimised by scale and shift alone."""

    terms = ("entropy",)
    rates: Mapping[str, float] = {"mix": 0.0, "hidden": 0.0, "out": 0.0, "scale": 1.0, "shift": 1.0}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean entropy of the predictions, the gradient going through both of its factors."""
        return {"entropy": soft_cross_entropy(batch.logits, batch.probs)}
