"""The journal: every question sent and every answer received, in one SQLite file that a crash cannot spoil.

An intent is committed before its request is sent, and the bytes of an answer before anybody reads them. So
nothing that was paid for and arrived is lost, and intents without an outcome count the calls that may have
been paid for in vain.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.lalm.lock import hold
from mifuse_cli.lalm.spec import canonical_json, spec_hash

SCHEMA_VERSION = 1

_APPLICATION_ID = 0x6D666A31  # "mfj1": tells a journal from other SQLite files
_SCHEMA = """
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
);
"""
_KEYS_PER_QUERY = 500
_ANSWERS = """
SELECT answer.key, choice, raw, answer.http_status, request_id, t_recv, t_recv - t_send, attempt,
    usage, outcome
FROM answer JOIN intent ON intent.id = intent_id
"""

Outcome = Literal["ok", "unusable"]


@dataclass(frozen=True)
class Utterance:
    """A clip as it was asked about: ``duration`` in seconds, ``sr`` in Hz, ``bytes`` as sent."""

    utt_id: str
    sha256: str
    duration: float
    sr: int
    bytes: int
    path: str


@dataclass(frozen=True)
class Answer:
    """A stored answer.

    ``raw`` is the response body, ``received`` in Unix seconds, ``latency`` in seconds; ``attempt`` counts
    from 1. ``outcome`` is "ok", "unusable" (no choices in it; asked again) or None (received, never read).
    """

    key: str
    choice: int
    raw: bytes
    http_status: int
    request_id: str | None
    received: float
    latency: float
    attempt: int
    usage: dict[str, int] | None
    outcome: Outcome | None


class Journal:
    """Questions and answers of one artifact, held by one process at a time.

    Used as a context manager; every method that writes has committed when it returns.

    Raises:
        InputError: the path cannot be opened, is damaged, or is held by another process.
        ArtifactError: the file is no journal, or a newer mifuse wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = hold(self.path)
        try:
            self._db = self._opened()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the journal for other processes."""
        try:
            with self._writing() as db:
                db.execute("DELETE FROM lock")
        finally:
            self._db.close()
            self._lock.close()

    def add_spec(self, spec: Mapping[str, Any]) -> str:
        """Store what is asked, once; return its hash, see `mifuse_cli.lalm.spec.spec_hash`."""
        row = (spec_hash(spec), canonical_json(spec))
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO spec VALUES (?, ?)", row)
        return row[0]

    def add_utterances(self, utterances: Iterable[Utterance]) -> None:
        """Store clips in one transaction; a clip of the same id is replaced."""
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO utt VALUES (?, ?, ?, ?, ?, ?)", map(astuple, utterances))

    def begin(self, key: str, attempt: int) -> int:
        """Note that a request is about to be sent; return the id of the intent. ``attempt`` is from 1."""
        with self._writing() as db:
            cursor = db.execute(
                "INSERT INTO intent (key, attempt, t_send) VALUES (?, ?, ?)", (key, attempt, time.time())
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def store(
        self,
        intent_id: int,
        key: str,
        raw: bytes,
        *,
        http_status: int,
        request_id: str | None = None,
        choice: int = 0,
    ) -> None:
        """Keep the body of an answer as it came and close its intent.

        An earlier answer to the same key and choice stays, unless it was settled as unusable.
        """
        now = time.time()
        with self._writing() as db:
            db.execute(
                "INSERT INTO answer (key, choice, intent_id, t_recv, http_status, request_id, raw) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, choice) DO UPDATE SET "
                "intent_id = excluded.intent_id, t_recv = excluded.t_recv, raw = excluded.raw, "
                "http_status = excluded.http_status, request_id = excluded.request_id, "
                "usage = NULL, outcome = NULL "
                "WHERE outcome = 'unusable'",
                (key, choice, intent_id, now, http_status, request_id, zlib.compress(raw)),
            )
            db.execute(
                "UPDATE intent SET t_end = ?, http_status = ? WHERE id = ?", (now, http_status, intent_id)
            )

    def settle(
        self, key: str, *, outcome: Outcome, usage: Mapping[str, int] | None = None, choice: int = 0
    ) -> None:
        """Note what the stored answer turned out to be; an unusable one no longer counts as answered."""
        row = (outcome, json.dumps(usage) if usage else None, key, choice)
        with self._writing() as db:
            db.execute("UPDATE answer SET outcome = ?, usage = ? WHERE key = ? AND choice = ?", row)

    def fail(self, intent_id: int, http_status: int | None, error: str) -> None:
        """Close an intent without an answer.

        Args:
            intent_id: result of `begin`.
            http_status: status of the response; 0 if the request never left; None if it may have left but
                nothing came back, which leaves the intent `unresolved`.
            error: message, free of secrets.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE intent SET t_end = ?, http_status = ?, error = ? WHERE id = ?",
                (time.time(), http_status, error, intent_id),
            )

    def answered(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that have an answer and need not be asked again."""
        wanted = list(keys)
        found: set[str] = set()
        with self._translated():
            for start in range(0, len(wanted), _KEYS_PER_QUERY):
                batch = wanted[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(batch))
                found.update(
                    key
                    for (key,) in self._db.execute(
                        f"SELECT key FROM answer WHERE key IN ({marks}) AND outcome IS NOT 'unusable'", batch
                    )
                )
        return found

    def has_answers(self) -> bool:
        """Whether any question was ever answered."""
        with self._translated():
            return bool(
                self._db.execute("SELECT EXISTS (SELECT 1 FROM answer WHERE outcome = 'ok')").fetchone()[0]
            )

    def answer(self, key: str, choice: int = 0) -> Answer | None:
        """The stored answer to one question, None if there is none."""
        with self._translated():
            row = self._db.execute(
                f"{_ANSWERS} WHERE answer.key = ? AND choice = ?", (key, choice)
            ).fetchone()
            return _answer(row) if row else None

    def answers(self) -> Iterator[Answer]:
        """All stored answers, in the order of their keys."""
        with self._translated():
            for row in self._db.execute(f"{_ANSWERS} ORDER BY answer.key, choice"):
                yield _answer(row)

    def unresolved(self) -> int:
        """Number of intents of which nobody knows the outcome: calls that may have been paid for in vain."""
        with self._translated():
            return self._db.execute("SELECT count(*) FROM intent WHERE http_status IS NULL").fetchone()[0]

    def _opened(self) -> sqlite3.Connection:
        with self._translated():
            db = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._check(db)
                durable_mode(db)
                db.execute("BEGIN IMMEDIATE")
                if not _has_tables(db):
                    for statement in _SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                # A row that is still there is from a process that was killed: the file lock is ours.
                db.execute("DELETE FROM lock")
                started = time.strftime("%Y-%m-%d %H:%M:%S")
                db.execute("INSERT INTO lock VALUES (?, ?, ?)", (os.getpid(), socket.gethostname(), started))
                db.execute("COMMIT")
            except BaseException:
                db.close()
                raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        # Before anything is written: another program's database stays as it is.
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID and (application or version or _has_tables(db)):
            raise ArtifactError(f"{self.path}: an SQLite file, but no mifuse journal. Choose another output.")
        if version > SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path}: journal of schema {version}, but this mifuse reads up to {SCHEMA_VERSION}. "
                "Upgrade mifuse."
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.OperationalError as error:
            raise InputError(
                f"{self.path}: cannot be read or written ({error}). Check the disk and the permissions; "
                "what was committed before is intact."
            ) from error
        except (sqlite3.DatabaseError, zlib.error) as error:
            raise InputError(
                f"{self.path}: damaged, or not a journal ({error}). Restore it from a backup, try "
                f"'sqlite3 {self.path.name} .recover', or move it away and start anew."
            ) from error


def durable_mode(db: sqlite3.Connection) -> str:
    """Make commits survive a crash and a power cut; return the journal mode in use.

    Write-ahead logging needs shared memory. Where SQLite does not grant it, as on network file systems,
    the rollback journal does the same more slowly.
    """
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError:
        mode = "refused"
    if mode == "wal":
        db.execute("PRAGMA synchronous = FULL")
    else:
        (mode,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("PRAGMA synchronous = EXTRA")
    return mode


def _has_tables(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0


def _answer(row: tuple[Any, ...]) -> Answer:
    key, choice, raw, http_status, request_id, received, latency, attempt, usage, outcome = row
    return Answer(
        key=key,
        choice=choice,
        raw=zlib.decompress(raw),
        http_status=http_status,
        request_id=request_id,
        received=received,
        latency=latency,
        attempt=attempt,
        usage=json.loads(usage) if usage else None,
        outcome=outcome,
    )
