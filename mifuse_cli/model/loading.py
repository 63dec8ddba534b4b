"""Reading the files of an encoder's directory: configuration, weights and feature extractor."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mifuse_cli.audio import RATE
from mifuse_cli.errors import DependencyError, InputError, MifuseError
from mifuse_cli.files import check_file, read_text

_Network = TypeVar("_Network", bound=nn.Module)
_EXTRACTOR = "preprocessor_config.json"
_LARGEST, _LARGEST_LIST = 1 << 24, 1 << 12
_MOST = {"n_fft": 1 << 14, "feature_size": 1 << 12, "mel": 1 << 12, "_layers": 1000}
"""Largest numbers in a configuration, by part of their name; of others `_LARGEST`."""
_CONVERT = (
    "import pathlib, sys, torch; from safetensors.torch import save_file; d = pathlib.Path(sys.argv[1]); "
    "parts = [torch.load(f, weights_only=True) for f in sorted(d.glob('pytorch_model*.bin'))]; "
    "save_file({k: v.contiguous().clone() for p in parts for k, v in p.items()}, d / 'model.safetensors', "
    "{'format': 'pt'})"
)
"""What makes safetensors of pickled weights, which it reads as tensors alone; tensors that share memory are parted."""
_COMPRESSED, _SMALL = 8, 64 << 20
"""Bytes of weights in memory for a byte in files, at most, beside so many that do not matter."""

_ATTENTION = {True: "sdpa", False: "eager", None: None}
"""By whether a class has scaled-dot-product attention; one that only finds the class of a model does not say."""


def read_config(directory: Path) -> dict[str, Any]:
    """Content of a directory's ``config.json``, if the directory is one that may be loaded.

    Raises:
        InputError: there is none, or it is no mapping in JSON; sizes that no model has; weights that are no files, are
            outside of the directory, or are pickled.
    """
    for pattern in ("*.json", "*.safetensors"):
        for file in directory.glob(pattern):
            check_file(file)
    pickled = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if pickled and not any(directory.glob("*.safetensors")):
        raise InputError(
            f"{directory}: holds its weights as {pickled[0]}, a pickle, which could run code and is never read. "
            f"Expected model.safetensors. If you trust the model, convert it: python -c {shlex.quote(_CONVERT)} "
            f"{shlex.quote(str(directory))}"
        )
    config = _mapping(directory / "config.json")
    _check_sizes(config, directory / "config.json")
    if (directory / _EXTRACTOR).exists():
        _check_sizes(_mapping(directory / _EXTRACTOR), directory / _EXTRACTOR)
    for index in directory.glob("*.safetensors.index.json"):
        parts = _mapping(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(one, str) for one in parts.values()):
            raise InputError(f"{index}: has no weight_map from tensors to files. Get the model anew.")
        for name in sorted(set(parts.values())):
            if name != Path(name).name or not (directory / name).is_file():
                raise InputError(f"{index}: names weights in {name!r}, which is no file of this directory.")
    return config


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.parent}: has no readable {path.name} ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds {type(found).__name__}, expected a mapping.")
    return found


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    """Refuse numbers that would fill the memory or the time before any weight is read."""
    for name, value in config.items():
        most = next((most for part, most in _MOST.items() if part in name), _LARGEST)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= most:
                raise InputError(f"{path}: {name} {number!r}, expected at most {most}.")
        if isinstance(value, list) and len(value) > _LARGEST_LIST:
            raise InputError(f"{path}: {name} has {len(value)} values, expected at most {_LARGEST_LIST}.")


@contextmanager
def loading(directory: Path, what: str) -> Iterator[None]:
    """Whatever a library stumbles over in files of another form, as an error of the directory."""
    try:
        yield
    except MifuseError:
        raise
    except ImportError as error:
        raise DependencyError(f"{directory}: {what} needs what is not installed ({error}).") from None
    except Exception as error:
        # With trust_remote_code=False, transformers tells people to set it; that is not to be had here.
        why = (
            "it comes with code of its own, which is never run"
            if "trust_remote_code" in str(error)
            else error
        )
        named = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise InputError(f"{directory}: {what} cannot be loaded ({named}{why}).") from None


def pretrained(model_class: Any, directory: Path, part: str = "") -> Any:
    """Load a transformers model in float32; refuse weights that would leave part of it randomly initialised.

    Code in the directory is never run, and weights are read from safetensors alone.

    Args:
        model_class: class of transformers with ``from_pretrained``.
        directory: of the model, see `read_config`.
        part: first word of the names of the tensors that are needed; "" for all.

    Raises:
        InputError: files that cannot be read, or that lack weights.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with loading(directory, "an encoder"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):  # takes no memory, whatever the configuration claims
            make = getattr(model_class, "from_config", model_class)
            needed = sum(4 * tensor.numel() for tensor in make(config).parameters())
        there = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        if needed > _COMPRESSED * there + _SMALL:
            raise InputError(
                f"{directory}: config.json tells of {needed / 1e6:.0f} MB of weights, but its files hold "
                f"{there / 1e6:.0f} MB. Get the model anew."
            )
        model, info = model_class.from_pretrained(
            directory,
            dtype=torch.float32,
            # Whatever a configuration asks for, which may be slower or not installed.
            attn_implementation=_ATTENTION[getattr(model_class, "_supports_sdpa", None)],
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
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

    with loading(directory, f"its {_EXTRACTOR}"):
        extractor = AutoFeatureExtractor.from_pretrained(directory, trust_remote_code=False)
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


def tried(network: _Network, directory: Path) -> _Network:
    """A network in evaluation mode that makes finite values of a short clip.

    Raises:
        InputError: it does not: its configuration or weights make no sense.
    """
    network.eval()
    clip = torch.sin(torch.arange(RATE) * 0.1)
    with loading(directory, "an encoder"), torch.no_grad():
        found = network([clip])
    if not torch.isfinite(found).all():
        raise InputError(
            f"{directory}: gives a vector with NaN or infinity; its weights are damaged. Get the model anew."
        )
    return network


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module, whose tensors it has to hold by the same names and shapes.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if not path.is_file():
            raise OSError("no such file, or a device")
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: weights cannot be loaded ({error}).") from None
