"""Clips read, resampled and encoded by a frozen network, in batches of nearly the same length.

On a CPU, every process reads and encodes batches on one thread. On a GPU, the other processes read, and this one feeds
the GPU, which computes while the next batch is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.cores import free_cores
from mifuse_cli.model.batches import batch_seconds, batches, padded_to
from mifuse_cli.model.processes import count
from mifuse_cli.model.workers import spread


class FrozenNetwork(Protocol):
    """A network by name: picklable, so that every process can load it for itself."""

    def load(self, device: torch.device) -> LoadedNetwork:
        """The network on a device.

        Raises:
            InputError: it cannot be loaded.
        """


class LoadedNetwork(Protocol):
    """A network that is given B waveforms (S,) at 16 kHz and makes a matrix of each, (B, L, D) on its device."""

    @property
    def padding(self) -> float:
        """Share of a batch that may be padding."""

    def __call__(self, clips: Sequence[Tensor], /) -> Tensor: ...


@dataclass
class Padding:
    """How much of what was encoded was padding, in seconds."""

    clips: float = 0.0
    encoded: float = 0.0

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return 1 - self.clips / self.encoded if self.encoded else 0.0


@dataclass(frozen=True)
class _Batch:
    """Clips of nearly the same length, and these lengths in seconds."""

    excerpts: tuple[Excerpt, ...]
    seconds: tuple[float, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.excerpts)


def encoded(
    excerpts: Sequence[Excerpt],
    network: FrozenNetwork,
    device: torch.device,
    *,
    workers: int,
    padding: Padding,
) -> Generator[tuple[tuple[Excerpt, ...], np.ndarray]]:
    """Clips and their matrices (B, L, D) float32, batch by batch as they are made.

    Args:
        excerpts: files or parts of files; each is read once.
        network: makes the matrices.
        device: where it is in this process.
        workers: processes that read and encode, this one included; 0: as many as there are free cores.
        padding: is added to.

    Raises:
        InputError: audio that cannot be read, or a network that cannot be loaded.
        MifuseError: a process was ended from outside.
    """
    loaded = network.load(device)
    found = (
        _Batch(tuple(near), tuple(seconds))
        for near, seconds in batches(excerpts, lambda one: audio.seconds(*one), batch_seconds(device))
    )
    on_cpu = device.type == "cpu"
    split = partial(
        spread, found, len(excerpts), processes=workers or max(1, free_cores() // count()), helps=on_cpu
    )
    with _one_thread() if on_cpu else nullcontext():
        made: Generator[tuple[_Batch, np.ndarray]] = (
            split(partial(_encode, loaded), partial(_encoder, network))
            if on_cpu
            else _fed(loaded, split(_read, _reader))
        )
        with closing(made):
            for batch, matrices in made:
                lengths = batch.seconds
                padding.clips += sum(lengths)
                padding.encoded += padded_to(lengths) if loaded.padding else sum(lengths)
                yield batch.excerpts, matrices


def _read(batch: _Batch) -> list[np.ndarray]:
    return [audio.read(*one) for one in batch.excerpts]


def _encode(network: LoadedNetwork, batch: _Batch) -> np.ndarray:
    with torch.inference_mode():
        return network(list(map(torch.from_numpy, _read(batch)))).numpy()


def _reader() -> Callable[[_Batch], list[np.ndarray]]:
    return _read


def _encoder(network: FrozenNetwork) -> Callable[[_Batch], np.ndarray]:
    return partial(_encode, network.load(torch.device("cpu")))


def _fed(
    network: LoadedNetwork, read: Generator[tuple[_Batch, list[np.ndarray]]]
) -> Generator[tuple[_Batch, np.ndarray]]:
    """Matrices of batches that were read; each is fetched when the next is on its way."""
    before: tuple[_Batch, Tensor] | None = None
    with closing(read):
        for batch, waveforms in read:
            with torch.inference_mode():
                under_way = network(list(map(torch.from_numpy, waveforms)))
            if before is not None:
                yield before[0], before[1].cpu().numpy()
            before = batch, under_way
        if before is not None:
            yield before[0], before[1].cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
