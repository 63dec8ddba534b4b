"""Group norm over the frames of a clip, without the padding behind it.

wav2vec2-base and its like normalise every channel of the first convolution over all of a clip's frames (Wu and He,
ECCV 2018), so that padding would change every frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClipNorm(nn.GroupNorm):
    """Group norm with statistics of each clip's own frames.

    Attributes:
        frames: how many of the frames each of B clips has; None: all of them.
    """

    frames: Sequence[int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T) of the same shape; zeros behind a clip's frames."""
        if self.frames is None:
            return super().forward(input)
        whole = input.shape[2]
        parts = [
            super(ClipNorm, self).forward(clip[None, :, :own])
            for clip, own in zip(input, self.frames, strict=True)
        ]
        return torch.cat([nn.functional.pad(part, (0, whole - part.shape[2])) for part in parts])


def by_clip(convolutions: nn.Module) -> list[ClipNorm]:
    """The group norms among convolutions, which from here on follow `frames`; names and values of weights stay."""
    for module in convolutions.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = ClipNorm
    return [module for module in convolutions.modules() if isinstance(module, ClipNorm)]
