"""Time-averaged features of clips from a frozen encoder, computed once and cached.

The cache is one SQLite file for an encoder (named by its content hash) in one precision, with one row a clip
(keyed by the hash of its audio file), written as features are made: an interrupted run continues where it
stopped, and several processes may share it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from mifuse_cli import audio
from mifuse_cli.config import Progress
from mifuse_cli.manifest import Clip
from mifuse_cli.model.encoder import Encoder, load_encoder

_CACHE_VERSION = 1
_WRITE_EVERY = 64


def default_cache() -> Path:
    """``$MIFUSE_CACHE_DIR``, else ``mifuse`` in the user's cache directory."""
    if named := os.environ.get("MIFUSE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mifuse"


def pooled_features(
    clips: Sequence[Clip],
    encoder_dir: Path,
    encoder_digest: str,
    *,
    precision: str = "fp32",
    device: torch.device,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean over time of every hidden layer of every clip, (U, L, D) float32.

    The encoder is loaded only if some clip is not in the cache.

    Args:
        clips: U clips.
        encoder_dir: local directory of the encoder.
        encoder_digest: its content hash.
        precision: of the encoder, one of `shape.PRECISIONS`.
        device: where to run it.
        cache: directory of the cache, `default_cache` if None.
        progress: called as features are made.

    Raises:
        InputError: audio or encoder that cannot be read.
    """
    cache = cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    keys = [audio.file_sha256(clip.path) for clip in clips]
    kind = "" if precision == "fp32" else f"-{precision}"
    file = cache / f"features-v{_CACHE_VERSION}-{encoder_digest[:32]}{kind}.sqlite"
    with closing(sqlite3.connect(file, timeout=120)) as store:
        store.execute(
            "CREATE TABLE IF NOT EXISTS feature(audio TEXT PRIMARY KEY, layers INT, width INT, data BLOB)"
        )
        wanted = {key: clip for key, clip in zip(keys, clips, strict=True)}
        known = {key for (key,) in store.execute("SELECT audio FROM feature")}
        todo = [(key, clip) for key, clip in wanted.items() if key not in known]
        if todo:
            _encode(todo, load_encoder(encoder_dir, precision).to(device), store, device, progress)
        rows = (
            store.execute("SELECT layers, width, data FROM feature WHERE audio=?", (k,)).fetchone()
            for k in keys
        )
        return np.stack([np.frombuffer(data, "<f4").reshape(layers, width) for layers, width, data in rows])


def _encode(
    todo: list[tuple[str, Clip]],
    encoder: Encoder,
    store: sqlite3.Connection,
    device: torch.device,
    progress: Progress | None,
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
                states = encoder(torch.from_numpy(audio.read(clip.path)).to(device)).cpu().numpy()
            layers, width = states.shape
            made.append((key, layers, width, np.ascontiguousarray(states, "<f4").tobytes()))
            if done % _WRITE_EVERY == 0:
                write()
            if progress:
                progress("encoding", done, len(todo))
    finally:
        write()
