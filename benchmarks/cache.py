"""The feature cache in SQLite, as it is, against sharded HDF5: CPU time of both, run in turn, and ratios.

``python benchmarks/cache.py``: features of 20,000 clips, 7 hidden states of 512, written 200 at a time and synced,
read in another order, and 200 of them read alone. HDF5 has 16 files by the first digit of the key, of which only one
process may write at a time, so that each of several writers has its own 16.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np

from mifuse_cli.model.store import opened

ROW = 7, 512
TOGETHER = 200
_SOME = np.random.default_rng(0).standard_normal((500, *ROW)).astype(np.float32)


def matrix(key: str) -> np.ndarray:
    return _SOME[int(key[:6], 16) % len(_SOME)]


def write_sqlite(place: Path, keys: Sequence[str], writer: int = 0, dtype: str = "float32") -> None:
    with opened(place, "bench", dtype) as store:
        for start in range(0, len(keys), TOGETHER):
            store.put({key: matrix(key) for key in keys[start : start + TOGETHER]})


def read_sqlite(place: Path, keys: Sequence[str], dtype: str = "float32") -> np.ndarray:
    with opened(place, "bench", dtype) as store:
        known = store.keys()
        return np.stack([store.matrix(key) for key in keys if key in known])


def write_hdf5(place: Path, keys: Sequence[str], writer: int = 0) -> None:
    place.mkdir(exist_ok=True)
    for start in range(0, len(keys), TOGETHER):
        shards = defaultdict(list)
        for key in keys[start : start + TOGETHER]:
            shards[key[0]].append(key)
        for shard, some in shards.items():
            path = place / f"{shard}-{writer}.h5"
            with h5py.File(path, "a") as file:
                if "data" not in file:
                    file.create_dataset("data", (0, *ROW), "<f4", maxshape=(None, *ROW), chunks=(16, *ROW))
                    file.create_dataset("key", (0,), "S64", maxshape=(None,), chunks=(1024,))
                before = len(file["key"])
                for name in ("data", "key"):
                    file[name].resize(before + len(some), axis=0)
                file["data"][before:] = np.stack([matrix(key) for key in some])
                file["key"][before:] = some
            with path.open("rb") as written:
                os.fsync(written.fileno())


def read_hdf5(place: Path, keys: Sequence[str]) -> np.ndarray:
    at = {key: number for number, key in enumerate(keys)}
    found = np.empty((len(keys), *ROW), np.float32)
    for path in sorted(place.iterdir()):
        with h5py.File(path) as file:
            names = [name.decode() for name in file["key"][:]]
            for start in range(0, len(names), 256):
                here = [
                    number for number in range(start, min(start + 256, len(names))) if names[number] in at
                ]
                if here:
                    found[[at[names[number]] for number in here]] = file["data"][here]
    return found


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU time, and wall clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def two_writers(write: Callable[..., None], place: Path, keys: Sequence[str]) -> None:
    started = [get_context("fork").Process(target=write, args=(place, keys[n::2], n)) for n in range(2)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    assert not any(one.exitcode for one in started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(parser.parse_args().clips)]
    other = random.Random(0).sample(keys, len(keys))
    with tempfile.TemporaryDirectory() as scratch:
        a, b, half, c, d = (Path(scratch) / name for name in ("sqlite", "hdf5", "float16", "c", "d"))
        rows = [
            ("write", lambda: write_sqlite(a, keys), lambda: write_hdf5(b, keys)),
            ("read all", lambda: read_sqlite(a, other), lambda: read_hdf5(b, other)),
            ("read 200", lambda: read_sqlite(a, other[:200]), lambda: read_hdf5(b, other[:200])),
            (
                "two writers",
                lambda: two_writers(write_sqlite, c, keys),
                lambda: two_writers(write_hdf5, d, keys),
            ),
        ]
        print(f"{'':12} SQLite CPU, wall     HDF5 CPU, wall     HDF5 / SQLite, wall")
        for name, ours, theirs in rows:
            (mine, my_wall), (its, its_wall) = spent(ours), spent(theirs)
            print(
                f"{name:12} {mine:8.2f} {my_wall:8.2f}  {its:8.2f} {its_wall:8.2f}  {its_wall / my_wall:8.2f}"
            )
        np.testing.assert_array_equal(read_sqlite(a, other[:50]), read_hdf5(b, other[:50]))
        write_sqlite(half, keys, dtype="float16")
        size = {
            place.name: sum(file.stat().st_size for file in place.iterdir()) / 1e6 for place in (a, b, half)
        }
        print("MB:", ", ".join(f"{name} {number:.0f}" for name, number in size.items()))


if __name__ == "__main__":
    main()
