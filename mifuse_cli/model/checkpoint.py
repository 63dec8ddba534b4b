"""Checkpoints: a directory with everything a classifier needs, in transformers conventions, never pickle.

``config.json`` (classes in order as ``id2label``, head, layers, normalisation, temperature),
``model.safetensors`` (head and feature statistics), ``preprocessor_config.json`` (sampling rate),
``encoder/`` (the encoder in its own format) and ``train.h5`` (history and lineage).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mifuse_cli import lineage
from mifuse_cli.artifacts import Predictions, Training
from mifuse_cli.audio import RATE
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import atomic_directory
from mifuse_cli.model.classifier import Classifier, Head
from mifuse_cli.model.encoder import copy_encoder
from mifuse_cli.model.standard import Statistics

_TYPE = "mifuse-classifier"


@dataclass(frozen=True)
class Shape:
    """What ``config.json`` says of a classifier.

    Attributes:
        classes: in the order of the logits.
        layers: positions of the hidden states that the head sees; width: D of each.
        hidden, dropout: of the head.
        normalize: one of `standard.MODES`; how its inputs are standardised unless said otherwise.
        statistics_of: "source" or "target", the domain that the stored statistics describe.
        tune: "head", "top-N" or "all": what was trained last.
        encoder: name that the encoder was given by; its files are in ``encoder/``.
        temperature: fitted on the validation clips; logits are divided by it where calibration is asked for.
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


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A classifier's shape, its head, the feature statistics, and where its encoder is."""

    shape: Shape
    head: Head
    statistics: Statistics
    encoder_dir: Path

    def calibrate(self) -> None:
        """Divide logits by the fitted temperature from here on, in training too."""
        self.head.temperature.fill_(self.shape.temperature)

    def encoder_digest(self) -> str:
        """Content hash of the encoder."""
        return lineage.digest(self.encoder_dir)


def new_head(shape: Shape) -> Head:
    """A head of this shape with weights drawn from torch's generator."""
    return Head(len(shape.layers), shape.width, len(shape.classes), shape.hidden, shape.dropout)


def save(
    out: Path,
    shape: Shape,
    model: Classifier,
    statistics: Statistics,
    encoder_dir: Path,
    history: Training,
    predictions: Predictions | None = None,
) -> Path:
    """Write a checkpoint directory atomically and return it.

    Args:
        out: the directory; an older one there is replaced.
        shape: written to ``config.json``.
        model: its head is saved, and its encoder if it has one.
        statistics: (L, D) feature statistics.
        encoder_dir: files of the encoder, copied if the model has none of its own.
        history: saved as ``train.h5`` with the hash of the model added to its parameters.
        predictions: saved as ``predictions.h5``.
    """
    from safetensors.torch import save_file

    tensors = {**model.head.state_dict(), "feature_mean": statistics.mean, "feature_std": statistics.std}
    config = {
        "model_type": _TYPE,
        "architectures": ["EmotionClassifier"],
        "id2label": dict(enumerate(shape.classes)),
        "label2id": {name: number for number, name in enumerate(shape.classes)},
        **{key: value for key, value in asdict(shape).items() if key != "classes"},
    }
    with atomic_directory(out) as directory:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, directory / "model.safetensors"
        )
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if model.encoder is None:
            copy_encoder(encoder_dir, directory / "encoder")
        else:
            (directory / "encoder").mkdir()
            model.encoder.save(directory / "encoder")
        extractor = directory / "encoder" / "preprocessor_config.json"
        if extractor.exists():
            shutil.copyfile(extractor, directory / "preprocessor_config.json")
        else:
            (directory / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": RATE}) + "\n")
        parameters = {**history.header.parameters, "model_sha256": lineage.digest(directory)}
        replace(history, header=replace(history.header, parameters=parameters)).save(directory / "train.h5")
        if predictions is not None:
            predictions.save(directory / "predictions.h5")
    return out


def read_shape(directory: Path) -> Shape:
    """Shape of the classifier in a checkpoint directory, read without torch's weights.

    Raises:
        InputError: no checkpoint there, or an unreadable one.
        ArtifactError: a model of another type.
    """
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory}: is no readable checkpoint ({error}). Make one with mifuse train-source or train."
        ) from None
    if config.get("model_type") != _TYPE:
        raise ArtifactError(
            f"{directory}: is a {config.get('model_type')!r} model, expected a mifuse checkpoint. "
            "Encoders go to mifuse train-source --encoder."
        )
    try:
        classes = tuple(config["id2label"][str(number)] for number in range(len(config["id2label"])))
        names = [name for name in Shape.__dataclass_fields__ if name != "classes"]
        return Shape(
            classes=classes, **{**{name: config[name] for name in names}, "layers": tuple(config["layers"])}
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{directory}/config.json: lacks {error}. Train the model anew.") from None


def load(directory: Path) -> Checkpoint:
    """The classifier in a checkpoint directory; its encoder stays on disk until it is needed.

    Raises:
        InputError: no checkpoint there, or weights that cannot be read or do not fit.
        ArtifactError: a model of another type.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shape = read_shape(directory)
    try:
        tensors = load_file(directory / "model.safetensors")
        statistics = Statistics(tensors.pop("feature_mean"), tensors.pop("feature_std"))
        head = new_head(shape)
        head.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{directory}/model.safetensors: cannot be loaded ({error}). Train the model anew."
        ) from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(
            f"{directory}/model.safetensors: holds NaN or infinite weights. Train the model anew."
        )
    return Checkpoint(shape, head.eval(), statistics, directory / "encoder")
