"""The upper bound: supervised training on the labels of the target, which no adaptation method may use."""

from __future__ import annotations

from torch import Tensor

from mifuse_cli.methods.supervised import Supervised


class Oracle(Supervised):
    """Cross-entropy to the target's labels, from the source weights, every class with the same total weight.

    Args:
        labels: (U,) class indices.
        classes: K, which may be more than occur in the target.
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        super().__init__(labels, classes, smoothing=0.0)
