"""``mifuse show``: what an artifact or a checkpoint is and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import artifacts, lineage
from mifuse_cli.artifacts import Evaluation, Fused, Lalm, Parent, Predictions, Source
from mifuse_cli.config import Config, Progress, option
from mifuse_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ShowConfig(Config):
    """Show kind, schema, counts, lineage and parameters of an artifact or a checkpoint directory."""

    file: Path = option(help="Artifact, or checkpoint directory.", positional=True)


@dataclass(frozen=True)
class ShowResult:
    """Description of an artifact or a checkpoint.

    Attributes:
        file: as given.
        kind: kind of artifact, or "checkpoint".
        schema_version: of the artifact's schema.
        classes: names in order.
        sizes: length of every axis by letter.
        datasets: axes, shape and meaning of every dataset.
        rates: by name rates in [0, 1] by class: the mean of the distributions, the estimated prior, recalls.
        summary: counts, tokens and cost of the answers of query-lalm; empty for other kinds.
        parents: role, path, hash, and state: "unchanged", "changed", "absent" or "not compared".
        parameters: what the step recorded.
        config: the resolved configuration.
        seed, created, command, versions: of the run that made it.
        sha256: content hash.
    """

    file: Path
    kind: str
    schema_version: int
    classes: tuple[str, ...]
    sizes: dict[str, int]
    datasets: dict[str, dict[str, Any]]
    rates: dict[str, dict[str, float | None]]
    summary: dict[str, Any]
    parents: list[dict[str, str]]
    parameters: dict[str, Any]
    config: dict[str, Any]
    seed: int
    created: str
    command: str
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)


def show(config: ShowConfig, *, progress: Progress | None = None) -> ShowResult:
    """Read and check an artifact, and compare its parents with the files that are at their paths now.

    Raises:
        InputError: no such file, or not readable; a directory that is no checkpoint.
        ArtifactError: no valid artifact.
    """
    is_checkpoint = artifacts.is_checkpoint(config.file)
    if config.file.is_dir() and not is_checkpoint:
        raise InputError(
            f"{config.file}: is {artifacts.what(config.file)}. Expected an artifact (.h5) or {artifacts.CHECKPOINT}; "
            "mifuse report takes directories of them."
        )
    path = config.file / "train.h5" if is_checkpoint else config.file
    made = artifacts.read(path)
    header = made.header
    return ShowResult(
        file=config.file,
        kind="checkpoint" if is_checkpoint else made.kind,
        schema_version=header.schema_version,
        classes=header.classes,
        sizes=made.sizes(),
        datasets={
            name: {"axes": "".join(f"{a} " for a in made.columns()[name]["axes"]).strip(),
                   "shape": list(array.shape), "holds": made.columns()[name]["holds"]}
            for name, array in made.arrays().items()
        },
        rates=_rates(made),
        summary=header.parameters.get("summary", {}),
        parents=[
            {"role": one.role, "path": one.path, "sha256": one.sha256, "state": _state(path, one)}
            for one in header.parents
        ],
        parameters={name: value for name, value in header.parameters.items() if name != "summary"},
        config={key: value for key, value in header.config.items() if key != "settings"},
        seed=header.seed,
        created=header.created,
        command=header.command,
        sha256=lineage.digest(config.file),
        versions=header.versions,
    )  # fmt: skip


def _state(path: Path, parent: Parent) -> str:
    try:
        return lineage.state(path, parent)
    except InputError:
        return "not readable"


def _rates(made: artifacts.Artifact) -> dict[str, dict[str, float | None]]:
    """What a terminal can draw of an artifact, by name and class."""
    found: dict[str, list[float | None]] = {}
    if isinstance(made, Lalm | Source | Fused | Predictions | Evaluation):
        known = made.probs[~np.isnan(made.probs).any(axis=-1)]
        if len(known):
            found["mean probability"] = known.mean(axis=0, dtype=float).tolist()
    if isinstance(made, Fused) and made.prior is not None:
        found["estimated prior"] = made.prior.tolist()
    if isinstance(made, Fused) and made.recall is not None:
        for teacher, values in zip(made.header.parameters["teachers"], made.recall, strict=True):
            found[f"estimated recall, {teacher}"] = [None if np.isnan(v) else float(v) for v in values]
    if isinstance(made, Evaluation):
        found["recall"] = made.header.parameters["metrics"]["recall"]
    classes = made.header.classes
    return {name: dict(zip(classes, values, strict=True)) for name, values in found.items()}
