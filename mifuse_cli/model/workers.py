"""Processes beside this one that take over part of a long list of batches.

Each has one thread. Threads of one process wait for each other, which takes many times as long as one thread alone
where another program has one of the cores; processes that each take the next batch do not wait.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from multiprocessing import current_process, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Lock, Thread
from types import ModuleType
from typing import Any, Generic, TypeVar

from mifuse_cli.errors import MifuseError

_Batch = TypeVar("_Batch", bound=Sized)
_Result = TypeVar("_Result")

_WORTH_S = 10.0
"""Work that a further process has to take over, in seconds; it takes about half of that to import torch and load."""
_WAIT_S = 0.05
"""How often a thread that waits looks whether it is to stop."""
_PATIENCE_S = 5.0
"""How long a process may take to end before it is killed."""


def spread(
    batches: Iterable[_Batch],
    total: int,
    here: Callable[[_Batch], _Result],
    make: Callable[[], Callable[[_Batch], _Result]],
    *,
    processes: int,
) -> Generator[tuple[_Batch, _Result]]:
    """Every batch with what is made of it, as soon as it is made, in any order.

    This process begins, and starts others once it is clear that what is left is worth it. They end with the iteration,
    however that ends, and with this process.

    Args:
        batches: taken one by one, by whichever process is free; few are under way at a time.
        total: number of items in all of them.
        here: makes a result in this process.
        make: picklable; makes the function that does so in another process.
        processes: how many there may be, this one included.

    Raises:
        MifuseError: a process was ended from outside; or what went wrong in one, as it was raised there.
    """
    shared = _Shared(batches)
    started: _Workers[_Batch, _Result] | None = None
    done, begin = 0, time.monotonic()
    # A daemonic process, such as one of a multiprocessing.Pool, may start none.
    most = 0 if current_process().daemon else processes - 1
    try:
        while True:
            if started is not None:
                for batch, result in started.finished():
                    done += len(batch)
                    yield batch, result
            own = shared.take()
            if own is None:
                break
            result = here(own)
            done += len(own)
            yield own, result
            if started is None and most > 0:
                left_s = (time.monotonic() - begin) / done * (total - done)
                if worth := min(most, int(left_s / _WORTH_S)):
                    started = _Workers(shared)
                    started.start(make, worth)
        if started is not None:
            yield from started.rest()
    finally:
        if started is not None:
            started.stop()


class _Shared(Generic[_Batch]):
    """Batches that several threads take from."""

    def __init__(self, batches: Iterable[_Batch]) -> None:
        self._rest, self._lock = iter(batches), Lock()

    def take(self) -> _Batch | None:
        """The next batch, None at the end."""
        with self._lock:
            return next(self._rest, None)


class _Workers(Generic[_Batch, _Result]):
    """Processes, each with a thread here that sends it batches."""

    def __init__(self, shared: _Shared[_Batch]) -> None:
        self._shared = shared
        self._stopped = Event()
        self._processes: list[BaseProcess] = []
        self._threads: list[Thread] = []
        self._at_work: set[int] = set()
        self._results: queue.Queue[tuple[_Batch, _Result] | Exception] = queue.Queue(maxsize=1)

    def start(self, make: Callable[[], Callable[[_Batch], _Result]], count: int) -> None:
        """Start processes; none is waited for."""
        self._results = queue.Queue(maxsize=2 * count)
        context = get_context("spawn")
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make), daemon=True)
            with _without_main(), _without_interrupts():
                process.start()
            self._processes.append(process)
            theirs.close()
            self._threads.append(Thread(target=self._serve, args=(number, ours), daemon=True))
            self._threads[-1].start()

    def finished(self) -> Iterator[tuple[_Batch, _Result]]:
        """What has been made meanwhile."""
        while not self._results.empty():
            yield _raised(self._results.get())

    def rest(self) -> Iterator[tuple[_Batch, _Result]]:
        """All that is still to come; a process that has not begun when nothing is left is not waited for."""
        while self._at_work or not self._results.empty():
            try:
                found = self._results.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            yield _raised(found)

    def stop(self) -> None:
        """End the processes and the threads."""
        self._stopped.set()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
        for thread in self._threads:
            thread.join()

    def _serve(self, number: int, process: Connection) -> None:
        """Send a process one batch after the other, and keep what it makes of each."""
        try:
            with process:
                _received(process)  # that it has begun
                self._at_work.add(number)
                while not self._stopped.is_set() and (batch := self._shared.take()) is not None:
                    process.send(batch)
                    self._keep((batch, _received(process)))
        except (EOFError, ConnectionError):
            if not self._stopped.is_set():
                self._at_work.add(number)
                self._keep(
                    MifuseError(
                        "a worker process was ended from outside, as happens when memory runs out. What was made is "
                        "kept: run the same command again, with fewer --workers."
                    )
                )
        except Exception as error:  # raised to the caller, by the thread that it waits in
            self._at_work.add(number)
            self._keep(error)
        finally:
            self._at_work.discard(number)

    def _keep(self, found: tuple[_Batch, _Result] | Exception) -> None:
        while not self._stopped.is_set():
            try:
                return self._results.put(found, timeout=_WAIT_S)
            except queue.Full:
                continue


def _raised(found: tuple[_Batch, _Result] | Exception) -> tuple[_Batch, _Result]:
    if isinstance(found, Exception):
        raise found
    return found


def _received(process: Connection) -> Any:
    """What a process made, or what went wrong there, raised here."""
    good, value = process.recv()
    if not good:
        raise value
    return value


def _work(parent: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """Make results for the parent until it hangs up; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # for what is loaded later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        try:
            apply = make()
            parent.send((True, None))
            while True:
                batch = parent.recv()
                parent.send((True, apply(batch)))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            parent.send((False, portable(error)))
    except (EOFError, ConnectionError):
        return  # the parent is gone


def portable(error: Exception) -> Exception:
    """An error that can be sent to another process, with the traceback of this one unless it was raised on purpose."""
    if not isinstance(error, MifuseError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep the caller's script from being run again by every process that is started, which has no use for it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, not even before they run code of ours: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would be started first otherwise, and lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
