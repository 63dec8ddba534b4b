"""Reading the output of ``mifuse compare``: what was compared, and the counts that all metrics follow from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import evaluation
from mifuse_cli.artifacts import Compared, Target
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.evaluation import Tally

_TOLERANCE = 2e-6
"""Largest difference of two scores that count as the same: tables hold six decimals."""


@dataclass(frozen=True)
class World:
    """One comparison.

    Attributes:
        name: of the world.
        directory: that mifuse compare wrote.
        protocol: in one line.
        classes: K names in order.
        seeds: of source models and students.
        drawn: what intervals are over: speakers, clips, or both.
        groups: group of every system by its name, in the order of the tables.
        methods: names of the systems that are ranked.
        ours: name of our method, whether or not it was compared.
        baselines: those of the methods that are neither ours nor the paper's.
        transfers: pairs of names, source and target.
        scores: one row for every system, transfer and seed, as in ``scores.csv``.
    """

    name: str
    directory: Path
    protocol: str
    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    drawn: str
    groups: dict[str, str]
    methods: tuple[str, ...]
    ours: str
    baselines: tuple[str, ...]
    transfers: tuple[tuple[str, str], ...]
    scores: list[dict[str, Any]]


def read_world(name: str, directory: Path) -> World:
    """What ``results.json`` of a comparison says.

    Raises:
        InputError: the directory holds no comparison.
        ArtifactError: it is one of an earlier version.
    """
    file = directory / "results.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_comparison(directory, f"{file.name} cannot be read: {error}") from None
    if not isinstance(found, dict) or "standing" not in found or not (directory / "runs").is_dir():
        raise _no_comparison(directory, f"{file.name} or runs is of something else")
    if "baselines" not in found or not (directory / "targets").is_dir():
        raise ArtifactError(
            f"{directory}: is a comparison of an earlier mifuse, without the true classes in {directory / 'targets'}. "
            "Run its mifuse compare again: finished runs are kept."
        )
    return World(
        name=name,
        directory=directory,
        protocol=found["protocol"],
        classes=tuple(found["classes"]),
        seeds=tuple(found["seeds"]),
        drawn=found["drawn"],
        groups={system: one["group"] for system, one in found["systems"].items()},
        methods=tuple(system for system, one in found["systems"].items() if one["rank"] is not None),
        ours=found["ours"],
        baselines=tuple(found["baselines"]),
        transfers=tuple(dict.fromkeys((row["source"], row["target"]) for row in found["scores"])),
        scores=found["scores"],
    )


def _no_comparison(directory: Path, why: str) -> InputError:
    return InputError(
        f"{directory}: holds no comparison ({why}). Give directories that mifuse compare wrote as its --out."
    )


def read_tallies(world: World, systems: Sequence[str]) -> list[Tally]:
    """Counts of these R systems in every transfer of a world, from its runs.

    Raises:
        InputError: a run that is missing.
        ArtifactError: runs that are not those of the tables.
    """
    tallies = []
    expected = {(row["system"], row["source"], row["target"], row["seed"]): row["ua"] for row in world.scores}
    for source, target in world.transfers:
        about = Target.load(world.directory / "targets" / f"{target}.h5")
        probs = np.stack(
            [_predictions(world, source, target, seed, about, systems) for seed in world.seeds], axis=1
        )
        units = (about.utt_id if about.speaker is None else about.speaker).tolist()
        one = evaluation.tally(target, about.truth.astype(int), probs, units)
        told = [[expected[name, source, target, seed] for seed in world.seeds] for name in systems]
        if not np.allclose(one.metric("ua"), told, atol=_TOLERANCE, rtol=0):
            raise ArtifactError(
                f"{world.directory}: the runs of {source}>{target} have other scores than its tables, so they changed "
                "since. Run its mifuse compare again."
            )
        tallies.append(one)
    return tallies


def _predictions(
    world: World, source: str, target: str, seed: int, about: Target, systems: Sequence[str]
) -> np.ndarray:
    """Predictions (R, U, K) of one run."""
    file = world.directory / "runs" / source / target / f"seed{seed}.h5"
    made = Compared.load(file)
    # With --protocol few-gold, not all clips of a run are scored.
    lost = np.setdiff1d(about.utt_id, made.utt_id)
    if len(lost):
        raise ArtifactError(
            f"{file}: has no predictions of {lost[0]} and {len(lost) - 1} further clips of "
            f"{world.directory / 'targets' / f'{target}.h5'}. Run its mifuse compare again."
        )
    place = {name: number for number, name in enumerate(made.systems.tolist())}
    absent = [name for name in systems if name not in place]
    if absent:
        raise ArtifactError(
            f"{file}: has no predictions of {', '.join(absent)}, which the tables beside it have. Run its mifuse "
            "compare again."
        )
    return made.probs[[place[name] for name in systems]][:, np.isin(made.utt_id, about.utt_id)]
