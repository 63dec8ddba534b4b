"""What one journal holds, added to another."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mifuse_cli.lalm.journal.database import Rows
from mifuse_cli.lalm.journal.journal import Journal

_ROWS_AT_A_TIME = 2000
_INTENT = "attempt, t_end, est_cost, http_status, error, asked, batch, rejected, key, t_send"
_ANSWER = "key, choice, t_recv, http_status, request_id, raw, usage, cost, outcome"


def take_in(journal: Journal, other: Journal) -> None:
    """Add the questions, requests, answers and open batches of ``other`` to ``journal``; not its clips.

    What is there already, by an earlier call, is not added twice. Of two answers to the same question the one
    that is there stays, unless it was settled as unusable.
    """
    _all(journal, "INSERT OR IGNORE INTO spec VALUES (?, ?)", other.read("SELECT * FROM spec"))
    _all(journal, "INSERT OR IGNORE INTO probe VALUES (?, ?, ?, ?)", other.read("SELECT * FROM probe"))
    _all(
        journal,
        "INSERT INTO batch (tag, host, planned, id, state) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (tag) DO UPDATE SET id = excluded.id, state = excluded.state WHERE state IS NULL",
        other.read("SELECT tag, host, planned, id, state FROM batch"),
    )
    # Requests have no name of their own; which question was sent when tells one from another.
    journal.execute("CREATE INDEX IF NOT EXISTS sent ON intent (key, t_send)").result()
    for rows in _pages(other, f"SELECT id, {_INTENT} FROM intent WHERE id > ? ORDER BY id LIMIT ?", 0):
        _add_intents(journal, rows)
    for rows in _answers(other):
        _add_answers(journal, rows)
    journal.execute("DROP INDEX sent").result()


def _all(journal: Journal, sql: str, rows: Rows) -> None:
    journal.submit(lambda db: db.executemany(sql, rows)).result()


def _pages(journal: Journal, sql: str, after: Any) -> Iterator[Rows]:
    """Rows of a query by its first column, of which it takes the last value that was read, and how many to read."""
    while rows := journal.read(sql, (after, _ROWS_AT_A_TIME)):
        yield rows
        after = rows[-1][0]


def _answers(journal: Journal) -> Iterator[Rows]:
    """Rows of answers with the time of their request; all of a question together."""
    sql = (
        f"SELECT {', '.join(f'answer.{name}' for name in _ANSWER.split(', '))}, intent.t_send FROM answer "
        "JOIN intent ON intent.id = answer.intent_id WHERE answer.key IN "
        "(SELECT DISTINCT key FROM answer WHERE key > ? ORDER BY key LIMIT ?) ORDER BY answer.key, answer.choice"
    )
    return _pages(journal, sql, "")


def _add_intents(journal: Journal, rows: Rows) -> None:
    found = [row[1:] for row in rows]

    def work(db: sqlite3.Connection) -> None:
        for row in found:
            there = db.execute("SELECT id FROM intent WHERE key = ? AND t_send = ?", row[-2:]).fetchone()
            if there is None:
                db.execute(f"INSERT INTO intent ({_INTENT}) VALUES ({', '.join('?' * len(row))})", row)
                continue
            # It may have been open when it was added.
            db.execute(
                "UPDATE intent SET t_end = ?, est_cost = ?, http_status = ?, error = ?, rejected = ? "
                "WHERE id = ? AND http_status IS NULL",
                (*row[1:5], row[7], there[0]),
            )

    journal.submit(work).result()


def _add_answers(journal: Journal, rows: Rows) -> None:
    there = journal.answered({row[0] for row in rows})
    wanted: Rows = []
    # Choices of one response stand with the body of the first: all of them are added, or none.
    for (key, _), group in groupby(rows, key=lambda row: (row[0], row[-1])):
        choices = list(group)
        if not {row[1] for row in choices} & set(there.get(key, ())):
            wanted += choices
    sql = (
        f"INSERT OR REPLACE INTO answer ({_ANSWER}, intent_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, "
        "(SELECT id FROM intent WHERE key = ? AND t_send = ?))"
    )
    _all(journal, sql, [(*row[:-1], row[0], row[-1]) for row in wanted])
