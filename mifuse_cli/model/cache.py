"""What a frozen network makes of clips, computed once and kept.

A cache is one SQLite file for a network, with one row a clip (keyed by the hash of its audio file), written as
rows are made: an interrupted run continues where it stopped, and several processes may share it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError
from mifuse_cli.manifest import Clip
from mifuse_cli.model.encoding import FrozenNetwork, Padding, encoded

_WRITE_EVERY_S = 1.0
_LOCKED_S = 120.0
"""How long to wait for another process that writes; it holds the lock for milliseconds."""
_ELSEWHERE = "give another --cache-dir (or MIFUSE_CACHE_DIR)"


def default_cache() -> Path:
    """``$MIFUSE_CACHE_DIR``, else ``mifuse`` in the user's cache directory."""
    if named := os.environ.get("MIFUSE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mifuse"


def cached(
    clips: Sequence[Clip],
    name: str,
    network: FrozenNetwork,
    *,
    work: str,
    device: torch.device,
    cache: Path | None,
    workers: int,
    progress: Progress | None,
) -> np.ndarray:
    """Matrices of all clips, (U, L, D) float32.

    Args:
        clips: U clips.
        name: of the cache's file, without suffix; it tells the network and what is made of its output.
        network: makes a matrix (L, D) of a clip; loaded only if some clip is not in the cache.
        work: what progress calls it.
        device: where to run the network.
        cache: directory of the cache, `default_cache` if None.
        workers: processes that read and encode; 0: one for each free core.
        progress: called as matrices are made, with the share of padding among what was encoded.

    Raises:
        InputError: audio that cannot be read, a network that cannot be loaded, a cache that cannot be used.
        MifuseError: a worker process was ended from outside.
    """
    keys = [audio.file_sha256(clip.path) for clip in clips]
    with _opened(cache or default_cache(), name) as store:
        wanted = {key: clip.path for key, clip in zip(keys, clips, strict=True)}
        known = {key for (key,) in store.execute("SELECT audio FROM feature")}
        todo = {path: key for key, path in wanted.items() if key not in known}
        if todo:
            _encode(todo, network, store, device, workers, partial(progress, work) if progress else None)
        return np.stack([_matrix(store, key) for key in keys])


def _encode(
    todo: dict[Path, str],
    network: FrozenNetwork,
    store: sqlite3.Connection,
    device: torch.device,
    workers: int,
    progress: Callable[..., None] | None,
) -> None:
    made: list[tuple[str, int, int, bytes]] = []
    done, padding, written = 0, Padding(), time.monotonic()

    def write() -> None:
        # One transaction for all rows: until it is committed, no other process can write.
        with store:
            store.executemany("INSERT OR REPLACE INTO feature VALUES (?, ?, ?, ?)", made)
        made.clear()

    batches = encoded(list(map(Excerpt, todo)), network, device, workers=workers, padding=padding)
    try:
        with closing(batches):  # and with them the processes that make them
            for excerpts, matrices in batches:
                _, layers, width = matrices.shape
                for excerpt, matrix in zip(excerpts, matrices, strict=True):
                    made.append(
                        (todo[excerpt.path], layers, width, np.ascontiguousarray(matrix, "<f4").tobytes())
                    )
                if time.monotonic() > written + _WRITE_EVERY_S:
                    write()
                    written = time.monotonic()
                done += len(excerpts)
                if progress:
                    progress(done, len(todo), {"padding": padding.share})
    finally:
        write()


def _matrix(store: sqlite3.Connection, key: str) -> np.ndarray:
    """Matrix (L, D) of the audio file with a hash.

    Raises:
        sqlite3.DatabaseError: the row is not there, or not whole.
    """
    row = store.execute("SELECT layers, width, data FROM feature WHERE audio=?", (key,)).fetchone()
    try:
        layers, width, data = row
        return np.frombuffer(data, "<f4").reshape(layers, width)
    except (TypeError, ValueError):
        raise sqlite3.DatabaseError(f"row {key[:12]} is lost or cut off") from None


@contextmanager
def _opened(directory: Path, name: str) -> Iterator[sqlite3.Connection]:
    """The cache's file, made if it is not there.

    Raises:
        InputError: it cannot be made, opened, read or written, now or within the block.
    """
    file = directory / f"{name}.sqlite"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be made the directory of a cache ({error.strerror}); {_ELSEWHERE}."
        ) from None
    try:
        with closing(sqlite3.connect(file, timeout=_LOCKED_S)) as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS feature(audio TEXT PRIMARY KEY, layers INT, width INT, data BLOB)"
            )
            yield store
    except sqlite3.Error as error:
        raise InputError(f"{file}: {_what_to_do(file, error)}") from None


def _what_to_do(file: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return (
            f"another process has been writing to this cache for {_LOCKED_S:.0f} s. Run the command again when that "
            f"one has ended, or {_ELSEWHERE}."
        )
    if file.is_dir() or isinstance(error, sqlite3.OperationalError):
        found = "it is a directory" if file.is_dir() else error
        return f"cannot be used as a cache ({found}). Make it a file that can be written, or {_ELSEWHERE}."
    return f"is damaged, or no cache ({error}). Delete it, so that what it held is computed anew, or {_ELSEWHERE}."
