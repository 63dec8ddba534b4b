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
    """A convolution whose output (B, C, T) lies in memory as (B, T, C); without padding, dilation and groups."""

    def forward(self, input: Tensor) -> Tensor:
        """Output (B, C, T) of input (B, I, S)."""
        one_row = input[:, :, None].contiguous(memory_format=torch.channels_last)
        # A clone: with a single channel, `contiguous` would return the weight itself, and torch take the other layout.
        weight = self.weight[:, :, None].clone(memory_format=torch.channels_last)
        return nn.functional.conv2d(one_row, weight, self.bias, (1, *self.stride))[:, :, 0]


def keep_channels_last(convolutions: Iterable[nn.Module]) -> None:
    """Turn those of a loaded model that can be into `ChannelsLast`, in place; names and values of weights stay."""
    for module in convolutions:
        if type(module) is nn.Conv1d and (module.padding, module.dilation, module.groups) == ((0,), (1,), 1):
            module.__class__ = ChannelsLast
