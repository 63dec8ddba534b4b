"""Several processes of one command, as ``torchrun`` and ``accelerate launch`` start them, and who does what.

Every process runs the same step on the same input. What takes long, encoding, is divided among them and reaches all;
what is not worth dividing is done by the first process alone, which also writes and prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mifuse_cli.config import Progress, StepConfig
from mifuse_cli.errors import UsageError
from mifuse_cli.model.launcher import number, started

if TYPE_CHECKING:
    from torch import Tensor

_Made = TypeVar("_Made")
_Item = TypeVar("_Item")
_Step = TypeVar("_Step", bound=Callable[..., Any])

_PATIENCE = timedelta(days=30)
"""How long a process waits for another, which may train meanwhile. When one fails, the launcher ends the others."""

_joined = False
"""Whether this process works together with others now."""


def count() -> int:
    """How many processes divide the present work; 1 within `by_first`."""
    return started() if _joined else 1


def divided(step: _Step) -> _Step:
    """A step ``x(config, *, progress=None)`` that several processes may run together; the first shows progress."""

    @functools.wraps(step)
    def run(config: StepConfig, *, progress: Progress | None = None) -> Any:
        if started() == 1:
            return step(config, progress=progress)
        with _group(config.device):
            return step(config, progress=None if number() else progress)

    run.is_divided = True  # type: ignore[attr-defined]
    return cast(_Step, run)


def check_undivided(step: Callable[..., object], name: str) -> None:
    """Refuse several processes for a step that is not `divided`, each of which would do all of the work.

    Raises:
        UsageError: several were started.
    """
    if started() > 1 and not hasattr(step, "is_divided"):
        raise UsageError(
            f"mifuse {name}: {started()} processes were started, but it runs in one. Start it without torchrun or "
            "accelerate launch, or unset WORLD_SIZE."
        )


def gathered(make: Callable[[], _Made]) -> list[_Made]:
    """What every process makes, in the order of their numbers, in all of them.

    Raises:
        Exception: what went wrong in one process, in all of them.
    """
    if count() == 1:
        return [make()]
    from torch import distributed

    from mifuse_cli.model.workers import portable

    raised: Exception | None = None
    own: tuple[bool, Any]
    try:
        own = (True, make())
    except Exception as error:
        raised = error
        own = (False, portable(error))
    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, own)
    if raised is not None:
        raise raised
    for good, value in found:
        if not good:
            raise value
    return [value for _, value in found]


def by_first(work: Callable[[], _Made]) -> _Made:
    """What the first process makes, in all of them; the others wait.

    Raises:
        Exception: what went wrong there, in all of them.
    """

    def alone() -> Any:
        with _apart():
            return None if number() else work()

    return work() if count() == 1 else gathered(alone)[0]


def in_shares(work: Callable[[Sequence[_Item]], object], items: Sequence[_Item]) -> None:
    """Let every process do its share of some work whose result is kept in a cache; one alone has nothing to share.

    Args:
        work: is given every Nth of the items, if there are any.
        items: all of them.
    """

    def share() -> None:
        if own := items[number() :: count()]:
            work(own)

    if count() > 1:
        gathered(share)


def own_share(costs: Sequence[float]) -> list[int]:
    """Positions of the pieces of work that are this process's, so that all processes have about as much to do.

    Args:
        costs: of all pieces, in any unit.
    """
    load, mine = [0.0] * count(), number() if count() > 1 else 0
    own: list[int] = []
    for piece in sorted(range(len(costs)), key=lambda one: -costs[one]):
        least = load.index(min(load))
        load[least] += costs[piece]
        if least == mine:
            own.append(piece)
    return sorted(own)


def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradient of every parameter by the sum of those of all processes; one that none has stays None."""
    if count() == 1:
        return
    import torch
    from torch import distributed

    known = gathered(lambda: [one.grad is not None for one in parameters])
    sums = []
    for one, somewhere in zip(parameters, map(any, zip(*known, strict=True)), strict=True):
        if somewhere:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
            sums.append(distributed.all_reduce(one.grad, async_op=True))
    for one in sums:
        one.wait()


@contextmanager
def _group(device: str) -> Iterator[None]:
    """Join the other processes for the block."""
    global _joined
    from torch import cuda, distributed

    from mifuse_cli.model.device import find_device

    found = find_device(device)
    if found.type == "cuda":
        cuda.set_device(found)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo", timeout=_PATIENCE
    )
    _joined = True
    try:
        yield
        gathered(lambda: None)  # so that none leaves while another still talks to it
        distributed.destroy_process_group()
    finally:
        _joined = False


@contextmanager
def _apart() -> Iterator[None]:
    """Leave the others for the block."""
    global _joined
    _joined = False
    try:
        yield
    finally:
        _joined = True
