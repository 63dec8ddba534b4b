"""Atomic writing of files and directories: an incomplete one never has its final name.

What is under way has a hidden name beside the final one, and is locked, so that the next run can tell what a killed
process left and removes it. A directory is replaced by exchanging both names at once, so that there always is one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from mifuse_cli.errors import InputError, did_you_mean

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5 = "an HDF5 file"
_FORMATS = {
    HDF5_SIGNATURE: HDF5,
    b"RIFF": "a WAV file",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"SQLite format 3\0": "an SQLite database, as journals and caches are",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF file",
    b"\x89PNG": "a PNG picture",
    b"\x93NUMPY": "an array of NumPy",
}
"""How files of other formats begin."""
_HEAD = 512
LARGEST_TEXT = 64 << 20
"""Bytes of a configuration, a table of prices and the like: what is longer is something else."""
_LONGEST_NAME = 200
"""Bytes of a file name that leave room for what `_temporary` adds."""
_MOST_NAMES = 10_000
"""Names of a directory among which a misspelt one is looked for."""
_LEFT = re.compile(r"\..*\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""Names of what is under way, as `_temporary` makes them."""
LOCKED = frozenset({errno.EAGAIN, errno.EDEADLK, errno.ENOLCK, 524})
"""Numbers of errors of files that another process holds, or of file systems that cannot lock; 524 is that of NFS."""


