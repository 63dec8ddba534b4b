"""What a frozen network makes of clips, computed once and kept in a `store.Store`.

Rows are written as they are made: an interrupted run continues where it stopped, and several processes may share one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.manifest import Clip
from mifuse_cli.model.encoding import FrozenNetwork, Padding, encoded
from mifuse_cli.model.store import Store, default_cache, opened, trim

_WRITE_EVERY_S = 1.0
_log = logging.getLogger("mifuse")


def cached(
    clips: Sequence[Clip],
    name: str,
    network: FrozenNetwork,
    *,
    rows: int = 0,
    called: str = "",
    precision: str = "fp32",
    work: str,
    device: torch.device,
    encoding: Encoding,
    progress: Progress | None,
) -> np.ndarray:
    """Matrices of all clips, (U, L, D) float32.

    Args:
        clips: U clips.
        name: of the cache's file, without suffix; it tells the network and what is made of its output.
        network: makes a matrix (L, D) of a clip; loaded only if some clip is not in the cache.
        rows: L, where the cache may hold more rows of a clip, of which these are the first; 0: as many as it holds.
        called: what users call the network.
        precision: in which it runs.
        work: what progress calls it.
        device: where to run the network.
        encoding: by what, and where it is kept.
        progress: called as matrices are made, with the share of padding among what was encoded.

    Raises:
        InputError: audio that cannot be read, a network that cannot be loaded, a cache that cannot be used.
        MifuseError: a worker process was ended from outside.
    """
    keys = [audio.key(*clip.excerpt) for clip in clips]
    directory = encoding.cache_dir or default_cache()
    with opened(directory, name, encoding.cache_dtype) as store:
        wanted = {key: clip.excerpt for key, clip in zip(keys, clips, strict=True)}
        kept = "" if encoding.cache_dtype == "float32" else f", kept as {encoding.cache_dtype}"
        store.tell(called or name, f"{precision}{kept}")
        known = store.keys(rows)
        # Other processes and machines may be in another directory.
        todo = {
            one._replace(path=one.path.absolute()): key for key, one in wanted.items() if key not in known
        }
        if todo:
            _encode(todo, network, store, device, encoding, partial(progress, work) if progress else None)
        made = np.stack([store.matrix(key, rows) for key in keys])
        store.used(wanted)
    if encoding.cache_limit is not None and (removed := trim(directory, encoding.cache_limit)):
        _log.info("%d features that were not used for longest were removed from %s", removed, directory)
    return made


def _encode(
    todo: dict[Excerpt, str],
    network: FrozenNetwork,
    store: Store,
    device: torch.device,
    encoding: Encoding,
    progress: Callable[..., None] | None,
) -> None:
    made: dict[str, np.ndarray] = {}
    done, padding, written = 0, Padding(), time.monotonic()

    def write() -> None:
        store.put(made)
        made.clear()

    batches = encoded(
        list(todo), network, device, workers=encoding.workers, padding=padding, engine=encoding.engine
    )
    try:
        with closing(batches):  # and with them the processes that make them
            for excerpts, matrices in batches:
                made.update((todo[one], matrix) for one, matrix in zip(excerpts, matrices, strict=True))
                if time.monotonic() > written + _WRITE_EVERY_S:
                    write()
                    written = time.monotonic()
                done += len(excerpts)
                if progress:
                    progress(done, len(todo), {"padding": padding.share})
    finally:
        write()
