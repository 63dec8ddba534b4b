"""What the ``config.json`` of a checkpoint says; read without torch, which takes seconds to import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import artifacts
from mifuse_cli.config import NORMALIZATIONS
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import nearest, read_text

PRECISIONS = ("fp32", "bf16")
POOLINGS = ("mean", "mean+deviation", "attentive")
"""What becomes of the frames of a hidden state: mean; mean and standard deviation; a mean with learned weights."""
_TYPE = "mifuse-classifier"
_LARGEST, _MOST_LAYERS = 1 << 20, 1000
"""Width of a layer and number of layers: what is larger is no encoder, and would fill the memory."""


@dataclass(frozen=True)
class Shape:
    """What ``config.json`` says of a classifier.

    Attributes:
        classes: in the order of the logits.
        layers: positions of the hidden states that the head sees; width: D of each.
        hidden, dropout: of the head.
        normalize: one of `config.NORMALIZATIONS`; how its inputs are standardised by default.
        statistics_of: "source" or "target", the domain that the stored statistics describe.
        tune: "head", "top-N" or "all": what was trained last.
        encoder: directory or hub name given as ``--encoder``; the files are in ``encoder/``.
        temperature: fitted on the validation clips; logits are divided by it if calibration is requested.
        precision: of the encoder, one of `PRECISIONS`.
        linear: whether the head has a linear part, as in students of cross-fit labels.
        pooling: of the hidden states over time, one of `POOLINGS`.
        states: number of hidden states that the encoder has; 0: not recorded, as in older checkpoints.
    """

    classes: tuple[str, ...]
    layers: tuple[int, ...]
    width: int
    hidden: int
    dropout: float
    normalize: str
    statistics_of: str
    tune: str
    encoder: str
    temperature: float
    precision: str = "fp32"
    linear: bool = False
    pooling: str = "mean"
    states: int = 0

    def as_config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "model_type": _TYPE,
            "architectures": ["EmotionClassifier"],
            "id2label": dict(enumerate(self.classes)),
            "label2id": {name: number for number, name in enumerate(self.classes)},
            **{key: value for key, value in asdict(self).items() if key != "classes"},
        }


def read_shape(directory: Path) -> Shape:
    """Shape of the classifier in a checkpoint directory; its weights are not read.

    Raises:
        InputError: no checkpoint there, or an unreadable one.
        ArtifactError: a model of another type, such as an exported one, or one that this version cannot run.
    """
    _check_place(directory)
    try:
        config: Any = json.loads(read_text(directory / "config.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{directory}: is no readable checkpoint ({error}). Make one with mifuse train-source or train."
        ) from None
    if not isinstance(config, dict):
        raise InputError(
            f"{directory}/config.json: holds {type(config).__name__}, expected a mapping. Train the model anew."
        )
    if config.get("model_type") != _TYPE:
        raise ArtifactError(
            f"{directory}: is a {config.get('model_type')!r} model, expected a mifuse checkpoint. "
            "Encoders go to mifuse train-source --encoder."
        )
    # Older checkpoints do not record these.
    config.setdefault("precision", "fp32")
    config = {"linear": False, "pooling": "mean", "states": 0, **config}
    for name, known in (("precision", PRECISIONS), ("pooling", POOLINGS)):
        if config[name] not in known:
            raise ArtifactError(
                f"{directory}/config.json: {name} {config[name]!r}, expected one of {', '.join(known)}. "
                "Upgrade mifuse or train the model anew."
            )
    try:
        names = config["id2label"]
        classes = tuple(names[str(number)] for number in range(len(names)))
        values = {name: config[name] for name in Shape.__dataclass_fields__ if name != "classes"}
        shape = Shape(classes=classes, **{**values, "layers": tuple(values["layers"])})
        faults = list(_faults(shape))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{directory}/config.json: lacks {error}. Train the model anew.") from None
    if faults:
        raise ArtifactError(f"{directory}/config.json: {'; '.join(faults)}. Train the model anew.")
    return shape


def _check_place(directory: Path) -> None:
    """Refuse a path at which no directory with a configuration is.

    Raises:
        InputError: saying what is there instead.
        ArtifactError: what is there was exported.
    """
    make = "Make one with mifuse train-source or train"
    if not directory.exists():
        raise InputError(f"{directory}: no such directory{nearest(directory)}. {make}, or check the path.")
    if artifacts.is_export(directory):
        raise ArtifactError(f"{directory}: is {artifacts.what(directory)}. Give that one.")
    if (directory / "config.json").exists():
        return
    if artifacts.is_checkpoint(directory):
        raise InputError(f"{directory}: is no readable checkpoint: it lacks config.json. {make}.")
    if artifacts.is_checkpoint(directory.parent) and not directory.is_dir():
        raise InputError(f"{directory}: is a file of a checkpoint. Give the directory {directory.parent}.")
    found, expected = artifacts.what(directory), artifacts.CHECKPOINT
    raise InputError(f"{directory}: is no readable checkpoint, but {found}. Expected {expected}. {make}.")


def _faults(shape: Shape) -> Iterator[str]:
    """What no head can have."""
    texts = {name: getattr(shape, name) for name in ("normalize", "statistics_of", "tune", "encoder")}
    for name, value in {**texts, "classes": shape.classes, "linear": shape.linear}.items():
        kind = bool if name == "linear" else tuple if name == "classes" else str
        if not isinstance(value, kind):
            yield f"{name} {value!r}, expected {kind.__name__}"
    if not shape.classes or not all(isinstance(one, str) and one for one in shape.classes):
        yield f"classes {shape.classes!r}, expected names"
    if shape.normalize not in NORMALIZATIONS or shape.statistics_of not in ("source", "target"):
        yield f"normalize {shape.normalize!r} with statistics of {shape.statistics_of!r}"
    for name in ("width", "hidden"):
        if not _is_whole(getattr(shape, name), 1):
            yield f"{name} {getattr(shape, name)!r}, expected a whole number from 1 to {_LARGEST}"
    if not 0 < len(shape.layers) <= _MOST_LAYERS or not all(_is_whole(one, 0) for one in shape.layers):
        yield f"layers {shape.layers!r}, expected positions of hidden states"
    for name, low, high in (("dropout", 0.0, 1.0), ("temperature", 1e-6, 1e6)):
        value = getattr(shape, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
            yield f"{name} {value!r}, expected a number from {low:g} to {high:g}"


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST
