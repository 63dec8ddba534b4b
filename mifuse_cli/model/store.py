"""What a frozen network made of clips, in SQLite files that any number of processes may read and write.

A directory of caches holds one file for a network, with one row a clip, keyed by the hash of its audio file. A second
table tells on which day a row was used last, so that the oldest can be removed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mifuse_cli.errors import InputError
from mifuse_cli.files import make_empty, sqlite_errors, sqlite_fault

_LOCKED_S = 120.0
"""How long to wait for another process that writes; it holds the lock for milliseconds."""
_TRIMMED_TO = 0.9
"""Share of the limit to which a cache is trimmed, so that this, which writes what is left anew, is seldom needed."""
_DAY_S = 86_400
_WRITE = (
    "INSERT INTO feature VALUES (?, ?, ?, ?) ON CONFLICT(audio) DO UPDATE SET layers=excluded.layers, "
    "width=excluded.width, data=excluded.data WHERE excluded.layers > feature.layers"
)
"""Another process may have written a matrix with more rows meanwhile."""
_DAY = "CASE WHEN typeof(use.day) = 'integer' AND use.day BETWEEN 0 AND 1000000 THEN use.day ELSE 0 END"
"""Day of the last use since 1970, 0 where there is none or what is there is no day."""
_ELSEWHERE = "give another --cache-dir (or MIFUSE_CACHE_DIR)"
_log = logging.getLogger("mifuse")


def default_cache() -> Path:
    """``$MIFUSE_CACHE_DIR``, else ``mifuse`` in the user's cache directory."""
    if named := os.environ.get("MIFUSE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mifuse"


class Store:
    """The cache of a network, open; `opened` makes one.

    Args:
        rows: connection to the file.
        dtype: of the numbers in it, one of `config.CACHE_DTYPES`.
    """

    def __init__(self, rows: sqlite3.Connection, dtype: str) -> None:
        self._rows, self._dtype = rows, np.dtype(dtype).newbyteorder("<")

    def keys(self, states: int = 0) -> set[str]:
        """Hashes of all audio files of which there is a matrix, of that many rows at least."""
        found = self._rows.execute("SELECT audio FROM feature WHERE layers >= ?", (states,))
        return {key for (key,) in found}

    def put(self, matrices: Mapping[str, np.ndarray]) -> None:
        """Keep matrices (L, D) by the hash of their audio file.

        Raises:
            InputError: a number that the type cannot hold.
        """
        rows = []
        for key, matrix in matrices.items():
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(matrix, self._dtype)
            if not np.isfinite(kept).all() and np.isfinite(matrix).all():
                raise InputError(
                    f"--cache-dtype {self._dtype.name}: cannot hold {np.abs(matrix).max():g}, which the encoder gives. "
                    "Leave it out."
                )
            rows.append((key, *matrix.shape, kept.tobytes()))
        # One transaction for all rows: until it is committed, no other process can write.
        with self._rows:
            self._rows.executemany(_WRITE, rows)

    def matrix(self, key: str, states: int = 0) -> np.ndarray:
        """Matrix (L, D) float32 of the audio file with a hash: its first rows, or all of them with 0.

        Raises:
            sqlite3.DatabaseError: the row is not there, or not whole, or holds NaN or infinity.
        """
        row = self._rows.execute("SELECT layers, width, data FROM feature WHERE audio=?", (key,)).fetchone()
        try:
            layers, width, data = row
            whole = np.frombuffer(data, self._dtype).reshape(layers, width)
        except (TypeError, ValueError):
            raise sqlite3.DatabaseError(f"row {key[:12]} is lost or cut off") from None
        if not np.isfinite(whole).all():
            raise sqlite3.DatabaseError(f"row {key[:12]} holds NaN or infinity")
        return whole[: states or None].astype(np.float32, copy=False)

    def tell(self, network: str, precision: str) -> None:
        """Note whose matrices these are, unless that is known; a file that cannot be written stays as it is."""
        with suppress(sqlite3.OperationalError):
            if _about(self._rows):
                return
            with self._rows:
                self._rows.execute("CREATE TABLE IF NOT EXISTS about(network TEXT, precision TEXT)")
                self._rows.execute("INSERT INTO about VALUES (?, ?)", (network, precision))

    def used(self, keys: Iterable[str]) -> None:
        """Note that rows were used today; a file that cannot be written stays as it is."""
        today = int(time.time() // _DAY_S)
        with suppress(sqlite3.OperationalError), self._rows:
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS use(audio TEXT PRIMARY KEY, day INT) WITHOUT ROWID"
            )
            known = {key for (key,) in self._rows.execute("SELECT audio FROM use WHERE day >= ?", (today,))}
            news = [(key, today) for key in keys if key not in known]
            self._rows.executemany("INSERT OR REPLACE INTO use VALUES (?, ?)", news)


@contextmanager
def opened(directory: Path, name: str, dtype: str = "float32") -> Iterator[Store]:
    """The cache of a network, made if it is not there.

    Args:
        directory: of the caches.
        name: of the network.
        dtype: of the numbers, one of `config.CACHE_DTYPES`; each has a file of its own, so that what is read does not
            depend on what was written before.

    Raises:
        InputError: it cannot be made, opened, read or written, now or within the block.
    """
    file = directory / f"{name}{'' if dtype == 'float32' else f'-{dtype}'}.sqlite"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be made the directory of a cache ({error.strerror}); {_ELSEWHERE}."
        ) from None
    try:
        make_empty(file)
        with closing(sqlite3.connect(file, timeout=_LOCKED_S)) as rows:
            rows.execute(
                "CREATE TABLE IF NOT EXISTS feature(audio TEXT PRIMARY KEY, layers INT, width INT, data BLOB)"
            )
            yield Store(rows, dtype)
    except sqlite_errors() as error:
        raise InputError(f"{file}: {_what_to_do(file, error)}") from None


