"""Clips read, resampled and encoded by a frozen network, in batches of nearly the same length.

On a CPU, every process reads and encodes batches on one thread. On a GPU, threads read, and the GPU computes while the
next batch is on its way. With the engine ``ray`` it is the machines of a cluster that read and encode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.cores import free_cores
from mifuse_cli.errors import InputError, listed
from mifuse_cli.model.batches import batch_seconds, batches, padded_to
from mifuse_cli.model.processes import count
from mifuse_cli.model.read_ahead import ahead, reading_threads
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
    """Clips of nearly the same length, and these lengths in seconds; infinite of a file that cannot be read."""

    excerpts: tuple[Excerpt, ...]
    seconds: tuple[float, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.excerpts)

    def __iter__(self) -> Iterator[Excerpt]:
        return iter(self.excerpts)


_LARGEST_FEATURE = 1e15
"""Whose square float32 holds for any number of clips, as statistics need it."""

_Unreadable = dict[int, InputError]
"""What is wrong with clips that cannot be read, by position in their batch."""
_Waveforms = tuple[list[np.ndarray], _Unreadable]
"""Samples of the clips of a batch that can be read, and what is wrong with the others."""


@dataclass(frozen=True)
class _Matrices:
    """What a network makes of a batch.

    Attributes:
        values: (B, L, D) of the clips that can be read.
        unreadable: what is wrong with the others.
        padded: whether some were padded.
    """

    values: np.ndarray
    unreadable: _Unreadable
    padded: bool


_Made = Generator[tuple[_Batch, _Matrices]]


def encoded(
    excerpts: Sequence[Excerpt],
    network: FrozenNetwork,
    device: torch.device,
    *,
    workers: int,
    padding: Padding,
    engine: str = "local",
    unreadable: Callable[[Excerpt, InputError], None] | None = None,
) -> Generator[tuple[tuple[Excerpt, ...], np.ndarray]]:
    """Clips and their matrices (B, L, D) float32, batch by batch as they are made.

    Args:
        excerpts: files or parts of files; each is read once.
        network: makes the matrices.
        device: where it is in this process.
        workers: processes that read and encode, this one included, or threads that read for a GPU, at most 4; 0: as
            many as there are free cores.
        padding: is added to.
        engine: one of `encoding_settings.ENGINES`; with Ray, device and workers are those of the cluster.
        unreadable: called with every clip that cannot be read, or of which the network makes NaN, infinity or numbers
            that cannot be squared, and the reason; it is left out. None: `unheard` is raised.

    Raises:
        InputError: audio that cannot be read or encoded, or a network that cannot be loaded.
        DependencyError: there is no Ray, or no cluster of it.
        MifuseError: a process was ended from outside.
    """
    found = _by_ray(excerpts, network) if engine == "ray" else _locally(excerpts, network, device, workers)
    with closing(found):
        for batch, made in found:
            faults = dict(made.unreadable)
            there = [position for position in range(len(batch)) if position not in faults]
            if there:
                lengths = [batch.seconds[position] for position in there]
                padding.clips += sum(lengths)
                padding.encoded += padded_to(lengths) if made.padded else sum(lengths)
            sound = usable(made.values)
            for position in (place for place, good in zip(there, sound, strict=True) if not good):
                faults[position] = unusable(batch.excerpts[position])
            if faults and unreadable is None:
                known = {batch.excerpts[one]: fault for one, fault in faults.items()}
                raise unheard(excerpts, known, next(iter(faults.values())))
            for position, fault in faults.items():
                assert unreadable is not None
                unreadable(batch.excerpts[position], fault)
            if sound.any():
                kept = (excerpt for position, excerpt in enumerate(batch.excerpts) if position not in faults)
                yield tuple(kept), made.values if sound.all() else made.values[sound]


def unheard(
    excerpts: Sequence[Excerpt], known: Mapping[Excerpt, InputError], first: InputError
) -> InputError:
    """The error for clips of which some cannot be used; all are decoded, so that it tells of every one.

    Args:
        excerpts: all clips.
        known: what is known to be wrong with some.
        first: what was raised of one of them, which may be sound by now.
    """
    faults = [str(fault) for one in dict.fromkeys(excerpts) if (fault := known.get(one) or _fault(one))]
    if len(faults) < 2:
        return InputError(*faults or [str(first)])
    return InputError(f"{len(faults)} clips cannot be used: {listed(faults)}")


def _fault(excerpt: Excerpt) -> InputError | None:
    try:
        audio.check(*excerpt)
    except InputError as fault:
        return fault
    return None


def usable(values: np.ndarray) -> np.ndarray:
    """Of which clips the features (B, ...) are finite and can be squared, (B,)."""
    return (np.abs(values) < _LARGEST_FEATURE).all(
        axis=tuple(range(1, values.ndim))
    )  # NaN is not below anything


def unusable(excerpt: Excerpt) -> InputError:
    """The error for a clip whose features are not `usable`."""
    return InputError(
        f"{excerpt.path}: the encoder makes NaN, infinity or absurdly large numbers of this clip. Listen to it, and "
        "replace the file or leave it out. If it is so with many clips, get the encoder anew; of one with --precision "
        "bf16, try fp32."
    )


def _locally(
    excerpts: Sequence[Excerpt], network: FrozenNetwork, device: torch.device, workers: int
) -> _Made:
    loaded, batches = network.load(device), _found(excerpts, device)
    with _one_thread():
        if device.type == "cpu":
            made: _Made = spread(
                batches,
                len(excerpts),
                partial(_encode, loaded),
                partial(_encoder, network),
                processes=workers or max(1, free_cores() // count()),
            )
            with closing(made):
                yield from made
        else:
            with closing(ahead(batches, _read_one, reading_threads(workers))) as read:
                yield from _fed(loaded, read)


def _by_ray(excerpts: Sequence[Excerpt], network: FrozenNetwork) -> _Made:
    from mifuse_cli.model.ray_engine import connected

    with connected() as cluster:
        device, batches = cluster.device, _found(excerpts, cluster.device)
        if device.type == "cpu":
            made: _Made = cluster.spread(batches, partial(_encoder, network))
        else:
            made = cluster.spread(batches, partial(_computer, network, device), read=_read)
        with closing(made):
            yield from made


def _found(excerpts: Sequence[Excerpt], device: torch.device) -> Iterator[_Batch]:
    for near, seconds in batches(excerpts, _seconds, batch_seconds(device)):
        yield _Batch(tuple(near), tuple(seconds))


def _seconds(excerpt: Excerpt) -> float:
    try:
        return audio.seconds(*excerpt)
    except InputError:
        return math.inf  # a batch of its own, the first, so that whoever reads it tells of it early


def _read_one(excerpt: Excerpt) -> np.ndarray | InputError:
    try:
        return audio.read(*excerpt)
    except InputError as fault:
        return fault


def _sorted_out(read: Sequence[np.ndarray | InputError]) -> _Waveforms:
    faults = {number: one for number, one in enumerate(read) if isinstance(one, InputError)}
    return [one for one in read if not isinstance(one, InputError)], faults


def _read(batch: _Batch) -> _Waveforms:
    return _sorted_out([_read_one(excerpt) for excerpt in batch])


def _encode(network: LoadedNetwork, batch: _Batch) -> _Matrices:
    return _compute(network, _read(batch))


def _compute(network: LoadedNetwork, read: _Waveforms) -> _Matrices:
    return _under_way(network, read)()


def _encoder(network: FrozenNetwork) -> Callable[[_Batch], _Matrices]:
    torch.set_num_threads(1)
    return partial(_encode, network.load(torch.device("cpu")))


def _computer(network: FrozenNetwork, device: torch.device) -> Callable[[_Waveforms], _Matrices]:
    return partial(_compute, network.load(device))


def _fed(network: LoadedNetwork, read: Iterable[tuple[_Batch, list[np.ndarray | InputError]]]) -> _Made:
    """Matrices of batches that were read; each is waited for when the next is on its way."""
    before: tuple[_Batch, Callable[[], _Matrices]] | None = None
    for batch, found in read:
        under_way = _under_way(network, _sorted_out(found))
        if before is not None:
            yield before[0], before[1]()
        before = batch, under_way
    if before is not None:
        yield before[0], before[1]()


def _under_way(network: LoadedNetwork, read: _Waveforms) -> Callable[[], _Matrices]:
    """Start a network on waveforms without waiting for a GPU.

    Returns:
        function that waits until what it makes of them is on the CPU, and for no later batch.
    """
    waveforms, faults = read
    if not waveforms:
        return lambda: _Matrices(np.zeros(0, np.float32), faults, False)
    with torch.inference_mode():
        values = network(list(map(torch.from_numpy, waveforms)))
    done = None
    if values.is_cuda:
        # Without a stream, an event would be of the current GPU, which may be another one.
        stream = torch.cuda.current_stream(values.device)
        values = values.to("cpu", non_blocking=True)
        done = stream.record_event()

    def wait() -> _Matrices:
        if done is not None:
            done.synchronize()
        return _Matrices(values.cpu().numpy(), faults, network.padding > 0)

    return wait


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
