"""``mifuse compare-worlds``: one table of several comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mifuse_cli import lineage
from mifuse_cli.config import Progress
from mifuse_cli.errors import ArtifactError, InputError, did_you_mean
from mifuse_cli.files import is_empty, read_results, refuse_links, write_texts
from mifuse_cli.steps.compare_worlds.config import CompareWorldsConfig, CompareWorldsResult
from mifuse_cli.steps.compare_worlds.formatting import as_csv, markdown
from mifuse_cli.steps.compare_worlds.reading import World, read_world
from mifuse_cli.steps.compare_worlds.scoring import TEACHERS, results

__all__ = ["CompareWorldsConfig", "CompareWorldsResult", "compare_worlds"]


def compare_worlds(config: CompareWorldsConfig, *, progress: Progress | None = None) -> CompareWorldsResult:
    """Score the runs of several comparisons together and write the tables.

    Raises:
        InputError: a directory that holds no comparison, a system that one of them has not, an output that exists.
        ArtifactError: comparisons over other classes, of an earlier version, or whose runs changed since.
    """
    _refuse_other(config)
    lineage.refuse_inputs(config, config.out)
    worlds = [read_world(name, directory) for name, directory in config.named()]
    _check_classes(worlds)
    systems = [name for name in worlds[0].groups if all(name in world.groups for world in worlds)]
    ours = config.ours or worlds[0].ours
    for world in worlds:
        if ours not in world.groups:
            hint = did_you_mean(ours, world.groups)
            raise InputError(
                f"{world.directory}: has no system {ours!r}{hint}. Name one that all worlds have with --ours, or add "
                "it with mifuse compare."
            )
    found = results(config, worlds, systems, ours)
    texts = {
        "results.json": json.dumps(found, indent=1) + "\n",  # first: it tells what the directory is
        "table.md": markdown(found),
        "scores.csv": as_csv(worlds, systems),
    }
    changed = write_texts(config.out, texts)
    return CompareWorldsResult(
        out=config.out,
        results=found,
        up_to_date=config.update and not changed,
        notes=tuple(_notes(worlds, systems)),
    )


def _refuse_other(config: CompareWorldsConfig) -> None:
    """Refuse an output directory that holds something else, or that holds tables which must not be replaced."""
    refuse_links(config.out)
    if is_empty(config.out):
        return
    if (config.out / "runs").exists() or "worlds" not in read_results(config.out):
        raise InputError(
            f"{config.out}: is a directory that holds something else than tables of worlds. Choose another --out."
        )
    if not config.force and not config.update:
        raise InputError(
            f"{config.out}: exists already. Choose another --out, or pass --force to overwrite it (--update to do so "
            "only if its settings or inputs changed)."
        )


def _check_classes(worlds: Sequence[World]) -> None:
    first = worlds[0]
    for world in worlds[1:]:
        if world.classes != first.classes:
            raise ArtifactError(
                f"{world.directory}: classes are {', '.join(world.classes)}, those of {first.directory} "
                f"{', '.join(first.classes)}. Compare worlds over the same classes."
            )


def _notes(worlds: Sequence[World], systems: Sequence[str]) -> list[str]:
    """What the tables leave out, and why."""
    notes = []
    for name in dict.fromkeys(name for world in worlds for name in world.groups if name not in systems):
        without = [world.name for world in worlds if name not in world.groups]
        notes.append(f"{name}: left out, since it is missing in {', '.join(without)}")
    lost = [name for name in TEACHERS if name not in systems]
    if lost:
        notes.append(f"harm is not counted: {' and '.join(lost)} not in every world")
    if not any(name in systems for name in worlds[0].baselines):
        notes.append("no difference is told: there is no baseline that every world has")
    return notes
