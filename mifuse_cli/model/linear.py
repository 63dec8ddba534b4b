"""The linear part of a head: ridge regression of labels on all layers that the head sees.

U clips, K classes, L layers of D features, P = L D; the regression is on the features divided by sqrt(P). It is fitted
in closed form, in the dual (U, U) or the primal (P, P), whichever is smaller. No argument of this module carries a true
label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1.0
_SLOPES = torch.logspace(-0.3, 2, 40, dtype=torch.float64)
_CENTRES = 0.5
"""Ridge, in clips, of the class means."""


class LinearPart(nn.Module):
    """Logits that are linear in the features; constants, which no optimiser changes.

    Attributes:
        weight, bias: (K, L, D) and (K,); zero before `fit`.
        means: (K, L, D) mean features by label: of clips with the labels p (U, K), they are sum_k mean(p_k) means[k].
    """

    weight: Tensor
    bias: Tensor
    means: Tensor

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, layers, width))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("means", torch.zeros(classes, layers, width))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of standardised features (B, L, D)."""
        return torch.einsum("kld,bld->bk", self.weight, features) + self.bias

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Fit to the labels.

        Ridge regression predicts probabilities, not logits. Its scores are multiplied by the slope that maximises the
        likelihood of the labels (Platt scaling), by scores of every clip that are fitted to the labels of the others,
        so that the slope is not inflated by overfitting.

        Args:
            features: (U, L, D) standardised.
            labels: (U, K).
        """
        clips, layers, width = features.shape
        values = features.reshape(clips, -1).double() / (layers * width) ** 0.5
        labels = labels.to(values)
        centre, prior = values.mean(dim=0), labels.mean(dim=0)
        values, targets = values - centre, labels - prior
        coefficients, leverage = _ridge(values, targets)
        residual = (targets - values @ coefficients) / (1 - leverage - 1 / clips)[:, None]
        likelihood = [(labels * ((labels - residual) * slope).log_softmax(dim=1)).sum() for slope in _SLOPES]
        slope = _SLOPES[int(torch.stack(likelihood).argmax())].item()
        self.weight.copy_((slope * coefficients.T).reshape(self.weight.shape) / (layers * width) ** 0.5)
        self.bias.copy_(slope * (prior - centre @ coefficients))
        # By regression: means weighted by soft labels would be too close to each other.
        spread = targets.T @ targets
        spread.diagonal().add_(_CENTRES)
        offsets = torch.linalg.solve(spread, targets.T @ values)
        means = centre + offsets - prior @ offsets
        self.means.copy_(means.reshape(self.means.shape) * (layers * width) ** 0.5)

    def halve(self) -> None:
        """Divide its logits by 2."""
        self.weight /= 2
        self.bias /= 2

    def unexplained(self, features: Tensor, probs: Tensor) -> Tensor:
        """Mean (L, D) of the features (U, L, D) less that of clips with these class probabilities (U, K)."""
        return features.mean(dim=0) - torch.einsum("k,kld->ld", probs.mean(dim=0), self.means)


def _ridge(values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (P, K) of the regression of targets (U, K) on centred values (U, P), and leverage (U,) of clips."""
    dual = len(values) <= values.shape[1]
    inner = values @ values.T if dual else values.T @ values
    inner.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    if dual:
        return values.T @ (inverse @ targets), 1 - RIDGE * inverse.diagonal()
    return inverse @ (values.T @ targets), ((values @ inverse) * values).sum(dim=1)
