"""Checkpoints: a directory with everything a classifier needs, in transformers conventions, never pickle.

``config.json`` (classes in order as ``id2label``, head, layers, normalisation, temperature, precision),
``model.safetensors`` (head and feature statistics), ``preprocessor_config.json`` (sampling rate),
``encoder/`` (the encoder in its own format) and ``train.h5`` (history and lineage).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from mifuse_cli import lineage
from mifuse_cli.artifacts import Predictions, Training
from mifuse_cli.audio import RATE
from mifuse_cli.errors import InputError, some
from mifuse_cli.files import atomic_directory, check_file
from mifuse_cli.model.classifier import Classifier, Head
from mifuse_cli.model.encoder import copy_encoder
from mifuse_cli.model.features import FrozenEncoder
from mifuse_cli.model.shape import Shape, read_shape
from mifuse_cli.model.standard import Statistics


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

    def encoder(self, states: int = 0) -> FrozenEncoder:
        """The encoder, for its first hidden states or, with 0, all of them."""
        shape = self.shape
        called = shape.encoder if shape.tune == "head" else f"{shape.encoder}, trained"
        return FrozenEncoder(self.encoder_dir, shape.precision, shape.pooling, states, called)

    def encoder_digest(self) -> str:
        """Content hash of the encoder."""
        return lineage.digest(self.encoder_dir)


def new_head(shape: Shape) -> Head:
    """A head of this shape with weights drawn from torch's generator."""
    layers, classes = len(shape.layers), len(shape.classes)
    return Head(layers, shape.width, classes, shape.hidden, shape.dropout, linear=shape.linear)


def save(
    out: Path,
    shape: Shape,
    model: Classifier,
    statistics: Statistics,
    encoder_dir: Path,
    history: Training,
    predictions: Predictions | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write a checkpoint directory atomically and return it.

    Args:
        out: the directory.
        shape: written to ``config.json``.
        model: its head is saved, and its encoder if it has one.
        statistics: (L, D) feature statistics.
        encoder_dir: files of the encoder, copied if the model has none of its own.
        history: saved as ``train.h5`` with the hash of the model added to its parameters.
        predictions: saved as ``predictions.h5``.
        replace: whether a directory that is there by then may be replaced.

    Raises:
        InputError: it cannot be written, or must not be replaced.
    """
    from safetensors.torch import save_file

    tensors = {**model.head.state_dict(), "feature_mean": statistics.mean, "feature_std": statistics.std}
    with atomic_directory(out, replace=replace) as directory:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, directory / "model.safetensors"
        )
        (directory / "config.json").write_text(json.dumps(shape.as_config(), indent=2) + "\n")
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
        dataclasses.replace(history, header=dataclasses.replace(history.header, parameters=parameters)).save(
            directory / "train.h5"
        )
        if predictions is not None:
            predictions.save(directory / "predictions.h5")
    return out


def load(directory: Path) -> Checkpoint:
    """The classifier in a checkpoint directory; its encoder stays on disk until it is needed.

    Raises:
        InputError: no checkpoint there, or weights that cannot be read or do not fit.
        ArtifactError: a model of another type.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shape, path = read_shape(directory), directory / "model.safetensors"
    try:
        tensors = load_file(check_file(path))
        statistics = Statistics(tensors.pop("feature_mean"), tensors.pop("feature_std"))
        with torch.device("meta"):  # takes no memory, whatever the configuration claims
            expected = new_head(shape).state_dict()
        # Older checkpoints have no scale and shift.
        optional = {"scale", "shift"}
        if wrong := sorted(
            name
            for name in expected.keys() | tensors.keys()
            if getattr(expected.get(name), "shape", None) != getattr(tensors.get(name), "shape", None)
            and not (name in optional and name not in tensors)
        ):
            raise ValueError(f"{some(wrong)} not of the shape that config.json tells of")
        if not statistics.mean.shape == statistics.std.shape == (len(shape.layers), shape.width):
            raise ValueError(f"feature statistics of shape {tuple(statistics.mean.shape)}")
        head = new_head(shape)
        plain = {name: tensor for name, tensor in head.state_dict().items() if name in optional}
        head.load_state_dict({**plain, **tensors})
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be loaded ({error}). Train the model anew.") from None
    tensors |= {"feature_mean": statistics.mean, "feature_std": statistics.std}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(
            f"{directory}/model.safetensors: holds NaN or infinite weights. Train the model anew."
        )
    return Checkpoint(shape, head.eval(), statistics, directory / "encoder")
