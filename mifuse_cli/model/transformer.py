"""An audio model of transformers: found by what it takes and gives, and run up to the highest hidden state in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mifuse_cli.errors import InputError
from mifuse_cli.model.loading import loading, pretrained, read_config

_AUDIO = ("input_values", "input_features")
"""What transformers calls a waveform, and the spectrum that a feature extractor makes of one."""
_BLOCKS = ("layers", "layer")


def audio_model(directory: Path) -> Any:
    """The audio model in a directory, without any head that it has.

    Raises:
        InputError: a model that takes no audio, or files that cannot be loaded.
    """
    return pretrained(model_class(directory)[0], directory)


def model_class(directory: Path) -> tuple[Any, Any]:
    """Class and configuration of the audio model in a directory; its weights are not read.

    Raises:
        InputError: a model that takes no audio, or one that transformers does not know.
    """
    from transformers import MODEL_MAPPING, AutoConfig, __version__

    family = read_config(directory).get("model_type")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        found = MODEL_MAPPING[type(config)]
    except Exception:  # whatever transformers stumbles over in a configuration
        kind = f"a {family!r} model, which transformers {__version__} does not know"
        raise InputError(f"{directory}: {_expected(kind)}") from None
    if found.main_input_name not in _AUDIO:
        kind = f"a {family!r} model, whose input is {found.main_input_name!r}"
        raise InputError(f"{directory}: {_expected(kind)}")
    return found, config


def no_hidden_states(directory: Path, why: object) -> InputError:
    """What to say of an audio model that does not give hidden states for a second of audio."""
    return InputError(f"{directory}: {_expected(f'an audio model that gives no hidden states ({why})')}")


def _expected(found: str) -> str:
    return (
        f"holds {found}; expected an audio model of transformers whose input is {' or '.join(_AUDIO)} and that gives "
        "hidden states (B, T, D), such as wav2vec2, hubert, wavlm or whisper, or mifuse-logmel."
    )


def depth(directory: Path) -> int:
    """Number of blocks of the model in a directory; its weights are not read.

    Raises:
        InputError: as of `model_class`, or a model without blocks.
    """
    found, config = model_class(directory)
    with loading(directory, "an encoder"), torch.device("meta"):
        model = found(config)
    network = encoding_part(model)
    return len(network.get_submodule(blocks_of(directory, network)))


def encoding_part(model: Any) -> Any:
    """The model, or its encoder if it has a decoder too."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def blocks_of(directory: Path, network: nn.Module) -> str:
    """Name of the module list of a network's blocks.

    Raises:
        InputError: there is none.
    """
    lists = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _BLOCKS
    ]
    if not lists:
        raise no_hidden_states(directory, "it has no list of layers")
    return min(lists, key=lambda name: name.count("."))  # others are within its parts


def first_states(network: Any, inputs: Mapping[str, Tensor], blocks: str, count: int) -> Sequence[Tensor]:
    """The first ``count`` hidden states (B, T, D): the input of the first block, then what each block gives.

    No block above them is run.

    Args:
        network: of transformers.
        inputs: by name.
        blocks: as of `blocks_of`.
        count: of hidden states.
    """
    if count > len(network.get_submodule(blocks)):
        return network(**inputs, output_hidden_states=True).hidden_states
    with _noted(network, blocks, count) as states:
        try:
            network(**inputs)
        except _Reached:
            return states
    raise AssertionError("a block was not run")


class _Reached(Exception):
    """The highest hidden state in use is there."""


class _Noting(nn.Module):
    """A block that notes what it is given; the one above the highest hidden state in use ends the run there."""

    def __init__(self, block: nn.Module, states: list[Tensor], last: bool) -> None:
        super().__init__()
        self.block, self.states, self.last = block, states, last

    def forward(self, hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        self.states.append(hidden_states)
        if self.last:
            raise _Reached
        return self.block(hidden_states, *others, **named)


@contextmanager
def _noted(network: nn.Module, blocks: str, count: int) -> Iterator[list[Tensor]]:
    """What each of the first blocks is given, once the network is run within the context.

    The blocks stand in others for that time and not in hooks, which checkpointed blocks would run twice.
    """
    parent, name = network.get_submodule(blocks.rpartition(".")[0]), blocks.rpartition(".")[2]
    whole, states = getattr(parent, name), list[Tensor]()
    noting = [_Noting(block, states, number == count - 1) for number, block in enumerate(whole[:count])]
    setattr(parent, name, nn.ModuleList(noting))
    try:
        yield states
    finally:
        setattr(parent, name, whole)
