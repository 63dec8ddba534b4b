"""Faults of the file system, at any of the calls by which this process works on files below a directory."""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import mmap
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL, KILL = 0, -1
"""Instead of the number of an error: what is written goes to /dev/full; the process is killed."""
_BY_PATH = ("open", "replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir")
_BY_DESCRIPTOR = ("write", "pwrite", "fsync", "ftruncate")


class FileFaults:
    """Counts the calls, and lets one, or all that write from one on, fail.

    It is made before a fork, `install` is called in the child, and the parent then reads ``calls``.

    Args:
        below: the directory.
        at: number of the call that fails, from 0; None: none does.
        number: of the error, or `FULL` or `KILL`.
        lasting: whether all later calls that write fail as well, as on a disk that is full or read-only.
    """

    def __init__(self, below: Path, at: int | None = None, number: int = errno.EIO, *, lasting: bool = False):
        self.below, self.at, self.number, self.lasting = f"{below.resolve()}/", at, number, lasting
        self._shared = mmap.mmap(-1, 4)

    @property
    def calls(self) -> int:
        """Number of calls so far."""
        (found,) = struct.unpack("i", self._shared[:4])
        return int(found)

    def install(self) -> None:
        """Come between this process and its files, for good."""
        from mifuse_cli import files
        from mifuse_cli.artifacts import writer

        for name in _BY_PATH:
            setattr(os, name, self._by_path(getattr(os, name)))
        for name in _BY_DESCRIPTOR:
            setattr(os, name, self._by_descriptor(getattr(os, name)))
        fcntl.flock = self._by_descriptor(fcntl.flock, writes=False)
        shutil.copyfile = self._by_path(shutil.copyfile, last=True)
        builtins.open = io.open = self._opening(io.open)
        writer.Output.write = self._of_output(writer.Output.write)  # type: ignore[method-assign]
        writer.Output.truncate = self._of_output(writer.Output.truncate)  # type: ignore[method-assign]
        exchange = files._renamer()
        if exchange is not None:
            files._renamer = lambda: self._exchanging(exchange)  # type: ignore[assignment]

    def _fails(self, *, writes: bool) -> bool:
        """Whether the call that is due now fails; or no call comes after it."""
        here = self.calls
        self._shared[:4] = struct.pack("i", here + 1)
        if self.at is None or here < self.at or (here > self.at and not (self.lasting and writes)):
            return False
        if self.number == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def _error(self, path: Any, *, writes: bool) -> OSError:
        number = (self.number or errno.ENOSPC) if writes else errno.EIO
        return OSError(number, os.strerror(number), os.fsdecode(path) if path is not None else None)

    def _concerns(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(
            self.below
        )

    def _holds(self, descriptor: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}").startswith(self.below)
        except OSError:
            return False

    def _by_path(self, call: Callable[..., Any], *, last: bool = False) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            path = given[1] if last else given[0]
            if self._concerns(path):
                flags = given[1] if call.__name__ == "open" else os.O_WRONLY
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
                frees = call.__name__ in ("unlink", "rmdir") and self.number != errno.EROFS
                if self._fails(writes=writes and not frees):
                    raise self._error(path, writes=writes)
            return call(*given, **named)

        return wrapped

    def _by_descriptor(self, call: Callable[..., Any], *, writes: bool = True) -> Callable[..., Any]:
        def wrapped(file: Any, *given: Any) -> Any:
            if self._holds(file if isinstance(file, int) else file.fileno()) and self._fails(writes=writes):
                raise self._error(None, writes=writes)
            return call(file, *given)

        return wrapped

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            writes = bool(set(mode) & set("wax+"))
            if not self._concerns(path) or not self._fails(writes=writes):
                return call(path, mode, *given, **named)
            if not writes or self.number != FULL:
                raise self._error(path, writes=writes)
            file = call(path, mode, *given, **named)
            _fill(file)
            return file

        return wrapped

    def _of_output(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Of the file that HDF5 writes to."""

        def wrapped(file: Any, *given: Any) -> Any:
            if self._holds(file.fileno()) and self._fails(writes=True):
                _fill(file)
            return call(file, *given)

        return wrapped

    def _exchanging(self, call: Callable[[bytes, bytes], int]) -> Callable[[bytes, bytes], int]:
        def wrapped(first: bytes, second: bytes) -> int:
            if self._concerns(first) and self._fails(writes=True):
                ctypes.set_errno(self.number or errno.ENOSPC)
                return -1
            return call(first, second)

        return wrapped


def _fill(file: Any) -> None:
    """The disk is full for what is written to this file from now on."""
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, file.fileno())
    os.close(full)


def limit_size(limit: int) -> None:
    """No file that this process writes, by whatever library, grows beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
