"""``mifuse cache``: how much room the feature cache takes, and making it smaller."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli import artifacts
from mifuse_cli.config import Config, Progress, option
from mifuse_cli.encoding_settings import byte_count, size_problems
from mifuse_cli.errors import InputError
from mifuse_cli.files import nearest
from mifuse_cli.model.store import CacheFile, cache_files, default_cache, trim


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """Show how much room the feature cache takes, encoder by encoder, and make it smaller."""

    cache_dir: Path | None = option(
        None, "Directory of the feature cache; default: MIFUSE_CACHE_DIR or the user's cache."
    )
    cache_limit: str = option(
        "", "Remove what was not used for longest until no more than this is taken, such as 20GB; 0B: all."
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from size_problems("--cache-limit", self.cache_limit)


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """What the cache holds.

    Attributes:
        directory: of the cache.
        size: of all files, in bytes.
        files: one for every encoder and precision, the largest first.
        removed: number of clips' features that were removed now.
        notes: what the user should know.
    """

    directory: Path
    size: int
    files: tuple[CacheFile, ...]
    removed: int = 0
    notes: tuple[str, ...] = ()


def cache(config: CacheConfig, *, progress: Progress | None = None) -> CacheResult:
    """Tell what the cache holds, after it was trimmed if there is a limit; one that cannot be read is named.

    Raises:
        InputError: what is there is no directory.
    """
    directory = config.cache_dir or default_cache()
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"{directory}: is {artifacts.what(directory)}, expected a directory. Give that of the cache by "
            "--cache-dir or MIFUSE_CACHE_DIR."
        )
    removed = trim(directory, byte_count(config.cache_limit)) if config.cache_limit else 0
    files = cache_files(directory)
    return CacheResult(
        directory=directory,
        size=sum(one.size for one in files),
        files=tuple(files),
        removed=removed,
        notes=()
        if directory.exists()
        else (f"{directory}: no such directory{nearest(directory)}; there is no cache yet",),
    )
