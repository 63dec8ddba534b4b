"""Atomic writing of files and directories: an incomplete one never has its final name."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mifuse_cli.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it if the block succeeds and deleted if it fails.

    Raises:
        InputError: the directory is not writable, the disk is full, or ``path`` is a directory.
    """
    check_place(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). Make room or choose another --out; "
            "what was there before is unchanged."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path`` that replaces it when the block succeeds.

    Raises:
        InputError: the parent directory cannot be written.
    """
    _make_parent(path)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_directory(path.parent)
        if old.is_file():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: Path) -> None:
    """Make the directory in which a file is to be written.

    Raises:
        InputError: it cannot be made or written, or ``path`` is a directory itself.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory, but a file is to be written. Choose another --out.")
    _make_parent(path)


def refuse_existing(path: Path, force: bool) -> None:
    """Stop early where a file of this name exists, unless ``force``, or where none can be written.

    Raises:
        InputError: it exists, or its directory cannot be written.
    """
    if path.exists() and not force:
        raise InputError(f"{path}: exists already. Choose another name, or pass --force to overwrite it.")
    check_place(path)


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of ``path`` left by killed processes; no process may be writing it now."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if temporary.is_file():
            temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be created ({error.strerror}). Choose another --out."
        ) from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: cannot be written. Choose another --out or change its permissions.")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
