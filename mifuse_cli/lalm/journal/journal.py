"""The journal: every question sent and every answer received, in one SQLite file that a crash cannot spoil.

An intent is committed before its request is sent, and the bytes of an answer before anybody reads them. So
nothing that was paid for and arrived is lost, and intents without an outcome name the calls that may have
been paid for in vain.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mifuse_cli.audio import Excerpt
from mifuse_cli.lalm.answers.response import MOST_TOKENS, Response, decode
from mifuse_cli.lalm.journal.database import Database, Rows
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.question_options import canonical_json, spec_hash

T = TypeVar("T")

CLIPS_AT_A_TIME = 200
_COLUMNS = ("utt_id", "sha256", "duration", "sr", "bytes", "file_sha256", "context")
_CLIP = f"{', '.join(_COLUMNS)}, path, part, pieces, twin"
_PAIRS_AT_A_TIME = 5000
_COUNTED = ("prompt", "completion", "total")  # in the column usage


def journal_path(out: Path) -> Path:
    """Where the answers behind the artifact ``out`` are kept."""
    return out.with_name(out.name + ".journal.sqlite")


class StoredAnswer(NamedTuple):
    """An answer in the journal.

    Attributes:
        raw: body of the response as it came.
        response: the body, decoded.
        position: where in its choices the answer stands.
        outcome: "ok", "unusable" (the body has no choices, so the question is asked again), or None if it was
            received but never read.
    """

    raw: bytes
    response: Response
    position: int
    outcome: Literal["ok", "unusable"] | None


class Waiting(NamedTuple):
    """A request in a batch: id of its intent, what it asks in words, and the USD reserved for it."""

    intent: int
    asked: str
    cost: float


class Journal(Database):
    """Questions and answers of one artifact, held by one process at a time.

    Used as a context manager. Methods that write about requests return a future that is done once they are
    committed; commits of many are shared. Reading sees what is committed.
    """

    # What is asked about

    def add_spec(self, spec: Mapping[str, Any]) -> str:
        """Store what is asked, once; return its hash, see `question_options.spec_hash`."""
        row = (spec_hash(spec), canonical_json(spec))
        self.execute("INSERT OR IGNORE INTO spec VALUES (?, ?)", row).result()
        return row[0]

    def new_run(self) -> int:
        """Number of a further run, whose clips take the place of those of the last one."""
        number: int = self.read("SELECT ifnull(max(run), 0) + 1 FROM utt")[0][0]
        return number

    def add_clips(self, run: int, clips: Iterable[AskedClip]) -> None:
        """Store clips of a run, in one transaction; a clip of the same id is replaced."""
        rows = [
            (
                *(getattr(clip, name) for name in _COLUMNS),
                _kept_path(clip.excerpt.path),
                json.dumps(clip.excerpt[1:]),
                json.dumps(clip.pieces),
                run,
            )
            for clip in clips
        ]
        sql = f"INSERT OR REPLACE INTO utt ({', '.join(_COLUMNS)}, path, part, pieces, run) VALUES ({'?, ' * 10}?)"
        self.submit(lambda db: db.executemany(sql, rows)).result()

    def mark_twins(self, run: int) -> None:
        """Of the clips of a run with the same audio and context, leave one to be asked about."""
        first = "SELECT min(utt_id) FROM utt WHERE run = ? GROUP BY sha256, context"
        sql = f"UPDATE utt SET twin = 1 WHERE run = ? AND utt_id NOT IN ({first})"
        self.execute(sql, (run, run)).result()

    def clips(self, at_a_time: int = CLIPS_AT_A_TIME) -> Iterator[list[AskedClip]]:
        """Clips of the last run in the order of their ids, ``at_a_time`` at a time."""
        for rows in self._last_run(_CLIP, at_a_time):
            with self.translating():
                clips = [_clip(row) for row in rows]
            yield clips

    def pairs(self, column: Literal["file_sha256", "context"]) -> Iterator[tuple[str, str]]:
        """Ids of the clips of the last run in order, each with one thing that is known of it."""
        for rows in self._last_run(f"utt_id, {column}", _PAIRS_AT_A_TIME):
            yield from rows

    def known(self, utt_ids: Sequence[str]) -> dict[str, AskedClip]:
        """Clips of any run by id."""
        places = ",".join("?" * len(utt_ids))
        sql = f"SELECT {_CLIP} FROM utt WHERE pieces IS NOT NULL AND utt_id IN ({places})"
        rows = self.read(sql, utt_ids)
        with self.translating():
            return {row[0]: _clip(row) for row in rows}

    def _last_run(self, columns: str, at_a_time: int) -> Iterator[Rows]:
        """Rows of the clips of the last run, of which the first column is the id."""
        after = ""
        while rows := self.read(
            f"SELECT {columns} FROM utt WHERE run = (SELECT max(run) FROM utt) AND utt_id > ? "
            "ORDER BY utt_id LIMIT ?",
            (after, at_a_time),
        ):
            yield rows
            after = rows[-1][0]

    # Requests and answers

    def begin(
        self, key: str, attempt: int, *, asked: str = "", cost: float = 0.0, batch: str | None = None
    ) -> Future[int]:
        """Note that a request is about to be sent; the future holds the id of the intent.

        Args:
            key: of the question.
            attempt: from 1.
            asked: the question in words, for people.
            cost: most that the request can cost, in USD.
            batch: tag of the batch that it is part of.
        """
        row = (key, attempt, time.time(), cost, asked, batch)
        sql = "INSERT INTO intent (key, attempt, t_send, est_cost, asked, batch) VALUES (?, ?, ?, ?, ?, ?)"
        return self.submit(lambda db: db.execute(sql, row).lastrowid)

    def store(
        self,
        intent_id: int,
        key: str,
        raw: bytes,
        *,
        http_status: int,
        request_id: str | None = None,
        choice: int = 0,
    ) -> Future[None]:
        """Keep the body of an answer as it came and close its intent.

        An earlier answer to the same key and choice stays, unless it was settled as unusable.
        """
        now = time.time()
        row = (key, choice, intent_id, now, http_status, request_id, zlib.compress(raw))

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO answer (key, choice, intent_id, t_recv, http_status, request_id, raw) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, choice) DO UPDATE SET "
                "intent_id = excluded.intent_id, t_recv = excluded.t_recv, raw = excluded.raw, "
                "http_status = excluded.http_status, request_id = excluded.request_id, "
                "usage = NULL, cost = NULL, outcome = NULL WHERE outcome = 'unusable'",
                row,
            )
            db.execute(
                "UPDATE intent SET t_end = ?, http_status = ? WHERE id = ?", (now, http_status, intent_id)
            )

        return self.submit(work)

    def settle(
        self,
        intent_id: int,
        key: str,
        response: Response,
        *,
        choices: Sequence[int] = (0,),
        cost: float | None = None,
    ) -> Future[None]:
        """Note what a stored answer turned out to be; one without choices no longer counts as answered.

        Args:
            intent_id: id of the request.
            key: name of the question.
            response: the stored body.
            choices: the choices that were asked for, in the order of the body; the first is the one that the
                body was stored under.
            cost: of the response in USD, None to let the reserved cost stand.
        """
        first, *others = choices[: len(response.choices) or 1]
        outcome = "ok" if response.choices else "unusable"
        tokens = json.dumps(response.usage)

        def work(db: sqlite3.Connection) -> None:
            changed = db.execute(
                "UPDATE answer SET outcome = ?, usage = ?, cost = ? WHERE key = ? AND choice = ? AND intent_id = ?",
                (outcome, tokens, cost, key, first, intent_id),
            ).rowcount
            if changed:
                db.executemany(
                    "INSERT OR IGNORE INTO answer (key, choice, intent_id, t_recv, http_status, request_id, raw, "
                    "outcome) SELECT key, ?, intent_id, t_recv, http_status, request_id, x'', outcome "
                    "FROM answer WHERE key = ? AND choice = ?",
                    [(choice, key, first) for choice in others],
                )
            if cost is not None:
                db.execute("UPDATE intent SET est_cost = ? WHERE id = ?", (cost, intent_id))

        return self.submit(work)

    def fail(
        self,
        intent_id: int,
        http_status: int | None,
        error: str,
        *,
        rejected: bool = False,
        keeps_cost: bool = False,
    ) -> Future[None]:
        """Close an intent without an answer.

        Args:
            intent_id: result of `begin`.
            http_status: status of the response; 0 if the request never left; None if it may have left but
                nothing came back, which leaves the intent `unresolved` and its cost reserved.
            error: message, free of secrets.
            rejected: whether it is the clip that the server does not accept.
            keeps_cost: whether its cost is settled already, by the response in which the failure lies.
        """
        return self.execute(
            "UPDATE intent SET t_end = ?, http_status = ?, error = ?, rejected = ?, "
            "est_cost = CASE WHEN ? THEN est_cost ELSE 0 END WHERE id = ?",
            (time.time(), http_status, error, rejected, keeps_cost or http_status is None, intent_id),
        )

    def note(self, intent_id: int, http_status: int, cost: float) -> Future[None]:
        """Close an intent whose answer need not be kept."""
        return self.execute(
            "UPDATE intent SET t_end = ?, http_status = ?, est_cost = ? WHERE id = ?",
            (time.time(), http_status, cost, intent_id),
        )

    def answered(self, keys: Iterable[str]) -> dict[str, list[int]]:
        """Choices that need not be asked again, by key; keys without any are left out."""
        found: dict[str, list[int]] = {}
        for key, choice in self.read_keys(
            "SELECT key, choice FROM answer WHERE outcome IS NOT 'unusable' AND", keys
        ):
            found.setdefault(key, []).append(choice)
        return found

    def answers(self, keys: Iterable[str]) -> dict[tuple[str, int], StoredAnswer]:
        """Stored answers to these questions by key and choice, unusable ones among them."""
        rows = self.read_keys("SELECT key, choice, intent_id, raw, outcome FROM answer WHERE", keys)
        found: dict[tuple[str, int], StoredAnswer] = {}
        bodies: dict[tuple[str, int], tuple[bytes, Response, int]] = {}
        with self.translating():
            if any(row[1] for row in rows):
                rows.sort(key=itemgetter(0, 1))
            for key, choice, intent, packed, outcome in rows:
                if packed:
                    raw = zlib.decompress(packed)
                    response, position = decode(raw), 0
                else:
                    # A further choice of the body that stands with the first one.
                    if (key, intent) not in bodies:
                        raise sqlite3.DataError(f"the body of the answer to {key} is lost")
                    raw, response, position = bodies[key, intent]
                bodies[key, intent] = raw, response, position + 1
                found[key, choice] = StoredAnswer(raw, response, position, outcome)
        return found

    def settle_unread(self) -> None:
        """Settle what was stored but never read, because of a crash, or was read before errors were known as such.

        A body that holds an error instead of an answer counted as an empty answer once. Such bodies use no
        tokens for the answer or do not tell, and only these are looked into.
        """
        for intent, key, choice, packed, outcome in self.read(
            "SELECT intent_id, key, choice, raw, outcome FROM answer WHERE outcome IS NULL OR (outcome = 'ok' "
            "AND raw != x'' AND ifnull(json_extract(usage, '$.completion'), -1) < 1)"
        ):
            with self.translating():
                response = decode(zlib.decompress(packed))
            if outcome is None:
                choices = range(choice, choice + max(len(response.choices), 1))
                self.settle(intent, key, response, choices=choices).result()
            elif not response.choices:
                sql = "UPDATE answer SET outcome = 'unusable' WHERE key = ? AND intent_id = ?"
                self.execute(sql, (key, intent)).result()
        self._settle_costs()

    def _settle_costs(self) -> None:
        """Book what others cost on average where a count of tokens that cannot be had been believed."""
        most = "max(" + ", ".join(f"ifnull(json_extract(usage, '$.{name}'), -1)" for name in _COUNTED) + ")"
        for intent, key, choice, packed in self.read(
            f"SELECT intent_id, key, choice, raw FROM answer WHERE raw != x'' AND {most} > ?", (MOST_TOKENS,)
        ):
            with self.translating():
                response = decode(zlib.decompress(packed))
            self.settle(intent, key, response, choices=(choice,)).result()
            self.execute(
                "UPDATE intent SET est_cost = (SELECT ifnull(avg(intent.est_cost), 0) FROM intent JOIN answer "
                f"ON answer.intent_id = intent.id WHERE {most} BETWEEN 0 AND ?) WHERE id = ?",
                (MOST_TOKENS, intent),
            ).result()

    def has_answers(self) -> bool:
        """Whether any question was ever answered."""
        return bool(self.read("SELECT EXISTS (SELECT 1 FROM answer WHERE outcome = 'ok')")[0][0])

    def rejected(self, keys: Iterable[str]) -> dict[str, str]:
        """Messages by which the server rejected questions, by those of ``keys`` that it did reject."""
        return dict(self.read_keys("SELECT key, error FROM intent WHERE rejected AND", keys))

    # Accounts

    def unresolved(self) -> list[tuple[str, float]]:
        """Calls of which nobody knows the outcome, so that they may have been paid for in vain.

        Returns:
            What was asked and when (Unix seconds), in the order of sending.
        """
        return self.read(
            "SELECT asked, t_send FROM intent WHERE http_status IS NULL AND batch IS NULL ORDER BY id"
        )

    def accounts(self) -> dict[str, float]:
        """Sums over all runs.

        Returns:
            ``sent``: requests that left; ``answered``, ``limited`` (429), ``rejected`` (the clip), ``failed``,
            ``unresolved`` (outcome unknown) and ``in_batches`` (not collected yet) among them; ``spent``: USD,
            with what unresolved requests may cost.
        """
        sent, answered, limited, unresolved, waiting, rejected, spent = self.read(
            "SELECT ifnull(sum(http_status IS NOT 0), 0), ifnull(sum(http_status BETWEEN 200 AND 299), 0), "
            "ifnull(sum(http_status IS 429), 0), ifnull(sum(http_status IS NULL AND batch IS NULL), 0), "
            "ifnull(sum(http_status IS NULL AND batch IS NOT NULL), 0), ifnull(sum(rejected), 0), "
            "total(est_cost) FROM intent"
        )[0]
        failed = sent - answered - limited - unresolved - waiting - rejected
        return {"sent": sent, "answered": answered, "limited": limited, "rejected": rejected, "failed": failed,
                "unresolved": unresolved, "in_batches": waiting, "spent": spent}  # fmt: skip

    # Batches of the provider

    def plan_batch(self, tag: str, host: str) -> None:
        """Note that a batch is about to be made, before the intents in it."""
        sql = "INSERT INTO batch (tag, host, planned) VALUES (?, ?, ?)"
        self.execute(sql, (tag, host, time.time())).result()

    def add_batch(self, tag: str, batch_id: str) -> None:
        """Note that the provider took a batch, and the id that it has there."""
        self.execute("UPDATE batch SET id = ? WHERE tag = ?", (batch_id, tag)).result()

    def close_batch(self, tag: str, state: str) -> None:
        """Note that a batch is over; ``state`` in the provider's word."""
        self.execute("UPDATE batch SET state = ? WHERE tag = ?", (state, tag)).result()

    def open_batches(self, host: str) -> list[tuple[str, str | None]]:
        """Batches that are not over, oldest first: tag, and the provider's id if it is known to have them."""
        sql = "SELECT tag, id FROM batch WHERE state IS NULL AND host = ? ORDER BY planned"
        return self.read(sql, (host,))

    def in_batch(self, tag: str) -> dict[str, Waiting]:
        """Open intents of a batch by key."""
        sql = "SELECT key, id, asked, est_cost FROM intent WHERE batch = ? AND http_status IS NULL"
        return {key: Waiting(*row) for key, *row in self.read(sql, (tag,))}

    # What servers can do

    def probed(self, host: str, model: str) -> dict[str, Any] | None:
        """What was found out about a model at a host, None if nothing."""
        rows = self.read("SELECT json FROM probe WHERE host = ? AND model = ?", (host, model))
        with self.translating():
            return _from_json(dict, rows[0][0]) if rows else None

    def add_probe(self, host: str, model: str, found: Mapping[str, Any]) -> None:
        """Keep what was found out."""
        row = (host, model, time.time(), json.dumps(found))
        self.execute("INSERT OR REPLACE INTO probe VALUES (?, ?, ?, ?)", row).result()


