"""The device that a step runs on."""

from __future__ import annotations

import torch

from mifuse_cli.errors import DependencyError, UsageError
from mifuse_cli.model.launcher import number_here, started


def find_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first GPU if there is one, else the CPU.

    Of several processes on a machine, ``auto`` and ``cuda`` give each a GPU of its own.

    Raises:
        UsageError: no such kind of device, or one GPU for several processes.
        DependencyError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if started() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UsageError(f"--device {name}: each of {started()} processes needs its own GPU; give cuda.")
        name = f"cuda:{number_here()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise DependencyError(
            f"--device {name}: {torch.cuda.device_count()} CUDA GPUs are there. Use --device cpu or auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DependencyError("--device mps: not available here. Use --device cpu or auto.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device
