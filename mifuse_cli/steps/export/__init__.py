"""``mifuse export``: a model for others: a transformers directory, ONNX, or a folder for the hub with a model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli import lineage
from mifuse_cli.artifacts import Evaluation
from mifuse_cli.config import Config, Progress, StepResult, one_of, option
from mifuse_cli.errors import InputError
from mifuse_cli.files import atomic_directory
from mifuse_cli.model.shape import read_shape
from mifuse_cli.steps.export.card import card
from mifuse_cli.steps.export.history import check_scores, history_of

FORMATS = ("transformers", "onnx", "hub-folder")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Write a model for use without mifuse, with a model card: for transformers, as ONNX, or both as a folder for the
    model hub.
    """

    model: Path = option(help="Checkpoint directory, of train or train-source.")
    out: Path = option(help="Directory to write.")
    to: str = option(
        "transformers",
        "transformers: a directory that transformers.pipeline loads; onnx: model.onnx; hub-folder: both.",
    )
    evaluation: tuple[Path, ...] = option(
        (), "Artifact of evaluate with a score of this model, for the card; may be repeated."
    )
    source_corpus: str = option(
        "", "Name of the corpus of the source model, for the card; default: as prepare recorded it."
    )
    target_corpus: str = option(
        "", "Name of the corpus that the student was adapted to; default: as prepare recorded it."
    )
    license: str = option("", "Licence of the weights, by the hub's name for it, such as cc-by-nc-sa-4.0.")
    force: bool = option(False, "Overwrite an earlier export.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from one_of("--to", self.to, FORMATS)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class ExportResult(StepResult):
    """What was written.

    Attributes:
        out: the directory.
        to: as configured.
        files: bytes of every file by name.
        difference: largest difference of a probability between the model and what was exported, on two clips of noise.
    """

    to: str
    files: dict[str, int]
    difference: float


def export(config: ExportConfig, *, progress: Progress | None = None) -> ExportResult:
    """Write the model; nothing is written if what was exported gives other probabilities.

    Raises:
        InputError: a model or score that cannot be read, an output that exists.
        ArtifactError: the model is no mifuse checkpoint; a score of another model.
        DependencyError: ONNX was asked for and its packages are not installed.
        MifuseError: the exported model gives other probabilities than the model.
    """
    _refuse_overwrite(config)
    read_shape(config.model)  # the first to say what is there instead of a model
    scores = [(path, Evaluation.load(path)) for path in config.evaluation]
    check_scores(scores, config.model)
    history = history_of(config.model, source=config.source_corpus, target=config.target_corpus)

    from mifuse_cli.audio import RATE
    from mifuse_cli.model import checkpoint, exporting

    loaded = checkpoint.load(config.model)
    model = exporting.portable_model(loaded)
    to_transformers, to_onnx = config.to != "onnx", config.to != "transformers"
    if to_onnx:
        exporting.check_onnx()
    differences = [exporting.difference(loaded, model)]
    with atomic_directory(config.out, replace=config.force) as directory:
        if to_onnx:
            exporting.save_onnx(model, directory)
            differences.append(exporting.onnx_difference(model, directory))
        if to_transformers:
            exporting.save_transformers(model, directory)
        longest = model.states.longest
        text = card(
            loaded.shape,
            history,
            [score for _, score in scores],
            license=config.license,
            transformers=to_transformers,
            onnx=to_onnx,
            longest_s=None if longest is None else longest / RATE,
        )
        (directory / "README.md").write_text(text, encoding="utf-8")
        if config.to == "hub-folder":
            (directory / ".gitattributes").write_text(
                "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.onnx filter=lfs diff=lfs merge=lfs -text\n"
            )
    notes = []
    if loaded.shape.normalize == "speaker":
        notes.append(
            "the model was trained on input standardised by speaker; what is exported uses stored statistics, as "
            "predict --normalize source does"
        )
    if loaded.shape.precision != "fp32":
        notes.append(f"the encoder of the model runs in {loaded.shape.precision}, what is exported in fp32")
    unnamed = {
        "--source-corpus": not history.source,
        "--target-corpus": bool(history.method) and not history.target,
        "--license": not config.license,
        "--evaluation": not scores,
    }
    if any(unnamed.values()):
        missing = ", ".join(name for name, lacks in unnamed.items() if lacks)
        notes.append(f"the model card lacks what is told by {missing}; export again with --force to add it")
    return ExportResult(
        out=config.out,
        to=config.to,
        files={path.name: path.stat().st_size for path in sorted(config.out.iterdir())},
        difference=max(differences),
        notes=tuple(notes),
    )


def _refuse_overwrite(config: ExportConfig) -> None:
    out = config.out
    lineage.refuse_inputs(config, out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not any((out / name).is_file() for name in ("modeling_mifuse.py", "model.onnx")):
        raise InputError(f"{out}: exists already and is no earlier export. Choose another --out.")
    if not config.force:
        raise InputError(f"{out}: exists already. Choose another --out, or pass --force to overwrite it.")
