"""A row of the table of benchmarks, and what a piece of work costs: CPU time, wall clock and peak memory."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """Two things measured in turn.

    Attributes:
        step: what is measured.
        against: what it is measured by.
        value: a ratio, or a peak in MB.
        unit: of the value: "x as fast", "x the time", "MB", "% of the limit".
        least: lowest value that is wanted; None: none.
        most: highest value that is wanted.
        note: figures behind the value.
    """

    step: str
    against: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value is as wanted; None if nothing is wanted of it."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    @property
    def wanted(self) -> str:
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"<= {self.most:g}"


def line(row: Row) -> str:
    """One line of the table."""
    met = {True: "yes", False: "NO", None: ""}[row.met]
    value = f"{row.value:.3g}" if row.value < 1000 else f"{row.value:.0f}"
    return f"{row.step:38} {row.against:42} {value:>6} {row.unit:34} {row.wanted:8} {met:4} {row.note}"


@dataclass(frozen=True)
class Spent:
    """CPU time of a process and of those that it started and that have ended, wall clock, and its highest memory."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def spent(work: Callable[[], object]) -> Spent:
    """What a piece of work takes in this process."""
    cpu, wall = _cpu(), time.perf_counter()
    work()
    return Spent(_cpu() - cpu, time.perf_counter() - wall, peak_mb())


def apart(work: Callable[[], object]) -> Spent:
    """What a piece of work takes in a process of its own, which begins with the libraries of this one."""
    # Forked, so that neither starting Python nor importing is measured.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work))
    process.start()
    there.close()
    with suppress(EOFError):
        found = here.recv()
        process.join()
        return found
    process.join()
    raise SystemExit(f"a benchmark ended with exit code {process.exitcode}")


def _send(there: Connection, work: Callable[[], object]) -> None:
    there.send(spent(work))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mb() -> float:
    """Highest memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a process that was started by a large one is that of the large one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_turn(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int,
    how: Callable[[Callable[[], object]], Spent] = spent,
) -> tuple[Spent, Spent]:
    """What two pieces of work take, each the median of some runs, one of either after the other."""
    found = [(how(first), how(second)) for _ in range(repeats)]
    return _median([one for one, _ in found]), _median([two for _, two in found])


def _median(runs: Sequence[Spent]) -> Spent:
    return Spent(
        *(statistics.median(getattr(run, name) for run in runs) for name in ("cpu_s", "wall_s", "peak_mb"))
    )