def found_errno(error: BaseException) -> int | None:
    """Number of the system's error behind one of HDF5 or of Python, None if there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if told and int(told[1]) else None


def sqlite_errors() -> tuple[type[Exception], ...]:
    """What ``sqlite3`` raises of a file: UnicodeDecodeError where its message quotes a damaged name."""
    import sqlite3

    return sqlite3.Error, UnicodeDecodeError


def sqlite_fault(path: Path, error: Exception) -> str:
    """What keeps an SQLite file from being used, and what to do; "" if it is its content that is at fault.

    Args:
        path: of the file.
        error: as raised by ``sqlite3``.
    """
    import sqlite3

    code = getattr(error, "sqlite_errorcode", None) or 0
    kind = code & 0xFF  # the rest tells of details
    if path.is_dir():
        return "is a directory, expected a file. Move it away"
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL) or code in (
        sqlite3.SQLITE_IOERR_LOCK,
        sqlite3.SQLITE_IOERR_RDLOCK,
        sqlite3.SQLITE_IOERR_UNLOCK,
        sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    ):
        return (
            f"another program has been writing to it for long, or it lies on a network file system that does not lock "
            f"files ({error}). Run the command again when that program has ended; use a local disk"
        )
    if kind == sqlite3.SQLITE_FULL:
        return f"the disk is full, or a quota is reached ({error}). Make room"
    if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY) and not path.exists():
        return f"is no longer there: it was moved or deleted while in use, or its disk is gone ({error}). Put it back"
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return f"cannot be written ({error}). Check that its directory is there, and the permissions of both"
    if kind == sqlite3.SQLITE_IOERR:
        return f"its disk or network file system does not read or write it now ({error}). Check it"
    of_its_content = (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    if isinstance(error, sqlite3.OperationalError) and kind not in of_its_content:
        return f"cannot be used now ({error}). Run the command again"
    return ""


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it if the block succeeds and deleted if it fails.

    Args:
        path: the file to write. A link there is replaced, and what it leads to is left alone.
        replace: whether a file that is there by then may be replaced.

    Raises:
        InputError: the directory is not writable, the disk is full, ``path`` is a directory, or it exists and must
            not be replaced.
    """
    check_place(path)
    with _told(path):
        remove_leftovers(path)
        with _temporary(path, directory=False) as temporary:
            mode = _permissions(temporary)
            yield temporary
            _permit(temporary, mode)
            _sync(temporary)
            if replace:
                os.replace(temporary, path)
            else:
                _rename_to_nothing(temporary, path)
            _sync(path.parent)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place when the block succeeds.

    Args:
        path: the directory to write.
        replace: whether a directory that is there by then may be replaced; an empty one always is.

    Raises:
        InputError: the parent directory cannot be written, the disk is full, there is a file at ``path``, or a
            directory that must not be replaced.
    """
    _make_parent(path)
    with _told(path):
        remove_leftovers(path)
        with _temporary(path, directory=True) as temporary:
            mode = _permissions(temporary)
            yield temporary
            for file in (*temporary.rglob("*"), temporary):
                _permit(file, mode)
                _sync(file)
            if replace and path.is_dir():
                _exchange(temporary, path)
            else:
                _rename_to_nothing(temporary, path)
            _sync(path.parent)


def make_empty(path: Path) -> None:
    """Make an empty file where there is none, for SQLite, which would leave out what the umask grants to the group."""
    with suppress(OSError):  # which SQLite will say
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))


def check_place(path: Path) -> None:
    """Make the directory in which a file is to be written.

    Raises:
        InputError: it cannot be made or written, or ``path`` is a directory itself.
    """
    with _told(path):
        if path.is_dir():
            raise InputError(f"{path}: is a directory, but a file is to be written. Choose another --out.")
    _make_parent(path)


def refuse_existing(path: Path, force: bool, *, marks: Sequence[bytes]) -> None:
    """Stop early where a file of this name exists, unless ``force`` and it is one of the kind, or where none can be
    written.

    Args:
        path: the file to write.
        force: whether an earlier one may be replaced.
        marks: what a file of the kind has within its first 4 KiB, one of them.

    Raises:
        InputError: it exists, or its directory cannot be written.
    """
    check_place(path)
    if not os.path.lexists(path):
        return
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
    except OSError:
        begin = b""
    if not any(mark in begin for mark in marks):
        raise InputError(
            f"{path}: exists, and was not made by this command. Choose another name, or move it away; --force does not "
            "replace it."
        )
    if not force:
        raise InputError(f"{path}: exists already. Choose another name, or pass --force to overwrite it.")


def write_texts(directory: Path, texts: Mapping[str, str]) -> bool:
    """Write files of a directory one after the other, in this order, those that do not hold their text yet.

    Returns:
        whether there were any.
    """
    _make_parent(directory / "any")
    changed = False
    for name, text in texts.items():
        path = directory / name
        if path.is_file() and path.read_bytes() == text.encode():
            remove_leftovers(path)
            continue
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        changed = True
    return changed


def is_empty(directory: Path) -> bool:
    """Whether a directory is not there, or holds nothing but what killed processes left of files."""
    return not directory.is_dir() or all(_LEFT.fullmatch(path.name) for path in directory.iterdir())


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left beside ``path``; what a live one is writing is locked, and stays."""
    for found in path.parent.glob(f"{glob.escape(_hidden(path))}*.tmp"):
        try:
            descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # a link, or gone by now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(found)
        except OSError:  # locked, or a file system without locks
            continue
        finally:
            os.close(descriptor)
    for found in path.parent.glob(f"{glob.escape(_hidden(path))}{'[0-9a-f]' * 8}.old"):
        if os.path.lexists(path):
            _remove(found)
        else:  # killed within `_exchange`, where names can be changed only one by one
            os.rename(found, path)


def refuse_links(*paths: Path) -> None:
    """Refuse to write to or below these paths where one is a link, since that would change what it leads to.

    Raises:
        InputError: naming the link.
    """
    for path in paths:
        if path.is_symlink():
            raise InputError(
                f"{path}: is a link to {os.readlink(path)}, and nothing is written through links. Give that path "
                "itself, or remove the link."
            )


def check_file(path: Path) -> Path:
    """``path``, if it is a file and no device, pipe or directory, also if a link leads there.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        found = "is no file" if path.exists() else f"no such file{nearest(path)}"
        raise InputError(f"{path}: {found}. Expected a regular file; devices and pipes are not read.")
    return path


def nearest(path: Path) -> str:
    """A hint at the path that is there and spelt most like one that is not, "" if none is near."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not os.path.lexists(found / part):
            try:
                with os.scandir(found) as entries:
                    names = [entry.name for entry in islice(entries, _MOST_NAMES)]
            except OSError:
                return ""
            part = did_you_mean(part, names, "{}")
            if not part:
                return ""
        found /= part
    return "" if found == path else f" (did you mean {str(found)!r}?)"


