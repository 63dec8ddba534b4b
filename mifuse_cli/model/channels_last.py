"""Convolutions over time that keep the channels of a frame side by side.

torch keeps the frames of a channel side by side, (B, C, T), while kernels of GPUs and norms over channels want it the
other way round: each convolution on a waveform would copy its input and its output, which are the largest tensors of an
encoder.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ChannelsLast(nn.Conv1d):
    """The same weights and the same output (B, C, T), which lies in memory as (B, T, C)."""

    def forward(self, input: Tensor) -> Tensor:
        """Output (B, C, T) of input (B, I, S), without padding."""
        one_row = input[:, :, None].contiguous(memory_format=torch.channels_last)
        # A clone, since a single channel counts as contiguous in any layout, and its strides would tell torch of none.
        weight = self.weight[:, :, None].clone(memory_format=torch.channels_last)
        return nn.functional.conv2d(one_row, weight, self.bias, (1, *self.stride))[:, :, 0]


def keep_channels_last(convolutions: Iterable[nn.Module]) -> None:
    """Let these convolutions of a loaded model be computed so; names and values of their weights stay."""
    for module in convolutions:
        if type(module) is nn.Conv1d:
            module.__class__ = ChannelsLast
