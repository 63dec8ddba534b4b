"""Tables of the journal, how older ones are brought up to date, and how SQLite is made durable."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from pathlib import Path

from mifuse_cli.errors import ArtifactError
from mifuse_cli.lalm.journal.lock import network_filesystem

SCHEMA_VERSION = 2

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


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make a connection durable, the tables complete, and note that this process holds them.

    The caller holds the file lock of the journal.

    Raises:
        ArtifactError: the file is no journal, or a newer mifuse wrote it; it stays as it is.
    """
    _check(db, path)
    durable_mode(db, shared_memory=network_filesystem(path) is None)
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate((_FIRST, _SECOND), start=1):
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
        with contextlib.suppress(sqlite3.OperationalError):
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
