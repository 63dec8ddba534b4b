"""State of an unfinished training run on disk, as safetensors, so that a killed run can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.files import atomic_directory
from mifuse_cli.methods.loop import Method, State


def keep(directory: Path, identity: str, state: State, method: Method) -> None:
    """Write the state after an epoch, in place of the one before.

    Args:
        directory: where.
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
    with atomic_directory(directory) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / "state.safetensors"
        )
        (temporary / "state.json").write_text(json.dumps({"identity": identity, "epoch": state.epoch}))


def restore(directory: Path, identity: str, state: State, method: Method) -> int:
    """Bring ``state`` and the method's targets to where the kept run was; returns its epoch.

    Returns 0, and leaves everything as it is, where nothing of this identity was kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads((directory / "state.json").read_text())
        if about["identity"] != identity:
            return 0
        tensors = load_file(directory / "state.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError):
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
    state.epoch = about["epoch"]
    return state.epoch


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
