"""What a run has made so far, in a file beside the output, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import sqlite_errors, sqlite_fault
from mifuse_cli.steps.predict.parts import Part

_WRITE_EVERY_S = 1.0


class Kept:
    """Values (float32, of one length) or a reason for every clip that was dealt with.

    A clip counts as the same while its id, bounds, and its file's size and time stay.
    """

    def __init__(self, store: sqlite3.Connection) -> None:
        self._store = store
        self._written = time.monotonic()

    def keys(self) -> set[str]:
        """Keys of the clips that have values; the others are tried again."""
        return {key for (key,) in self._store.execute("SELECT key FROM clip WHERE data IS NOT NULL")}

    def add(self, part: Part, values: np.ndarray) -> None:
        """Keep the values of a clip, of any shape."""
        self._put(part, np.ascontiguousarray(values, "<f4").tobytes(), None)

    def skip(self, part: Part, reason: str) -> None:
        """Keep why a clip has none."""
        self._put(part, None, reason)

    def values(self, part: Part) -> np.ndarray | str:
        """Values of a clip as one row, or the reason why it has none."""
        data, reason = self._store.execute(
            "SELECT data, reason FROM clip WHERE key=?", (key_of(part),)
        ).fetchone()
        return reason if data is None else np.frombuffer(data, "<f4")

    def write(self) -> None:
        """Write to disk what was added."""
        self._store.commit()
        self._written = time.monotonic()

    def _put(self, part: Part, data: bytes | None, reason: str | None) -> None:
        self._store.execute("INSERT OR REPLACE INTO clip VALUES (?, ?, ?)", (key_of(part), data, reason))
        if time.monotonic() > self._written + _WRITE_EVERY_S:
            self.write()


def key_of(part: Part) -> str:
    """What makes a clip the same when the command is run again."""
    path, *bounds = part.excerpt
    return json.dumps([part.utt_id, str(path), *bounds, part.speaker, *part.state])


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep other runs from a file within the block.

    Raises:
        InputError: another run has it, or it cannot be made.
    """
    while True:
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror}). Choose another --out.") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{file}: another mifuse predict is writing to this --out. Wait for its end, or choose another."
            ) from None
        except OSError:  # a file system without locks
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)  # the other run deleted it before it was locked
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def kept_in(file: Path, identity: dict[str, Any]) -> Iterator[Kept]:
    """The file of what was made, made if it is not there; it stays if the block fails.

    Args:
        file: its path.
        identity: model and settings, under which its values hold.

    Raises:
        InputError: it cannot be made, read or written.
        ArtifactError: it is of another model or of other settings.
    """
    try:
        with closing(sqlite3.connect(file)) as store:
            store.execute("CREATE TABLE IF NOT EXISTS clip(key TEXT PRIMARY KEY, data BLOB, reason TEXT)")
            store.execute("CREATE TABLE IF NOT EXISTS made_with(name TEXT PRIMARY KEY, value TEXT)")
            told = dict(store.execute("SELECT name, value FROM made_with"))
            wanted = {name: json.dumps(value) for name, value in identity.items()}
            others = sorted(name for name in wanted if told and told.get(name) != wanted[name])
            if others:
                raise ArtifactError(
                    f"{file}: was left by an interrupted run with another {' and '.join(others)}. Run that one to its "
                    "end, choose another --out, or delete the file."
                )
            store.executemany("INSERT OR REPLACE INTO made_with VALUES (?, ?)", wanted.items())
            store.commit()
            kept = Kept(store)
            try:
                yield kept
            finally:
                kept.write()
    except sqlite_errors() as error:
        fault = sqlite_fault(file, error) or f"is damaged ({error}). Delete it, so that it is made anew"
        raise InputError(f"{file}: {fault}, or choose another --out.") from None