def known_format(head: bytes) -> str:
    """Of which format a file is that begins so, "" if it is none of those that are known."""
    return next((name for mark, name in _FORMATS.items() if head.startswith(mark)), "")


def format_of(path: Path) -> str:
    """Of which format a file is by how it begins, as a phrase: ``a WAV file``, ``text``.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if known := known_format(head):
        return known
    return "an empty file" if not head else "text" if _is_text(head) else "a file of another format"


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 > 0 and b"\0" not in head
    return b"\0" not in head


def read_text(path: Path) -> str:
    """Content of a small text file in UTF-8.

    Raises:
        OSError: it cannot be read, or is larger than `LARGEST_TEXT`, as a device without end is.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror}{nearest(path)}", str(path)) from None
    if len(content) > LARGEST_TEXT:
        raise OSError(
            errno.EFBIG, f"holds more than {LARGEST_TEXT >> 20} MB, which is no such file", str(path)
        )
    return content.decode("utf-8")


def read_results(directory: Path) -> dict[str, Any]:
    """Content of the ``results.json`` in a directory; empty if there is none, or none of that form."""
    try:
        found = json.loads(read_text(directory / "results.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the file system, whoever raises them, as those of ``path``."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    except Exception as error:
        # The writer of safetensors has an error of its own, which tells the cause in words alone.
        if type(error).__name__ != "SafetensorError":
            raise
        raise _unwritable(path, str(error)) from error


def _unwritable(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: cannot be written ({why}). Make room or choose another --out; what was there before is unchanged."
    )


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be created ({error.strerror}). Choose another --out."
        ) from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: cannot be written. Choose another --out or change its permissions.")


def _hidden(path: Path) -> str:
    """How the names of what is under way for ``path`` begin."""
    long = len(os.fsencode(path.name)) > _LONGEST_NAME
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] if long else path.name}."


@contextmanager
def _temporary(path: Path, *, directory: bool) -> Iterator[Path]:
    """A new locked file or directory beside ``path``, removed at the end if it is still there."""
    while True:
        temporary = path.with_name(f"{_hidden(path)}{secrets.token_hex(4)}.tmp")
        if directory:
            temporary.mkdir()
            descriptor = os.open(temporary, os.O_RDONLY)
        else:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with suppress(OSError):  # a file system without locks: what a killed process leaves there stays
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():
            break
        os.close(descriptor)  # taken for a leftover before it was locked
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(descriptor)


def _permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _permit(path: Path, mode: int) -> None:
    """Give a file or a directory the permissions of a new one, whatever its writer gave it.

    Args:
        path: of it. A link, and a file that has other names too, is left as it is.
        mode: permissions of a new file or directory beside it.
    """
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):
        wanted = mode
    elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        wanted = mode & 0o666
    else:
        return
    if found.st_mode & 0o777 != wanted:
        with suppress(PermissionError):  # a file system that has none
            path.chmod(found.st_mode & 0o7000 | wanted)


def may_be_linked(file: Path, directory: Path) -> bool:
    """Whether a file has the permissions of a new one in a directory, so that a second name there is as good."""
    return _permissions(file) == _permissions(directory) & 0o666


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _rename_to_nothing(temporary: Path, path: Path) -> None:
    """Give a file or a directory its final name, unless there is something of that name.

    Raises:
        InputError: there is.
    """
    try:
        if temporary.is_dir():
            os.rename(temporary, path)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError from None
            os.rename(temporary, path)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise InputError(
            f"{path}: exists by now. Another process wrote it meanwhile, and it is left as it is. Choose another "
            "output, or pass --force to overwrite it."
        ) from error


def _exchange(new: Path, old: Path) -> None:
    """Exchange the names of two directories at once; where the system cannot, one after the other."""
    call = _renamer()
    if call is not None:
        if call(os.fsencode(new), os.fsencode(old)) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(old))
    aside = old.with_name(f"{_hidden(old)}{secrets.token_hex(4)}.old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


@cache
def _renamer() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two names, with its place and flag filled in; None if it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        found, swap = getattr(library, "renamex_np", None), 2
        return found and (lambda a, b: found(a, b, swap))
    found, exchange, here = getattr(library, "renameat2", None), 2, -100
    return found and (lambda a, b: found(here, a, here, b, exchange))
