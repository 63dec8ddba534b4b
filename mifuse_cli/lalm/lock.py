"""One process per journal."""

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
