"""One process per journal, and what is known of the file system that it lies on."""

from __future__ import annotations

import fcntl
import sqlite3
from pathlib import Path
from typing import IO

from mifuse_cli.errors import InputError


def hold(journal: Path) -> IO[str]:
    """Lock a journal by its side file ``*.lock``; the lock lasts until the returned file is closed.

    The kernel frees it when the process ends, however it ends. The side file stays: to remove it would let
    two processes lock two files of the same name.

    Raises:
        InputError: another process holds the lock, or it cannot be taken there.
    """
    try:
        lock = open(f"{journal}.lock", "a")  # noqa: SIM115 - it stays open as long as the journal
    except OSError as error:
        raise InputError(f"{journal}: cannot be written ({error.strerror}). Choose another place.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(
            f"{journal}: in use by {_holder(journal)}. Two runs on one journal would pay for the same "
            "answers twice. Wait for the other run, stop it, or write to another output."
        ) from None
    except OSError as error:
        lock.close()
        raise InputError(
            f"{journal}: this file system has no file locks ({error.strerror}). Use a local disk."
        ) from None
    return lock


_NETWORK = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "beegfs", "gpfs", "glusterfs", "sshfs")


def network_filesystem(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Type of the network file system that holds ``path``, None if it is local or not known."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    path = path.resolve()
    place, kind = Path("/"), ""
    for _, directory, found, *_ in (line.split() for line in lines):
        mounted = Path(directory.replace("\\040", " "))
        if path.is_relative_to(mounted) and mounted.is_relative_to(place):
            place, kind = mounted, found
    return kind if kind.removeprefix("fuse.").startswith(_NETWORK) else None


def _holder(journal: Path) -> str:
    """Process and host that the lock table of the journal names."""
    try:
        db = sqlite3.connect(journal)
        try:
            pid, host, started = db.execute("SELECT pid, host, started FROM lock").fetchone()
        finally:
            db.close()
    except (sqlite3.Error, TypeError):
        return "another process"
    return f"process {pid} on {host} since {started}"
