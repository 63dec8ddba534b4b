"""An SQLite file of one process: locked, durable, with tables brought up to date, committed in groups."""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from mifuse_cli.errors import ArtifactError, InputError, MifuseError
from mifuse_cli.files import make_empty, sqlite_errors, sqlite_fault

_KEYS_PER_QUERY = 1000
_CACHE_KIB = 64 * 1024
_LOCK_SECONDS = 60  # that a reader may hold up a commit where there is no write-ahead log
_LARGEST_GROUP = 256  # pieces of work in one commit

Rows = list[tuple[Any, ...]]
Work = Callable[[sqlite3.Connection], Any]


class Database:
    """The SQLite file under the journal; its errors are raised as those of this package, with advice.

    Raises:
        InputError: the path cannot be opened, is damaged, or is held by another process.
        ArtifactError: the file is no journal, or a newer mifuse wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = _hold(self.path)
        self._reading = threading.Lock()
        try:
            with self.translating():
                make_empty(self.path)
                db = self._connect()
                try:
                    _prepare(db, self.path)
                    self._reader = self._connect()
                except BaseException:
                    db.close()
                    raise
        except BaseException:
            self._lock.close()
            raise
        self._place = _place(self.path)
        self._writer = GroupCommit(db, self._translated)

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

    @classmethod
    def tidy(cls, path: Path) -> None:
        """Have SQLite take into a file what a killed process left beside it; one in use, or damaged, stays as it is."""
        if os.path.lexists(f"{path}-wal") and path.exists():
            with suppress(MifuseError), cls(path):
                pass

    def submit(self, work: Work) -> Future[Any]:
        """Have ``work`` done in a transaction; the future holds its result once that is committed.

        Raises:
            InputError: the file was moved, deleted or replaced; SQLite would go on to write where nobody finds it.
        """
        if _place(self.path) != self._place:
            raise InputError(
                f"{self.path}: was moved, deleted or replaced while it was in use, so the run ends here. It holds "
                "answers that were paid for: put it back, then run the same command again."
            )
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
        """Raise errors of SQLite and of compressed bytes as errors of this package."""
        errors: tuple[type[Exception], ...] = (*sqlite_errors(), zlib.error)
        try:
            yield
        except errors as error:
            raise self._translated(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_LOCK_SECONDS)
        # Keys are hashes: the index of a million answers is read all over.
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.ProgrammingError):
            return error
        if fault := sqlite_fault(self.path, error):
            return InputError(
                f"{self.path}: {fault}. What was committed before is intact: run the same command again, and nothing "
                "that is there is asked again."
            )
        return InputError(
            f"{self.path}: damaged, or not a journal ({error}). It holds answers that were paid for: restore it from a "
            f"backup, or try 'sqlite3 {self.path.name} .recover'; do not delete it."
        )


def _place(path: Path) -> tuple[int, int] | None:
    """What stays the same while the file of this name is the same; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


# --- commits ------------------------------------------------------------


