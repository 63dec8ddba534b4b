"""From paths to runs: artifacts of one directory and of one set of clips belong together, and so do their parents."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import artifacts, fusion, lineage
from mifuse_cli.artifacts import (
    Artifact,
    Compared,
    Evaluation,
    Fused,
    Lalm,
    Parent,
    Predictions,
    Source,
    Target,
    Training,
)
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import nearest
from mifuse_cli.manifest import Clip
from mifuse_cli.reporting import ROLES, ComparisonTable, Listed, Predictor, Run, score_of, scored

_SKIPPED = {"encoder", "cache", "logs", "data"}
_TABLES = "results.json"


@dataclass(frozen=True, eq=False)
class Told:
    """What the given paths hold.

    Attributes:
        runs: with the clips of each, by position; None where their manifest is not in place.
        comparisons: of compare and compare-worlds.
    """

    runs: tuple[tuple[Run, tuple[Clip, ...] | None], ...]
    comparisons: tuple[ComparisonTable, ...]


def read_paths(paths: Sequence[Path]) -> Told:
    """Read artifacts, checkpoints, directories of them, and comparisons.

    Raises:
        InputError: no such path, a file that cannot be read, or nothing to report on.
        ArtifactError: a file that is no valid artifact.
    """
    places: dict[Path, list[Path]] = {}
    tables: list[Path] = []
    for path in paths:
        if path.is_dir():
            _walk(path, places, tables)
        elif path.exists():
            places.setdefault(_home(paths), []).append(path)
        else:
            raise InputError(
                f"{path}: no such file or directory{nearest(path)}. Make it first or check the path."
            )
    shelf = _Shelf()
    clusters = [
        (home, cluster) for home, files in places.items() for cluster in _clusters(shelf.with_parents(files))
    ]
    runs = [_run(shelf, home, cluster, names) for home, cluster, names in _named(_without_parts(clusters))]
    found = [_comparison(shelf, table) for table in tables]
    runs += [(run, None) for _, light in found for run in light]
    if not runs and not found:
        raise InputError(
            f"{', '.join(map(str, paths))}: found nothing to report on. Give artifacts (.h5), a checkpoint, the "
            "directory of a transfer or of an experiment, or one of mifuse compare."
        )
    return Told(tuple(runs), tuple(one for one, _ in found))


def _home(paths: Sequence[Path]) -> Path:
    """Directory that stands for all files that were given one by one."""
    return Path(os.path.abspath(next(path for path in paths if not path.is_dir()))).parent


def _walk(path: Path, places: dict[Path, list[Path]], tables: list[Path]) -> None:
    """Sort the artifacts below a directory by the directory that they belong to, and find tables of comparisons."""
    path = Path(os.path.abspath(path))
    if (path / "train.h5").is_file():
        files = [path / name for name in ("train.h5", "predictions.h5") if (path / name).is_file()]
        places.setdefault(path.parent, []).extend(files)
        return
    if _is_comparison(path / _TABLES):
        tables.append(path / _TABLES)
        return
    files = sorted(one for one in path.glob("*.h5") if not one.name.startswith("."))
    if files:
        places.setdefault(path, []).extend(files)
    for below in sorted(path.iterdir()):
        if below.is_dir() and not below.name.startswith(".") and below.name not in _SKIPPED:
            _walk(below, places, tables)


class _Shelf:
    """Artifacts by path, each read once and without what a report has no use for."""

    def __init__(self) -> None:
        self._read: dict[Path, Artifact] = {}
        self._states: dict[tuple[Path, Parent], str] = {}

    def __getitem__(self, path: Path) -> Artifact:
        path = Path(os.path.abspath(path))
        if path not in self._read:
            made = artifacts.read(path)
            if isinstance(made, Source):
                made = dataclasses.replace(made, hidden=None, voice=None)
            self._read[path] = made
        return self._read[path]

    def state(self, path: Path, parent: Parent) -> str:
        """What has become of a parent; large models are hashed once."""
        key = lineage.place_of(parent, path), parent
        if key not in self._states:
            self._states[key] = lineage.state(path, parent)
        return self._states[key]

    def with_parents(self, files: Iterable[Path]) -> dict[Path, Artifact]:
        """The files and all that they were made from, as far as it is in place."""
        found: dict[Path, Artifact] = {}
        todo = [Path(os.path.abspath(file)) for file in files]
        while todo:
            path = todo.pop(0)
            if path in found:
                continue
            found[path] = self[path]
            for parent in found[path].header.parents:
                place = lineage.place_of(parent, path)
                if parent.role not in lineage.COMPARED:
                    continue
                if parent.role == "model":
                    todo += [one for one in (place / "train.h5", place / "predictions.h5") if one.is_file()]
                elif place.is_file():
                    todo.append(place)
        return found


_Cluster = dict[Path, Artifact]


def _clusters(found: _Cluster) -> Iterator[_Cluster]:
    """Artifacts over the same clips, or some of them; histories of training go to all."""
    histories = {path: one for path, one in found.items() if isinstance(one, Training)}
    clusters: list[tuple[set[str], _Cluster]] = []
    others = [(path, one) for path, one in found.items() if path not in histories]
    for path, one in sorted(others, key=lambda item: -len(item[1].utt_id)):
        if isinstance(one, Compared | Target):
            raise ArtifactError(f"{path}: is part of a comparison. Give the directory that compare made.")
        ids = set(one.utt_id.tolist())
        for wider, cluster in clusters:
            if ids <= wider and all(_same_clips(one, other) for other in cluster.values()):
                cluster[path] = one
                break
        else:
            clusters.append((ids, {path: one}))
    for ids, cluster in clusters:
        near = {path.parent for path in cluster}
        for path, one in histories.items():
            if path.parent in near or not ids.intersection(one.utt_id.tolist()):
                cluster[path] = one
        yield cluster
    if histories and not clusters:
        yield {**histories}


def _same_clips(one: Artifact, other: Artifact) -> bool:
    """Whether two artifacts have the same classes and were not made from other audio."""
    heard = {clips.sha256 for clips in (one.header.parent("clips"), other.header.parent("clips")) if clips}
    return one.header.classes == other.header.classes and (
        len(heard) < 2 or len(one.utt_id) != len(other.utt_id)
    )


def _without_parts(clusters: list[tuple[Path, _Cluster]]) -> list[tuple[Path, _Cluster]]:
    """Without those whose files are all in another one, such as the LALM's answers by themselves.

    Source models without clips, of several seeds, may be in several others.
    """
    with_clips = {
        path
        for _, cluster in clusters
        if any(not isinstance(one, Training) for one in cluster.values())
        for path in cluster
    }
    kept = []
    for number, (home, cluster) in enumerate(clusters):
        files = cluster.keys()
        within = any(
            files < other.keys() or (files == other.keys() and n < number)
            for n, (_, other) in enumerate(clusters)
            if n != number
        )
        without_clips = all(isinstance(one, Training) for one in cluster.values())
        if not within and not (without_clips and cluster.keys() <= with_clips):
            kept.append((home, cluster))
    return kept


def _named(clusters: list[tuple[Path, _Cluster]]) -> Iterator[tuple[Path, _Cluster, str]]:
    """With the name of each: its directory as seen from all, of the others in one directory that of their file."""
    if not clusters:
        return
    root = Path(os.path.commonpath([home for home, _ in clusters]))
    seen: dict[str, int] = {}
    for home, cluster in clusters:
        name = home.relative_to(root).as_posix() if home != root else home.name
        if name in seen:
            name = f"{name}: {os.path.relpath(_widest(cluster), home)}"
        seen[name] = seen.get(name, 0) + 1
        yield home, cluster, name if seen[name] == 1 else f"{name} ({seen[name]})"


def _widest(cluster: _Cluster) -> Path:
    """The artifact of most clips."""
    return max(
        cluster, key=lambda path: -1 if isinstance(cluster[path], Training) else len(cluster[path].utt_id)
    )


def _run(shelf: _Shelf, home: Path, cluster: _Cluster, name: str) -> tuple[Run, tuple[Clip, ...] | None]:
    widest = cluster[_widest(cluster)]
    histories = {path: one for path, one in cluster.items() if isinstance(one, Training)}
    only_history = len(histories) == len(cluster)
    utt_id = np.array([], dtype=str) if only_history else widest.utt_id
    clips = _clips(cluster, utt_id)
    truth = np.full(len(utt_id), -1)
    at = {one: number for number, one in enumerate(utt_id.tolist())}
    evaluations = {path: one for path, one in cluster.items() if isinstance(one, Evaluation)}
    for one in evaluations.values():
        truth[[at[clip] for clip in one.utt_id.tolist()]] = one.truth
    speaker = _speakers(cluster, utt_id, clips)
    made = _Predictors(utt_id, widest.header.classes)
    made.add_all(cluster)
    predictors = made.with_scores(evaluations, truth, speaker)
    gold = {clip for one in cluster.values() for clip in _gold(one)}
    return Run(
        name=name,
        classes=widest.header.classes,
        utt_id=utt_id,
        predictors=predictors,
        truth=truth,
        speaker=speaker,
        files=tuple(_listed(shelf, path, one, home) for path, one in cluster.items()),
        fused={made.names[path]: one for path, one in cluster.items() if isinstance(one, Fused)},
        teachers={
            made.names[path]: made.teachers(path, one)
            for path, one in cluster.items()
            if isinstance(one, Fused)
        },
        lalms={made.names[path]: one for path, one in cluster.items() if isinstance(one, Lalm)},
        trainings={_training_name(path, one): one for path, one in histories.items()},
        gold=len(gold),
    ), clips


def _gold(one: Artifact) -> list[str]:
    gold = getattr(one, "gold", None)
    return [] if gold is None else gold.tolist()


class _Predictors:
    """Teachers, labels and students of a run, and the files by which evaluations name them."""

    def __init__(self, utt_id: np.ndarray, classes: tuple[str, ...]) -> None:
        self.utt_id, self.classes = utt_id, classes
        self.names: dict[Path, str] = {}
        self.made: dict[str, Predictor] = {}
        self.places: dict[Path, str] = {}

    def add_all(self, cluster: _Cluster) -> None:
        """Add what the artifacts hold; teachers without an artifact of their own as the fused one knows them."""
        kinds = (Lalm, Source, Fused, Predictions)
        for kind in kinds:
            for path, one in cluster.items():
                if isinstance(one, kind):
                    self._add(path, one)
        for path, one in cluster.items():
            if isinstance(one, Fused):
                self._add_teachers(path, one)

    def _add(self, path: Path, one: Artifact) -> None:
        match one:
            case Lalm():
                mean, mi = fusion.mean_and_mi(one.probs.astype(float))
                name = self._free(f"LALM {one.header.parameters['model']}", path)
                self._put(path, name, "lalm", one, mean, mi)
            case Source():
                _, mi = fusion.mean_and_mi(one.probs.astype(float))
                name = self._free("source model", path)
                self._put(path, name, "source", one, one.point, mi)
                if model := one.header.parent("model"):
                    self.places.setdefault(lineage.place_of(model, path), name)
            case Fused():
                name = self._free(f"{one.header.parameters['weighting']} labels", path)
                self._put(path, name, "labels", one, one.probs)
            case Predictions():
                checkpoint = path.parent
                at_checkpoint = (checkpoint / "train.h5").is_file()
                name = self._free(_student(checkpoint.name if at_checkpoint else path.stem), path)
                self._put(path, name, "student", one, one.probs)
                self.places.setdefault(checkpoint, name)

    def _add_teachers(self, path: Path, fused: Fused) -> None:
        names = self.teachers(path, fused)
        for t, name in enumerate(names):
            if name not in self.made:
                role = "source" if t == len(names) - 1 else "lalm"
                self._put(None, name, role, fused, fused.mean[:, t], fused.mi[:, t])

    def teachers(self, path: Path, fused: Fused) -> tuple[str, ...]:
        """Names of the predictors that were fused; their own where they have an artifact, else the fused one's."""
        told = fused.header.parameters["teachers"]
        places = [
            lineage.place_of(parent, path)
            for role in ("lalm", "source")
            for parent in fused.header.parents
            if parent.role == role
        ]
        own = [self.names.get(place) for place in places] if len(places) == len(told) else [None] * len(told)
        return tuple(
            name or (other if other != "source" else "source model")
            for name, other in zip(own, told, strict=True)
        )

    def _put(
        self,
        path: Path | None,
        name: str,
        role: str,
        one: Artifact,
        probs: np.ndarray,
        mi: np.ndarray | None = None,
    ) -> None:
        full = None if mi is None else self._spread(one, mi[:, None])[:, 0]
        self.made[name] = Predictor(name, role, self._spread(one, probs), full)
        if path is not None:
            self.names[path] = name
            self.places[path] = name

    def _spread(self, one: Artifact, values: np.ndarray) -> np.ndarray:
        """Values (W, ...) of some clips as those of all (U, ...), NaN for the others."""
        if len(one.utt_id) == len(self.utt_id):
            return values.astype(float)
        at = artifacts.positions(one.utt_id, "an artifact", self.utt_id, "the widest")
        found = np.full((len(self.utt_id), *values.shape[1:]), np.nan)
        found[at] = values
        return found

    def _free(self, name: str, path: Path) -> str:
        """The name, or with the file's where another predictor has it already."""
        if name not in self.made:
            return name
        label, number = f"{name} ({path.stem})", 2
        while label in self.made:
            label, number = f"{name} ({path.stem} {number})", number + 1
        return label

    def with_scores(
        self, evaluations: dict[Path, Evaluation], truth: np.ndarray, speaker: np.ndarray
    ) -> tuple[Predictor, ...]:
        """All predictors in the order of their roles, with the scores of evaluate or, where there are none, ours."""
        for path, one in sorted(evaluations.items(), key=lambda item: -len(item[1].utt_id)):
            parent = one.header.parent("predictions") or one.header.parent("model")
            name = self.places.get(lineage.place_of(parent, path)) if parent else None
            probs = self._spread(one, one.probs)
            if name is None or not _same(self.made[name].probs, probs):
                role = "student" if name is None else self.made[name].role
                name = self._free(path.stem.removeprefix("eval-"), path)
                self.made[name] = Predictor(name, role, probs)
            if self.made[name].score is None:
                signature = one.header.parameters.get("signature", "")
                self.made[name] = dataclasses.replace(
                    self.made[name], score=score_of(one), signature=signature
                )
        if (truth >= 0).any():
            for name, made in self.made.items():
                if made.score is None:
                    self.made[name] = dataclasses.replace(made, score=scored(made, truth, speaker))
        return tuple(sorted(self.made.values(), key=lambda one: ROLES.index(one.role)))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether distributions (U, K) are alike wherever both are given."""
    both = ~np.isnan(one).any(axis=1) & ~np.isnan(other).any(axis=1)
    return bool(np.allclose(one[both], other[both], atol=1e-3))


def _student(name: str) -> str:
    return name if "student" in name else f"{name} student"


def _training_name(path: Path, one: Training) -> str:
    is_student = "method" in one.header.parameters
    return _student(path.parent.name) if is_student else "source model"


def _clips(cluster: _Cluster, utt_id: np.ndarray) -> tuple[Clip, ...] | None:
    """The clips (U,), if a manifest of all of them is where one of the artifacts says."""
    for path, one in cluster.items():
        if isinstance(one, Training):
            continue
        try:
            clips = lineage.clips_of(one, path)
        except InputError as error:
            if isinstance(error.__context__, OSError):  # it may be sound, and the next page would be another
                raise
            continue
        known = {clip.utt_id: clip for clip in clips or ()}
        if all(name in known for name in utt_id.tolist()):
            return tuple(known[name] for name in utt_id.tolist()) if len(utt_id) else None
    return None


def _speakers(cluster: _Cluster, utt_id: np.ndarray, clips: tuple[Clip, ...] | None) -> np.ndarray:
    for one in cluster.values():
        if isinstance(one, Source) and one.speaker is not None and len(one.utt_id) == len(utt_id):
            return one.speaker
    return np.array([clip.speaker or "" for clip in clips] if clips else [""] * len(utt_id), dtype=str)


def _listed(shelf: _Shelf, path: Path, one: Artifact, home: Path) -> Listed:
    at_checkpoint = isinstance(one, Training) and path.name == "train.h5"
    named = path.parent if at_checkpoint else path
    parents = tuple(
        (parent.role, os.path.relpath(lineage.place_of(parent, path), home), shelf.state(path, parent))
        for parent in one.header.parents
    )
    kind = "checkpoint" if at_checkpoint else one.kind
    return Listed(os.path.relpath(named, home), kind, one.header, parents)


# Comparisons


def _is_comparison(path: Path) -> bool:
    if not path.is_file():
        return False
    found = _json(path)
    return isinstance(found, dict) and "systems" in found and ("transfers" in found or "worlds" in found)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). Make it anew.") from None


def _comparison(shelf: _Shelf, table: Path) -> tuple[ComparisonTable, list[Run]]:
    """A comparison, and of its first seed a run for each transfer with the systems that matter most."""
    found, directory = _json(table), table.parent
    comparison = ComparisonTable(directory.name, found)
    wanted = [
        name
        for name in dict.fromkeys(
            ("source-only", "lalm", found.get("best_baseline"), "mifuse-mi", found.get("ours"))
        )
        if name in found["systems"]
    ]
    runs = []
    for transfer in found.get("transfers", []) if "worlds" not in found else []:
        source, _, target = transfer.partition(">")
        seed = found["seeds"][0]
        predicted = directory / "runs" / source / target / f"seed{seed}.h5"
        known = directory / "targets" / f"{target}.h5"
        if not predicted.is_file() or not known.is_file():
            continue
        runs.append(_light(shelf, f"{directory.name}: {transfer} seed {seed}", predicted, known, wanted))
    return comparison, runs


def _light(shelf: _Shelf, name: str, predicted: Path, known: Path, wanted: list[str]) -> Run:
    made, target = shelf[predicted], shelf[known]
    if not isinstance(made, Compared) or not isinstance(target, Target):
        raise ArtifactError(f"{predicted}, {known}: are no files of compare. Make them anew.")
    at = artifacts.positions(made.utt_id, str(predicted), target.utt_id, str(known))
    truth = target.truth[at].astype(int)
    speaker = np.array([""] * len(at)) if target.speaker is None else target.speaker[at]
    systems = made.systems.tolist()
    roles = {"source-only": "source", "lalm": "lalm"}
    predictors = []
    for system in wanted:
        if system in systems:
            one = Predictor(
                system, roles.get(system, "student"), made.probs[systems.index(system)].astype(float)
            )
            predictors.append(dataclasses.replace(one, score=scored(one, truth, speaker)))
    predictors.sort(key=lambda one: ROLES.index(one.role))
    home = predicted.parent
    return Run(
        name=name,
        classes=made.header.classes,
        utt_id=made.utt_id,
        predictors=tuple(predictors),
        truth=truth,
        speaker=speaker,
        of_comparison=True,
        files=(_listed(shelf, predicted, made, home), _listed(shelf, known, target, home)),
    )
