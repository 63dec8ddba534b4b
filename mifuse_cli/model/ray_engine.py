"""Batches of clips worked on by the machines of a Ray cluster.

What a machine that is lost was working on, Ray does again elsewhere, so that this costs time and nothing else. All
machines need mifuse, and find audio and encoders at the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from socket import create_connection, gethostname
from typing import Any, TypeVar
from uuid import uuid4

import torch

from mifuse_cli.errors import DependencyError, MifuseError

_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")
_AHEAD = 2
"""Batches under way for every core or GPU that works: one is computed, one is ready, whatever the corpus."""
_TRIES_AGAIN = 20
"""How often a batch is tried again whose machine or process was lost."""
_WAIT_S = 30.0
"""How long a cluster may take to answer at all."""
_made: dict[str, Callable[[Any], Any]] = {}
"""In a process of the cluster: what makes results in the present run, by the run's name."""


class Cluster:
    """A Ray cluster that this process is connected to; `connected` makes one.

    Attributes:
        device: what its machines encode on: their GPUs if there are any, else their cores.
    """

    def __init__(self) -> None:
        self.device = torch.device("cuda" if self._number("GPU") else "cpu")

    def _number(self, resource: str) -> int:
        import ray

        return int(ray.cluster_resources().get(resource, 0))

    def spread(
        self,
        batches: Iterable[_Batch],
        make: Callable[[], Callable[[Any], _Result]],
        read: Callable[[_Batch], Any] | None = None,
    ) -> Generator[tuple[_Batch, _Result]]:
        """Every batch with what is made of it, as soon as it is made, in any order.

        Args:
            batches: taken one by one; few are under way at a time.
            make: picklable; makes the function that makes results, once in each process that does so.
            read: picklable; what a core does with a batch before it is given to that function, None for nothing.

        Raises:
            MifuseError: what went wrong with a batch, with the machine where it did; machines lost too often.
        """
        import ray

        # One of a GPU stays for many batches, where Ray would end it after each.
        on_gpu = self.device.type != "cpu"
        needs: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 1}
        apply = ray.remote(max_retries=_TRIES_AGAIN, max_calls=0, **needs)(_apply)
        before = ray.remote(max_retries=_TRIES_AGAIN, num_cpus=1)(_read)
        run, rest = uuid4().hex, iter(batches)
        under_way: dict[Any, _Batch] = {}
        left = True
        try:
            while True:
                # Machines may join and leave; with none there, Ray waits for some.
                most = _AHEAD * max(1, self._number("CPU" if self.device.type == "cpu" else "GPU"))
                while left and len(under_way) < most:
                    batch = next(rest, None)
                    left = batch is not None
                    if batch is not None:
                        item = batch if read is None else before.remote(read, batch)
                        under_way[apply.remote(run, make, item)] = batch
                if not under_way:
                    return
                (done, *_), _ = ray.wait(list(under_way))
                yield under_way.pop(done), _result(done)
        finally:
            for task in under_way:
                ray.cancel(task)


@contextmanager
def connected() -> Iterator[Cluster]:
    """The cluster of ``RAY_ADDRESS``, else one of this machine alone; one that is in use stays connected.

    Raises:
        DependencyError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise DependencyError("--engine ray: Ray is not installed. Run: pip install 'mifuse[ray]'") from None
    if ray.is_initialized():
        yield Cluster()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise DependencyError(
            f"--engine ray: no cluster can be reached at {address or 'this machine'} ({error}). Start one with "
            "'ray start', set RAY_ADDRESS to its address, or leave RAY_ADDRESS out for this machine alone."
        ) from None
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out whether anybody listens at HOST:PORT; Ray itself takes minutes for that.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].partition(":")
    if port.isdigit():
        create_connection((host, int(port)), timeout=_WAIT_S).close()


def _apply(run: str, make: Callable[[], Callable[[Any], Any]], item: Any) -> Any:
    """What is made of an item, in a process of the cluster."""
    with _place_named():
        if run not in _made:
            _made.clear()
            _made[run] = make()
        return _made[run](item)


def _read(read: Callable[[Any], Any], batch: Any) -> Any:
    with _place_named():
        return read(batch)


@contextmanager
def _place_named() -> Iterator[None]:
    """Let an error say on which machine it came up."""
    try:
        yield
    except MifuseError as error:
        raise type(error)(
            f"{error} This was on {gethostname()}: with --engine ray, all machines have to find the same files."
        ) from None


def _result(task: Any) -> Any:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise MifuseError(
            f"--engine ray: a batch was lost more often than {_TRIES_AGAIN} times ({error}). What was made is kept: "
            "run the same command again."
        ) from None
