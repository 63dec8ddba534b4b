"""What a frozen network makes of clips, computed once and kept.

A cache is one SQLite file for a network, with one row a clip (keyed by the hash of its audio file), written as
rows are made: an interrupted run continues where it stopped, and several processes may share it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import audio
from mifuse_cli.config import Progress
from mifuse_cli.manifest import Clip

_WRITE_EVERY = 64


def default_cache() -> Path:
    """``$MIFUSE_CACHE_DIR``, else ``mifuse`` in the user's cache directory."""
    if named := os.environ.get("MIFUSE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mifuse"


def cached(
    clips: Sequence[Clip],
    name: str,
    network: Callable[[], Callable[[Tensor], Tensor]],
    *,
    work: str,
    device: torch.device,
    cache: Path | None,
    progress: Progress | None,
) -> np.ndarray:
    """Matrices of all clips, (U, L, D) float32.

    Args:
        clips: U clips.
        name: of the cache's file, without suffix; it tells the network and what is made of its output.
        network: loads the network, which turns samples (S,) at 16 kHz into a matrix (L, D); called only if
            some clip is not in the cache.
        work: what progress calls it.
        device: where the network is.
        cache: directory of the cache, `default_cache` if None.
        progress: called as matrices are made.

    Raises:
        InputError: audio that cannot be read.
    """
    cache = cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    keys = [audio.file_sha256(clip.path) for clip in clips]
    with closing(sqlite3.connect(cache / f"{name}.sqlite", timeout=120)) as store:
        store.execute(
            "CREATE TABLE IF NOT EXISTS feature(audio TEXT PRIMARY KEY, layers INT, width INT, data BLOB)"
        )
        wanted = {key: clip for key, clip in zip(keys, clips, strict=True)}
        known = {key for (key,) in store.execute("SELECT audio FROM feature")}
        todo = [(key, clip) for key, clip in wanted.items() if key not in known]
        if todo:
            _encode(todo, network(), store, device, partial(progress, work) if progress else None)
        rows = (
            store.execute("SELECT layers, width, data FROM feature WHERE audio=?", (k,)).fetchone()
            for k in keys
        )
        return np.stack([np.frombuffer(data, "<f4").reshape(layers, width) for layers, width, data in rows])


def _encode(
    todo: list[tuple[str, Clip]],
    network: Callable[[Tensor], Tensor],
    store: sqlite3.Connection,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    made: list[tuple[str, int, int, bytes]] = []

    def write() -> None:
        # One transaction for all rows: until it is committed, no other process can write.
        with store:
            store.executemany("INSERT OR REPLACE INTO feature VALUES (?, ?, ?, ?)", made)
        made.clear()

    try:
        for done, (key, clip) in enumerate(todo, start=1):
            with torch.inference_mode():
                states = network(torch.from_numpy(audio.read(clip.path)).to(device)).cpu().numpy()
            layers, width = states.shape
            made.append((key, layers, width, np.ascontiguousarray(states, "<f4").tobytes()))
            if done % _WRITE_EVERY == 0:
                write()
            if progress:
                progress(done, len(todo))
    finally:
        write()
