"""Options and result of ``mifuse train``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli.config import (
    StepConfig,
    above_zero,
    at_least,
    between,
    one_of,
    option,
    target_problems,
    tune_problems,
)

METHODS = (
    "mifuse",
    "lalm-sfuda",
    "shot",
    "shot-im",
    "shot+lalm",
    "nrc",
    "nrc+lalm",
    "aad",
    "tent",
    "dine",
    "prode",
    "oracle",
)
RECIPES = ("paper", "best")
WITHOUT_LALM = ("shot", "shot-im", "nrc", "aad", "tent", "oracle")
"""Methods that hear no audio-language model, so that they need no fused labels."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig):
    """Train a student on unlabelled clips, by fused labels or another method, starting from the source model."""

    fused: Path | None = option(None, f"Artifact of fuse; all methods but {', '.join(WITHOUT_LALM)} need it.")
    model: Path = option(
        help="Checkpoint directory of the source classifier, that which the fused labels came from."
    )
    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.")
    out: Path = option(help="Checkpoint directory to write.")
    method: str = option(
        "mifuse",
        "mifuse: fused labels, EMA teacher; lalm-sfuda: the LALMs' mean answers alone; further: "
        f"{', '.join(METHODS[2:])}.",
    )
    recipe: str = option(
        "paper",
        "Of --method mifuse. paper: labels weighed by mutual information, fused anew with an EMA teacher; best: "
        "labels that both teachers and the structure of the clips agree on (docs/experiments.md).",
    )
    labels: Path | None = option(
        None, "CSV of the clips with their emotions, for --method oracle alone: an upper bound, not a result."
    )
    normalize: str = option(
        "",
        "Without --fused: source, target or speaker statistics standardise the input; default: as the model's.",
    )
    tune: str = option("head", "What to train: head, top-N blocks of the encoder too, or all.")
    epochs: int = option(30, "Epochs; the model after the last one is saved.")
    batch_size: int = option(64, "Clips a batch, at most.")
    learning_rate: float = option(5e-4, "AdamW learning rate of the head.")
    encoder_learning_rate: float = option(2e-5, "AdamW learning rate of the encoder where it is trained.")
    weight_decay: float = option(0.01, "AdamW weight decay.")
    diversity_weight: float = option(
        1.0, "Weight of the diversity loss of mifuse, lalm-sfuda, shot and nrc; 0 leaves it out."
    )
    diversity_prior: str = option(
        "uniform", "Class marginal that the diversity loss pulls to: uniform, or that of the labels."
    )
    ema: float = option(0.99, "Momentum a step of the classifier teacher, which follows the student.")
    refresh: int = option(1, "Epochs between sampling the teacher and fusing anew; 0: never.")
    cache_dir: Path | None = option(
        None, "Directory of the feature cache; default: MIFUSE_CACHE_DIR or the user's cache.", settles=False
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        yield from one_of("--method", self.method, METHODS)
        yield from one_of("--recipe", self.recipe, RECIPES)
        if self.fused is None and self.method not in WITHOUT_LALM:
            yield f"--fused: --method {self.method} learns from a LALM, give the artifact of fuse"
        if (self.labels is None) == (self.method == "oracle"):
            yield "--labels: --method oracle needs them, and no other method may see them"
        if self.normalize:
            yield from one_of("--normalize", self.normalize, ("source", "target", "speaker"))
        if self.normalize and self.fused:
            yield "--normalize: the fused labels settle it; leave it out"
        yield from tune_problems(self.tune)
        if self.method == "tent" and self.tune != "head":
            yield f"--tune {self.tune}: --method tent moves nothing but the scale and shift of the head's input"
        yield from one_of("--diversity-prior", self.diversity_prior, ("uniform", "labels"))
        if self.diversity_prior == "labels" and self.method not in ("mifuse", "lalm-sfuda"):
            yield f"--diversity-prior labels: --method {self.method} has no labels to take a marginal from"
        yield from at_least("--epochs", self.epochs, 1)
        yield from at_least("--batch-size", self.batch_size, 1)
        yield from at_least("--refresh", self.refresh, 0)
        yield from at_least("--diversity-weight", self.diversity_weight, 0)
        yield from above_zero("--learning-rate", self.learning_rate)
        yield from above_zero("--encoder-learning-rate", self.encoder_learning_rate)
        yield from at_least("--weight-decay", self.weight_decay, 0)
        yield from between("--ema", self.ema, 0, 1)


@dataclass(frozen=True)
class TrainResult:
    """What was trained.

    Attributes:
        out: checkpoint directory of the student, with its ``predictions.h5`` on the target clips.
        method: as configured.
        clips, epochs: how much it was trained on.
        losses: mean of every loss term in the last epoch.
        marginal: mean predicted probability by class.
        resumed_from: epoch that an interrupted run had reached, 0 if there was none.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    method: str
    clips: int
    epochs: int
    losses: dict[str, float]
    marginal: dict[str, float]
    resumed_from: int = 0
    up_to_date: bool = False
    notes: tuple[str, ...] = ()
