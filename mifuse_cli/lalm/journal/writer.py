"""One thread that commits what others hand to it, many pieces at a time."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_LARGEST_GROUP = 256

Work = Callable[[sqlite3.Connection], Any]


class Writer:
    """Runs pieces of work on a connection, in order, in transactions shared by all that wait.

    A commit that waits for the disk costs the same for one piece as for many, so those that came in during
    the last commit go into the next one together.

    Args:
        db: connection in autocommit mode that only this thread uses from now on.
        translated: turns an error of SQLite into one to show.
    """

    def __init__(self, db: sqlite3.Connection, translated: Callable[[sqlite3.Error], Exception]) -> None:
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
            while True:
                item = self._queue.get()
                if item is None:
                    return
                group, last = [item], False
                while len(group) < _LARGEST_GROUP and not self._queue.empty():
                    item = self._queue.get()
                    if item is None:
                        last = True
                        break
                    group.append(item)
                self._commit(group)
                if last:
                    return
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
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            if len(group) > 1 and not isinstance(error, sqlite3.OperationalError):
                # One of them is at fault; the others have done nothing wrong.
                for one in group:
                    self._commit([one])
                return
            # A full disk or a lock is the same for all, and each try may take a minute.
            shown = self._translated(error) if isinstance(error, sqlite3.Error) else error
            for _, future in group:
                if future.set_running_or_notify_cancel():
                    future.set_exception(shown)
            return
        for (_, future), result in zip(group, results, strict=True):
            # Whoever waited may have been cancelled; what is paid for is committed all the same.
            if future.set_running_or_notify_cancel():
                future.set_result(result)
