"""Threads that read the next clips while the present ones are computed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from mifuse_cli.cores import free_cores
from mifuse_cli.model.processes import count

_Group = TypeVar("_Group", bound=Iterable[Any])
_Result = TypeVar("_Result")

_AHEAD = 2
"""Groups that are read, or being read, beyond the one that is due."""
_MOST = 4
"""Threads at most: eight and sixteen were no faster, and took time from the one that feeds the GPU."""


def reading_threads(workers: int = 0) -> int:
    """Threads to read with, up to 4: as many as asked for; 0: as there are free cores for this process."""
    return min(workers or max(1, free_cores() // count()), _MOST)


def ahead(
    groups: Iterable[_Group], read: Callable[[Any], _Result], threads: int
) -> Generator[tuple[_Group, list[_Result]]]:
    """Every group with what is read of its items, in their order.

    Args:
        groups: of items; taken as they are needed.
        read: is called in threads; what it raises is raised here, when the group is due.
        threads: number of them.
    """
    waiting: deque[tuple[_Group, list[Future[_Result]]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for group in groups:
            waiting.append((group, [pool.submit(read, item) for item in group]))
            if len(waiting) > _AHEAD:
                due, found = waiting.popleft()
                yield due, [one.result() for one in found]
        for due, found in waiting:
            yield due, [one.result() for one in found]
    finally:
        pool.shutdown(cancel_futures=True)