def _what_to_do(file: Path, error: Exception) -> str:
    if fault := sqlite_fault(file, error):
        return f"{fault}, or {_ELSEWHERE}."
    return f"is damaged, or no cache ({error}). Delete it, so that what it held is computed anew, or {_ELSEWHERE}."


# The directory of all caches


@dataclass(frozen=True)
class CacheFile:
    """The cache of one network.

    Attributes:
        path: of its file.
        size: in bytes.
        clips: number of rows; None if they cannot be read.
        last_used: day of the last use, ISO 8601; "" if it is not known.
        network: name of the encoder, as users gave it, and of its pooling; "" in files of earlier versions.
        precision: in which the encoder ran, and the type of the numbers where they are kept in another; "" likewise.
        problem: why it cannot be read, "" if it can.
    """

    path: Path
    size: int
    clips: int | None = None
    last_used: str = ""
    network: str = ""
    precision: str = ""
    problem: str = ""

    @classmethod
    def of(cls, path: Path) -> Self:
        """What is known of a file."""
        size = _size(path)
        try:
            with closing(sqlite3.connect(path, timeout=1.0)) as rows:
                days = _days(rows)
                about = _about(rows) or ("", "")
        except sqlite_errors() as error:
            return cls(path, size, problem=str(error))
        last = max((day for day, *_ in days), default=0)
        day = time.strftime("%Y-%m-%d", time.gmtime(last * _DAY_S)) if last else ""
        return cls(path, size, sum(clips for _, clips, _ in days), day, *about)


def cache_files(directory: Path) -> list[CacheFile]:
    """All caches in a directory, the largest first."""
    return sorted(map(CacheFile.of, directory.glob("*.sqlite")), key=lambda one: -one.size)


def trim(directory: Path, limit: int) -> int:
    """Remove rows, those that were not used for longest first, until all caches take less than a limit.

    Files in which another process writes, and damaged ones, are left as they are.

    Args:
        directory: of the caches.
        limit: in bytes. Nothing is done below it; else there is some room in the end.

    Returns:
        number of rows that were removed.
    """
    files = [path for path in directory.glob("*.sqlite") if path.is_file()]
    total = sum(map(_size, files))
    if total <= limit:
        return 0
    spare = total - _TRIMMED_TO * limit
    found: list[tuple[int, Path, int, int]] = []
    for path in files:
        with suppress(*sqlite_errors()), closing(sqlite3.connect(path, timeout=1.0)) as rows:
            found += [(day, path, clips, size) for day, clips, size in _days(rows)]
    gone: dict[Path, list[tuple[int, int]]] = {}
    for day, path, clips, size in sorted(found):
        if spare <= 0:
            break
        number = clips if size <= spare else -(-int(spare) * clips // size)
        gone.setdefault(path, []).append((day, number))
        spare -= size * number / clips
    return sum(_remove(path, rows) for path, rows in gone.items())


def _size(path: Path) -> int:
    """Bytes of a file, 0 if another process has deleted it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _about(rows: sqlite3.Connection) -> tuple[str, str] | None:
    """Network and precision, as `Store.tell` notes them; None in a file of earlier versions."""
    if not rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
        return None
    found = rows.execute("SELECT network, precision FROM about").fetchone()
    return found and (str(found[0]), str(found[1]))


def _days(rows: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """Days of last use since 1970 (0: not known), with the number of rows and their size in bytes."""
    has_days = rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'use'").fetchone()
    day, join = (_DAY, "LEFT JOIN use USING (audio)") if has_days else ("0", "")
    return rows.execute(
        f"SELECT {day}, count(*), sum(ifnull(length(data), 0) + 100) FROM feature {join} GROUP BY 1"
    ).fetchall()


def _remove(path: Path, days: Iterable[tuple[int, int]]) -> int:
    """Remove so many rows of each day, and give the room back to the file system."""
    removed = 0
    try:
        with closing(sqlite3.connect(path, timeout=1.0)) as rows:
            with rows:
                rows.execute("CREATE TABLE IF NOT EXISTS use(audio TEXT PRIMARY KEY, day INT) WITHOUT ROWID")
                for day, number in days:
                    removed += rows.execute(
                        "DELETE FROM feature WHERE audio IN (SELECT audio FROM feature LEFT JOIN use USING (audio) "
                        f"WHERE {_DAY} = ? ORDER BY feature.rowid LIMIT ?)",
                        (day, number),
                    ).rowcount
                rows.execute("DELETE FROM use WHERE audio NOT IN (SELECT audio FROM feature)")
            rows.execute("VACUUM")
    except sqlite_errors() as error:
        _log.warning("%s: could not be made smaller (%s)", path, error)
    return removed
