"""How clips are encoded by frozen encoders, and how much room what these give may take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CACHE_DTYPES = ("float32", "float16")
ENGINES = ("local", "ray")
WORKERS = (
    "Processes that read and encode audio with a frozen encoder; 0: one for each free core. On a GPU, threads that "
    "read, never more than 4."
)
"""Help of ``--workers``."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(|[kMGT])B")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How clips are encoded by frozen encoders, and where what these give is kept.

    Attributes:
        cache_dir: directory of the feature cache, None for the default.
        cache_dtype: type of the numbers in it, one of `CACHE_DTYPES`.
        cache_limit: bytes that it may take, None for no limit.
        workers: processes of this machine that read and encode, or on a GPU threads that read, at most 4; 0: one for
            each free core.
        engine: one of `ENGINES`.
    """

    cache_dir: Path | None = None
    cache_dtype: str = "float32"
    cache_limit: int | None = None
    workers: int = 0
    engine: str = "local"


def byte_count(size: str) -> int:
    """Bytes of a size such as 20GB, in powers of 1000."""
    found = _SIZE.fullmatch(size)
    assert found
    return round(float(found[1]) * 1000 ** ("", "k", "M", "G", "T").index(found[2]))


def size_problems(flag: str, value: str) -> Iterable[str]:
    """A problem sentence unless the value is empty or a size such as 20GB."""
    if value and not _SIZE.fullmatch(value):
        yield f"{flag} {value!r}: expected a size such as 500MB or 20GB"
