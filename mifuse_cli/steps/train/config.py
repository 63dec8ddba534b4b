"""Options and result of ``mifuse train``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli.config import above_zero, one_of, option, target_problems, tune_problems
from mifuse_cli.methods.registry import METHODS, RECIPES, WITHOUT_LALM
from mifuse_cli.methods.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
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
        "mifuse: see --recipe; lalm-sfuda: the LALMs' mean answers alone; further: "
        f"{', '.join(METHODS[2:])}.",
    )
    recipe: str = option(
        RECIPES[0],
        "Of --method mifuse. best: labels that both teachers and the structure of the clips agree on "
        "(docs/experiments.md); paper: labels weighed by mutual information, fused anew with an EMA teacher.",
    )
    labels: Path | None = option(
        None, "CSV of the clips with their emotions, for --method oracle alone: an upper bound, not a result."
    )
    normalize: str = option(
        "",
        "Without --fused: source, target or speaker statistics standardise the input; default: as the model's.",
    )
    tune: str = option("head", "What to train: head, top-N blocks of the encoder too, or all.")
    encoder_learning_rate: float = option(2e-5, "AdamW learning rate of the encoder where it is trained.")
    diversity_prior: str = option(
        "uniform", "Class marginal that the diversity loss pulls to: uniform, or that of the labels."
    )
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
        yield from above_zero("--encoder-learning-rate", self.encoder_learning_rate)
        yield from super().problems()


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
