"""Whether an HDF5 file may be read: what is damaged, or made to do harm, lets the C library run for ever or crash.

A file is examined in a child process with limits before it is read for the first time. The child is a fork, so that
it takes milliseconds, and it reads what makes HDF5 follow pointers: attributes, links, chunk indices and texts. The
numbers themselves are only decompressed, which comes to an end.
"""

from __future__ import annotations

import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mifuse_cli.files import found_errno

if TYPE_CHECKING:
    import h5py

_SECONDS, _BYTES_A_SECOND = 1, 5 << 20
"""CPU time that a child has: a second, and one more for so many bytes of the file. It needs a tenth of that."""
_WAIT = 20
"""Times its CPU time that a child may take, since machines are busy and disks slow."""
_MEMORY = 1 << 30
"""Bytes that a child may take beyond what this process has."""
_DECLARED, _RATIO = 256 << 20, 64
"""Bytes that arrays may take in memory: so many, and so many times the size of the file."""
_LARGEST_CHUNK = 64 << 20
_FILTERS = {1, 2}
"""Deflate and shuffle. Others may be code that HDF5 loads from a directory."""
_BLOCK = 1 << 14

_examined: dict[tuple[int, ...], bool] = {}
"""States of files that were examined or written by this process, and whether their datasets were too."""


def trust(path: Path) -> None:
    """Take the file as it is now for safe to read: this process wrote it."""
    _examined[_state(path)] = True


def examine(path: Path, is_text: Callable[[Any], Mapping[str, bool]] | None = None) -> None:
    """Refuse a file that cannot be read within limits of time and memory.

    Args:
        path: an HDF5 file.
        is_text: from the attribute ``kind`` to the names of datasets that will be read, and whether they hold text;
            None if only attributes will be read.

    Raises:
        OSError: HDF5 does not come to an end with it, crashes, or cannot read it.
        ValueError: it has another structure than an artifact.
    """
    state = _state(path)
    if state in _examined and (_examined[state] or is_text is None):
        return
    if not hasattr(os, "fork"):  # Windows: it is then read without limits
        return
    limit = _SECONDS + state[2] // _BYTES_A_SECOND
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # Threads of other libraries are not there in the child, which does not use these libraries.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(receiver)
        _examine_and_exit(path, is_text, sender, limit)
    os.close(sender)
    try:
        told = _heard(receiver, limit * _WAIT)
    finally:
        os.close(receiver)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not told:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        why = "does not come to an end" if ended in (signal.SIGXCPU, signal.SIGKILL) else "crashes"
        raise OSError(f"HDF5 {why} with it; it is damaged, or made to do harm")
    kind, _, why = told.decode("utf-8", "replace").partition(" ")
    if kind == "input":
        number, _, why = why.partition(" ")
        raise OSError(int(number), why) if int(number) else OSError(why)
    if kind == "artifact":
        raise ValueError(why)
    _examined[state] = is_text is not None


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _heard(receiver: int, seconds: float) -> bytes:
    """What a child writes before it ends, nothing after so many seconds."""
    parts: list[bytes] = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and select.select([receiver], [], [], left)[0]:
        part = os.read(receiver, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""


def _examine_and_exit(
    path: Path, is_text: Callable[[Any], Mapping[str, bool]] | None, sender: int, limit: int
) -> None:
    """Examine in this process, write what was found, and end without what else the parent had planned."""
    told = "input 0 unknown"
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        _limit(limit)
        _follow(path, is_text)
        told = "good"
    except MemoryError:
        told = "artifact it takes more memory than it has content"
    except (TypeError, ValueError) as error:
        told = f"artifact {error}"
    except BaseException as error:
        told = f"input {found_errno(error) or 0} {error}"
    finally:
        os.write(sender, told[:4000].encode("utf-8", "replace"))
        os._exit(0)


def _limit(seconds: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return
    most = pages * resource.getpagesize() + _MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


def _follow(path: Path, is_text: Callable[[Any], Mapping[str, bool]] | None) -> None:
    """Read all that makes HDF5 follow pointers.

    Raises:
        ValueError: the structure is not that of an artifact.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        attributes = dict(file.attrs)
        if is_text is None:
            return
        known = is_text(attributes.get("kind"))
        most = _DECLARED + _RATIO * path.stat().st_size
        taken = 0
        for name in known.keys() & set(file):
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link to somewhere else")
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{name} is a {type(dataset).__name__.lower()}, expected a dataset")
            dict(dataset.attrs)
            taken += _stored(name, dataset, is_text=known[name])
            if taken > most:
                raise ValueError(
                    f"{name} of shape {dataset.shape} takes far more memory than the file has content"
                )


def _stored(name: str, dataset: h5py.Dataset, *, is_text: bool) -> int:
    """Bytes that the content of a dataset takes in memory; all of it is there.

    Raises:
        ValueError: it is not, or is of another type or from elsewhere.
    """
    import h5py

    plan, size = dataset.id.get_create_plist(), dataset.id.get_type().get_size()
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if dataset.is_virtual or dataset.external or not filters <= _FILTERS:
        raise ValueError(f"{name} is kept in other files, or in a form that needs further code")
    if dataset.shape is None:
        raise ValueError(f"{name} is empty")
    count = 1
    for length in dataset.shape:
        count *= length
    if dataset.chunks is None:
        if dataset.id.get_storage_size() < count * size:
            raise ValueError(f"{name} of shape {dataset.shape} is not all there")
    else:
        _check_chunks(name, dataset, size)
    if h5py.check_string_dtype(dataset.dtype) is None:
        if is_text or dataset.dtype.kind not in "fiub":
            raise ValueError(
                f"{name} is of type {dataset.dtype}, expected {'text' if is_text else 'numbers'}"
            )
        return count * size
    if not is_text:
        raise ValueError(f"{name} holds text, expected numbers")
    if len(dataset.shape) != 1:
        raise ValueError(f"{name} has {len(dataset.shape)} axes, expected 1")
    longest, values = 1, dataset.asstr()
    for start in range(0, count, _BLOCK):
        longest = max(longest, *map(len, values[start : start + _BLOCK]))
    return 4 * longest * count


def _check_chunks(name: str, dataset: h5py.Dataset, size: int) -> None:
    expected, largest = 1, size
    for length, chunk in zip(dataset.shape, dataset.chunks, strict=True):
        expected *= -(-length // chunk)
        largest *= chunk
    if largest > _LARGEST_CHUNK + size:
        raise ValueError(f"{name} is kept in pieces of {largest} bytes")
    if dataset.id.get_num_chunks() != expected:
        raise ValueError(f"{name} of shape {dataset.shape} is not all there")
