"""Clips in batches of nearly the same length, since what is padded is computed in vain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn

_Item = TypeVar("_Item")

MOST_PADDING = 0.05
"""Share of a batch that may be padding."""
_ON_A_GPU_S = 120.0
_LOOK_AHEAD = 1024
"""Clips among which those of nearly the same length are looked for: enough to find them, few enough to hold."""


def batch_seconds(device: torch.device) -> float:
    """Audio in a batch, in seconds: on a CPU what its caches hold, on a GPU what keeps it busy and fits into it."""
    if device.type == "cpu":
        return 16.0
    if device.type != "cuda" or not torch.cuda.is_available():  # or the GPU is that of another machine
        return _ON_A_GPU_S
    memory = torch.cuda.get_device_properties(device).total_memory
    # Of 480 s, a network of the size of WavLM-large holds 12 GiB.
    return min(480.0, max(_ON_A_GPU_S, 6 * memory / 2**30))


def alike(lengths: Sequence[float], most: float, padding: float = MOST_PADDING) -> list[list[int]]:
    """Positions of clips batch by batch, the longest first.

    Args:
        lengths: of the clips, in any unit.
        most: total of a batch in that unit, padding included; a longer clip is a batch of its own.
        padding: largest share of padding in a batch; 0: clips of a batch are equally long.
    """
    found: list[list[int]] = []
    total = 0.0
    for position in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        if found:
            full = (len(found[-1]) + 1) * lengths[found[-1][0]]
            if full <= most and full - total - lengths[position] <= padding * full:
                found[-1].append(position)
                total += lengths[position]
                continue
        found.append([position])
        total = lengths[position]
    return found


def batches(
    items: Iterable[_Item], length: Callable[[_Item], float], most: float
) -> Iterator[tuple[list[_Item], list[float]]]:
    """Batches of `alike` items and their lengths; no more than the next 1,024 items are looked at.

    Args:
        items: taken as they are needed.
        length: of an item.
        most: total length of a batch, padding included.
    """
    rest = iter(items)
    while near := list(islice(rest, _LOOK_AHEAD)):
        lengths = [length(one) for one in near]
        for positions in alike(lengths, most):
            yield [near[one] for one in positions], [lengths[one] for one in positions]


def padded_to(lengths: Sequence[float]) -> float:
    """Total length of a batch of clips with these lengths, padding included."""
    return len(lengths) * max(lengths)


def in_batches(
    network: Callable[[list[Tensor]], Tensor], clips: Sequence[Tensor], most: float, padding: float
) -> Tensor:
    """What a network makes of B clips, (B, ...) in their order.

    Args:
        network: is given clips (S,) of nearly the same length S, in the sense of `alike`, and gives a row for each.
        clips: of any lengths.
        most: total of a batch in samples, padding included; a longer clip is a batch of its own.
        padding: largest share of padding in a batch; 0: clips of a batch are equally long.
    """
    rows: dict[int, Tensor] = {}
    for positions in alike([len(one) for one in clips], most, padding):
        rows.update(zip(positions, network([clips[one] for one in positions]), strict=True))
    return torch.stack([rows[position] for position in range(len(clips))])


def stacked(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows (S, ...) with zeros behind them up to the longest, (B, S, ...) on the device.

    On a GPU it is copied while the caller goes on.
    """
    return _moved(nn.utils.rnn.pad_sequence(list(rows), batch_first=True), device)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def frame_mask(frames: Sequence[int], device: torch.device, whole: int = 0) -> Tensor | None:
    """Which of T frames each of B clips has, (B, T) bool; None if all have all of them.

    Args:
        frames: of each clip.
        device: of the mask.
        whole: T; 0: that of the longest clip.
    """
    whole = whole or max(frames)
    if min(frames) == whole:
        return None
    return torch.arange(whole, device=device) < _moved(torch.tensor(frames), device)[:, None]


def time_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B, D) over the frames that a `frame_mask` has, of hidden states (B, T, D), in float32."""
    exact = hidden.float()
    if mask is None:
        return exact.mean(dim=1)
    return _total(exact, mask) / mask.sum(dim=1, keepdim=True)


def time_std(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Standard deviation (B, D), of a sample, over the same frames as `time_mean`, in float32."""
    exact = hidden.float()
    if mask is None:
        return exact.std(dim=1)
    squares = (exact - time_mean(exact, mask)[:, None]).square()
    variance = _total(squares, mask) / (mask.sum(dim=1, keepdim=True) - 1)
    # As torch has it: where all values are equal, the gradient is 0 and not that of a root at 0.
    constant = variance == 0
    return variance.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)


def attentive_mean(hidden: Tensor, mask: Tensor | None, query: Tensor) -> Tensor:
    """Mean (B, D) of hidden states (B, T, D), weighted by the softmax of their products with a query (D,), in float32.

    Safari et al., Interspeech 2020; with a query of zeros, as `time_mean`.
    """
    exact = hidden.float()
    with torch.autocast(exact.device.type, enabled=False):
        scores = exact @ query
    if mask is not None:
        exact, scores = exact.masked_fill(~mask[:, :, None], 0), scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=1)[:, :, None] * exact).sum(dim=1)


def _total(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask[:, :, None], 0).sum(dim=1)


def strided(frames: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Frames that a convolution makes of ``frames``."""
    return math.floor((frames + 2 * padding - kernel) / stride) + 1
