"""An SQLite file of one process: locked, durable, written by one thread and read by any."""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mifuse_cli.errors import InputError
from mifuse_cli.lalm.journal.lock import hold
from mifuse_cli.lalm.journal.tables import prepare
from mifuse_cli.lalm.journal.writer import Work, Writer

_KEYS_PER_QUERY = 1000
_CACHE_KIB = 64 * 1024
_LOCK_SECONDS = 60  # that a reader may hold up a commit where there is no write-ahead log

Rows = list[tuple[Any, ...]]


class Database:
    """The file under the journal; errors of SQLite come out as errors to show.

    Raises:
        InputError: the path cannot be opened, is damaged, or is held by another process.
        ArtifactError: the file is no journal, or a newer mifuse wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = hold(self.path)
        self._reading = threading.Lock()
        try:
            with self.translating():
                db = self._connect()
                try:
                    prepare(db, self.path)
                    self._reader = self._connect()
                except BaseException:
                    db.close()
                    raise
        except BaseException:
            self._lock.close()
            raise
        self._writer = Writer(db, self._translated)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is under way and release the file for other processes."""
        # The file lock is what counts: a row that cannot be removed is no reason to hide another error.
        with suppress(InputError):
            self.execute("DELETE FROM lock").result()
        self._writer.close()
        self._reader.close()
        self._lock.close()

    def submit(self, work: Work) -> Future[Any]:
        """Have ``work`` done in a transaction; the future holds its result once that is committed."""
        return self._writer.submit(work)

    def execute(self, sql: str, row: Sequence[Any] = ()) -> Future[Any]:
        """Have one statement done in a transaction."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(sql, row)

        return self.submit(work)

    def read(self, sql: str, row: Sequence[Any] = ()) -> Rows:
        """Rows of what is committed."""
        with self.translating(), self._reading:
            return self._reader.execute(sql, row).fetchall()

    def read_keys(self, sql: str, keys: Iterable[str]) -> Rows:
        """Rows of ``sql`` with a condition on the column ``key`` added at its end."""
        wanted = list(keys)
        rows: Rows = []
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            some = wanted[start : start + _KEYS_PER_QUERY]
            rows += self.read(f"{sql} key IN ({','.join('?' * len(some))})", some)
        return rows

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Turn errors of SQLite and of compressed bytes into errors to show."""
        try:
            yield
        except (sqlite3.Error, zlib.error) as error:
            raise self._translated(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_LOCK_SECONDS)
        # Keys are hashes: the index of a million answers is read all over.
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.ProgrammingError):
            return error
        if isinstance(error, sqlite3.OperationalError):
            return InputError(
                f"{self.path}: cannot be read or written ({error}). Check the disk and the permissions; "
                "what was committed before is intact."
            )
        return InputError(
            f"{self.path}: damaged, or not a journal ({error}). Restore it from a backup, try "
            f"'sqlite3 {self.path.name} .recover', or move it away and start anew."
        )
