"""Reading the files of an encoder's directory: configuration, weights and feature extractor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import InputError

_ATTENTION = {True: "sdpa", False: "eager", None: None}
"""By whether a class has scaled-dot-product attention; one that only finds the class of a model does not say."""


def read_config(directory: Path) -> dict[str, Any]:
    """Content of a directory's ``config.json``.

    Raises:
        InputError: there is none, or it is no JSON.
    """
    try:
        return json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: has no readable config.json ({error}).") from None


def pretrained(model_class: Any, directory: Path, part: str = "") -> Any:
    """Load a transformers model in float32; refuse weights that would leave part of it randomly initialised.

    Args:
        model_class: class of transformers with ``from_pretrained``.
        directory: of the model.
        part: first word of the names of the tensors that are needed; "" for all.

    Raises:
        InputError: files that cannot be read, or that lack weights.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            directory,
            dtype=torch.float32,
            # Whatever a configuration asks for, which may be slower or not installed.
            attn_implementation=_ATTENTION[getattr(model_class, "_supports_sdpa", None)],
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{directory}: cannot be loaded as an encoder ({error}).") from None
    missing = sorted(
        key for key in info["missing_keys"] if key.startswith(part) and "masked_spec_embed" not in key
    )
    if missing:
        raise InputError(
            f"{directory}: has no weights for {len(missing)} encoder tensors, first {missing[0]!r}."
        )
    return model


def feature_extractor(directory: Path) -> Any:
    """The transformers feature extractor in a directory.

    Raises:
        InputError: its ``preprocessor_config.json`` is missing or cannot be read, or is for another sampling rate.
    """
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: its preprocessor_config.json cannot be loaded ({error}).") from None
    check_rate(directory, extractor.sampling_rate)
    return extractor


def check_rate(directory: Path, rate: int) -> None:
    """Refuse a model for audio at another rate.

    Raises:
        InputError: that it is.
    """
    if rate != RATE:
        raise InputError(f"{directory}: is for audio at {rate} Hz, expected {RATE}. Give another model.")


def read_tensor(path: Path, name: str, shape: Sequence[int]) -> Tensor:
    """A tensor of a safetensors file.

    Raises:
        InputError: the file cannot be read, or holds none of this name and shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: cannot be loaded ({error}).") from None
    if found.shape != tuple(shape):
        raise InputError(f"{path}: {name} is {tuple(found.shape)}, expected {tuple(shape)}.")
    return found


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module, whose tensors it has to hold by the same names and shapes.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: weights cannot be loaded ({error}).") from None