async def committed(*futures: Future[Any]) -> Any:
    """Wait for commits and return the result of the last; whoever is cancelled meanwhile does not undo them."""
    result = None
    for future in futures:
        result = await asyncio.shield(asyncio.wrap_future(future))
    return result


def _clip(row: Sequence[Any]) -> AskedClip:
    *columns, path, part, pieces, twin = row
    bounds, seconds = _from_json(list, part), _from_json(list, pieces)
    numbers = [*seconds, *(one for one in bounds if one is not None)]
    if len(bounds) != 3 or not all(type(one) in (int, float) and 0 <= one < inf for one in numbers):
        raise sqlite3.DataError(f"{part!r:.60} and {pieces!r:.60} are no parts of a clip")
    excerpt = Excerpt(Path(os.fsdecode(path)), *bounds)
    known = dict(zip(_COLUMNS, columns, strict=True))
    return AskedClip(**known, excerpt=excerpt, pieces=tuple(seconds), twin=bool(twin))


def _from_json(kind: type[T], text: str) -> T:
    """The value that was stored as JSON.

    Raises:
        sqlite3.DataError: it is none, or of another kind.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise sqlite3.DataError(f"{text!r:.60} is no {kind.__name__} as JSON")
    return found


def _kept_path(path: Path) -> str | bytes:
    """A path as SQLite takes it: as bytes where it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return str(path)
