"""What ``torchrun`` and ``accelerate launch`` tell a process that they start, in its environment."""

from __future__ import annotations

import os
import time

_TOLD = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"}
_PATIENCE_S = 30.0


def started() -> int:
    """How many processes were started for this command; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _TOLD else 1


def number() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if started() > 1 else 0


def number_here() -> int:
    """Number of this process among those on this machine, from 0, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if started() > 1 else 0


def let_the_first_speak() -> None:
    """Wait, unless this is the first process: if that one fails as well, the launcher ends this one meanwhile."""
    if number():
        time.sleep(_PATIENCE_S)
