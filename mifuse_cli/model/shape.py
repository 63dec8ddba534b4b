"""What the ``config.json`` of a checkpoint says; read without torch, which takes seconds to import."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mifuse_cli.errors import ArtifactError, InputError

PRECISIONS = ("fp32", "bf16")
POOLINGS = ("mean", "mean+deviation", "attentive")
"""What becomes of the frames of a hidden state: mean; mean and standard deviation; a mean with learned weights."""
_TYPE = "mifuse-classifier"


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
        ArtifactError: a model of another type, or one that this version cannot run.
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
        classes = tuple(config["id2label"][str(number)] for number in range(len(config["id2label"])))
        names = [name for name in Shape.__dataclass_fields__ if name != "classes"]
        return Shape(
            classes=classes, **{**{name: config[name] for name in names}, "layers": tuple(config["layers"])}
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{directory}/config.json: lacks {error}. Train the model anew.") from None