class GroupCommit:
    """Runs pieces of work on a connection, in order, in transactions shared by all that wait.

    A commit that waits for the disk costs the same for one piece as for many, so those that came in during
    the last commit go into the next one together.

    Args:
        db: connection in autocommit mode that only this thread uses from now on.
        translated: turns an error of SQLite into one to show.
    """

    def __init__(self, db: sqlite3.Connection, translated: Callable[[Exception], Exception]) -> None:
        self._db = db
        self._translated = translated
        self._queue: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mifuse-journal", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Future[Any]:
        """Have ``work`` done; the future holds what it returned, once that is committed."""
        if self._closed:
            raise RuntimeError("the journal is closed")
        future: Future[Any] = Future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Commit what was handed in so far, then end the thread and close the connection."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            closed = False
            while not closed:
                group = [self._queue.get()]
                while len(group) < _LARGEST_GROUP and not self._queue.empty():
                    group.append(self._queue.get())
                closed = None in group
                if work := [item for item in group if item]:
                    self._commit(work)
        finally:
            self._db.close()

    def _commit(self, group: list[tuple[Work, Future[Any]]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results = [work(self._db) for work, _ in group]
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                # Whatever else is broken, nobody may be left waiting.
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            if len(group) > 1 and not isinstance(error, sqlite3.OperationalError):
                # One of them is at fault; the others have done nothing wrong.
                for one in group:
                    self._commit([one])
                return
            # A full disk or a lock is the same for all, and each try may take a minute.
            shown = self._translated(error) if isinstance(error, sqlite_errors()) else error
            for _, future in group:
                if future.set_running_or_notify_cancel():
                    future.set_exception(shown)
            return
        for (_, future), result in zip(group, results, strict=True):
            # Whoever waited may have been cancelled; what is paid for is committed all the same.
            if future.set_running_or_notify_cancel():
                future.set_result(result)


# --- tables ------------------------------------------------------------

SCHEMA_VERSION = 3

_VALUES = {
    "TEXT": "typeof({0}) IN ('text', 'blob')",  # bytes where they are no UTF-8, as in paths
    "BLOB": "typeof({0}) = 'blob'",
    "INTEGER": "typeof({0}) = 'integer' AND {0} BETWEEN 0 AND 9007199254740991",
    "REAL": "typeof({0}) IN ('real', 'integer') AND {0} BETWEEN 0 AND 253402300799",  # until the year 9999
}
"""Condition that values of a column meet, by its type."""

_APPLICATION_ID = 0x6D666A31  # "mfj1": tells a journal from other SQLite files
_FIRST = """
CREATE TABLE spec (
    spec_hash TEXT PRIMARY KEY,
    json TEXT NOT NULL
);
CREATE TABLE utt (
    utt_id TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    duration REAL NOT NULL,
    sr INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    path TEXT NOT NULL
);
CREATE TABLE intent (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    t_send REAL NOT NULL,
    est_cost REAL,
    t_end REAL,
    http_status INTEGER,
    error TEXT
);
CREATE TABLE answer (
    key TEXT NOT NULL,
    choice INTEGER NOT NULL,
    intent_id INTEGER NOT NULL,
    t_recv REAL NOT NULL,
    http_status INTEGER NOT NULL,
    request_id TEXT,
    raw BLOB NOT NULL,
    usage TEXT,
    cost REAL,
    outcome TEXT,
    PRIMARY KEY (key, choice)
);
CREATE TABLE lock (
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    started TEXT NOT NULL
)"""
_SECOND = """
ALTER TABLE utt ADD COLUMN file_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE utt ADD COLUMN context TEXT NOT NULL DEFAULT '';
ALTER TABLE utt ADD COLUMN pieces TEXT;
ALTER TABLE utt ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE utt ADD COLUMN twin INTEGER NOT NULL DEFAULT 0;
ALTER TABLE intent ADD COLUMN asked TEXT NOT NULL DEFAULT '';
ALTER TABLE intent ADD COLUMN batch TEXT;
CREATE INDEX open_intent ON intent (batch) WHERE http_status IS NULL;
ALTER TABLE intent ADD COLUMN rejected INTEGER NOT NULL DEFAULT 0;
CREATE INDEX rejected_intent ON intent (key) WHERE rejected;
CREATE INDEX unread_answer ON answer (key) WHERE outcome IS NULL;
CREATE TABLE batch (
    tag TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    planned REAL NOT NULL,
    id TEXT,
    state TEXT
);
CREATE TABLE probe (
    host TEXT NOT NULL,
    model TEXT NOT NULL,
    t REAL NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (host, model)
)"""

_THIRD = """
ALTER TABLE utt ADD COLUMN part TEXT NOT NULL DEFAULT '[0.0, null, null]'"""


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make a connection durable, the tables complete, and note that this process holds them.

    The caller holds the file lock of the journal.

    Raises:
        ArtifactError: the file is no journal, or a newer mifuse wrote it; it stays as it is.
    """
    _check(db, path)
    _check_values(db)
    durable_mode(db, shared_memory=network_filesystem(path) is None)
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate((_FIRST, _SECOND, _THIRD), start=1):
        if version < number:
            for statement in script.split(";"):
                db.execute(statement)
    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    # A row that is still there is from a process that was killed: the file lock is ours.
    db.execute("DELETE FROM lock")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    db.execute("INSERT INTO lock VALUES (?, ?, ?)", (os.getpid(), socket.gethostname(), started))
    db.execute("COMMIT")


def durable_mode(db: sqlite3.Connection, *, shared_memory: bool = True) -> str:
    """Make commits survive a crash and a power cut; return the journal mode in use.

    Write-ahead logging needs shared memory. Where SQLite does not grant it, or a network file system may
    only seem to have it, the rollback journal does the same more slowly.
    """
    mode = "refused"
    if shared_memory:
        with suppress(sqlite3.OperationalError):
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode == "wal":
        db.execute("PRAGMA synchronous = FULL")
    else:
        (mode,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("PRAGMA synchronous = EXTRA")
    return mode


def _check(db: sqlite3.Connection, path: Path) -> None:
    # Before anything is written: another program's database stays as it is.
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    has_tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    if application != _APPLICATION_ID and (application or version or has_tables):
        raise ArtifactError(f"{path}: an SQLite file, but no mifuse journal. Choose another output.")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: journal of schema {version}, but this mifuse reads up to {SCHEMA_VERSION}. "
            "Upgrade mifuse."
        )


def _check_values(db: sqlite3.Connection) -> None:
    """Find a value that its column cannot have had from mifuse; SQLite itself takes any.

    Raises:
        sqlite3.DataError: there is one.
    """
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = db.execute(f"PRAGMA table_info({table})").fetchall()
        odd = {
            f"{column} in the table {table} has a value that is no {kind}": f"({column} IS NOT NULL AND NOT "
            f"({_VALUES[kind].format(column)}))"
            for _, column, kind, *_ in columns
            if kind in _VALUES
        }
        if not odd:
            continue
        conditions = odd.values()  # in one pass: tables may hold millions of answers
        found = db.execute(
            f"SELECT {', '.join(conditions)} FROM {table} WHERE {' OR '.join(conditions)} LIMIT 1"
        ).fetchone()
        if found:
            raise sqlite3.DataError(next(said for said, is_odd in zip(odd, found, strict=True) if is_odd))


# --- lock ------------------------------------------------------------


def _hold(journal: Path) -> IO[str]:
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
