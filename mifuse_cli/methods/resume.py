"""State of an unfinished training run on disk, as safetensors, so that a killed run can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.files import atomic_file
from mifuse_cli.methods.loop import Method, State


def keep(path: Path, identity: str, state: State, method: Method) -> None:
    """Write the state after an epoch, in place of the one before.

    Args:
        path: a single file, so that replacing it is atomic and a killed run leaves a complete state.
        identity: hash of the configuration and the inputs; `restore` takes only a state with the same one.
        state: to be kept.
        method: its targets are kept too.
    """
    from safetensors.torch import save_file

    tensors = {f"student.{k}": v for k, v in state.student.state_dict().items()}
    if state.teacher is not None:
        tensors |= {f"teacher.{k}": v for k, v in state.teacher.state_dict().items()}
    tensors |= {f"targets.{k}": v for k, v in method.targets.items()}
    optimizer: dict[str, Any] = state.optimizer.state_dict()
    for number, slots in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{slot}": value for slot, value in slots.items()}
    tensors["history"] = torch.tensor(np.array(state.history))
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"identity": identity, "epoch": str(state.epoch)})


def restore(path: Path, identity: str, state: State, method: Method) -> int:
    """Restore ``state`` and the method's targets from the file; returns the epoch that had been reached.

    Returns 0 and changes nothing if there is no state with this identity.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("identity") != identity:
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return 0
    state.student.load_state_dict(_part(tensors, "student."))
    if state.teacher is not None:
        state.teacher.load_state_dict(_part(tensors, "teacher."))
    method.targets.update(_part(tensors, "targets."))
    optimizer = state.optimizer.state_dict()
    for name, value in _part(tensors, "optimizer.").items():
        number, slot = name.split(".")
        optimizer["state"].setdefault(int(number), {})[slot] = value
    state.optimizer.load_state_dict(optimizer)
    state.history[:] = tensors["history"].tolist()
    state.epoch = int(about["epoch"])
    return state.epoch


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
