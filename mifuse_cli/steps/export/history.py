"""How a model came about, as far as the files it was made from are still in place."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli import artifacts, corpora, lineage
from mifuse_cli.artifacts import Evaluation, Header, Training
from mifuse_cli.errors import ArtifactError, MifuseError, UsageError


@dataclass(frozen=True)
class History:
    """Of a model.

    Attributes:
        method: by which a student was trained; "" for a source model.
        labels: how its labels were weighed, such as ``cross-fit``; "" if it had none.
        clips: number of clips that it was trained on last.
        gold: number of clips whose true class was given.
        source, target: names of the corpora; "" where they are not known. A source model has no target.
        lalms: names of the audio-language models that answered.
    """

    method: str
    labels: str
    clips: int
    gold: int
    source: str
    target: str
    lalms: tuple[str, ...]


def history_of(model: Path, *, source: str, target: str) -> History:
    """History of the model in a checkpoint directory; names of corpora that are given come first.

    Raises:
        InputError, ArtifactError: the model's own ``train.h5`` cannot be read.
    """
    path = model / "train.h5"
    made = Training.load(path)
    parameters = made.header.parameters
    method = parameters.get("method", "")
    before, own = _first(path, made.header, "model"), _corpus(path, made.header)
    if method:
        first = _source_of(before)
        source = source or ("" if first is None else _corpus(first, artifacts.read_header(first)[1]))
        target = target or own
    return History(
        method=method,
        labels=parameters.get("fusion", {}).get("weighting", ""),
        clips=len(made.utt_id),
        gold=0 if made.gold is None else len(made.gold),
        source=source if method else source or own,
        target=target if method else "",
        lalms=_lalms(path, made.header),
    )


def check_scores(scores: Sequence[tuple[Path, Evaluation]], model: Path) -> None:
    """Refuse scores of another model.

    Raises:
        ArtifactError: naming the artifact.
    """
    wanted = lineage.digest(model)
    for path, score in scores:
        if wanted not in _scored(path, score):
            raise ArtifactError(
                f"{path}: is no score of {model} as it is now. Give one of predictions made with it, or make one: "
                f"mifuse evaluate --model {shlex.quote(str(model))} --manifest CSV --out FILE"
            )


def _scored(path: Path, score: Evaluation) -> set[str]:
    """Hashes of the models that a score can be of: the one scored, or the one that made the predictions."""
    found = {one.sha256 for one in score.header.parents if one.role == "model"}
    predictions = score.header.parent("predictions")
    if predictions is not None:
        place = lineage.place_of(predictions, path)
        try:
            if lineage.digest(place) == predictions.sha256:
                beside = place.parent / "train.h5"
                made = artifacts.read_header(place)[1]
                found |= {one.sha256 for one in made.parents if one.role == "model"}
                # What train leaves beside the student.
                if place.name == "predictions.h5" and beside.is_file():
                    found.add(lineage.digest(place.parent))
        except MifuseError:
            pass
    return found


def _source_of(path: Path | None) -> Path | None:
    """``train.h5`` of the source model that the model with this one comes from."""
    while path is not None and "method" in artifacts.read_header(path)[1].parameters:
        path = _first(path, artifacts.read_header(path)[1], "model")
    return path


def _first(path: Path, header: Header, role: str) -> Path | None:
    """``train.h5`` or artifact of a parent, if it is in place."""
    parent = header.parent(role)
    if parent is None:
        return None
    place = lineage.place_of(parent, path)
    found = place / "train.h5" if place.is_dir() else place
    return found if found.is_file() else None


def _corpus(path: Path, header: Header) -> str:
    """Name of the corpus that the clips of an artifact are of, by the summary that ``prepare`` leaves.

    That of a form in which anybody's clips may come, such as "generic", is no corpus' name.
    """
    parent = header.parent("clips")
    place = None if parent is None else lineage.place_of(parent, path)
    if place is None:
        return ""
    for directory in (place, place.parent):
        try:
            name = str(json.loads((directory / "summary.json").read_text(encoding="utf-8"))["corpus"])
            return "" if corpora.find(name).labels is None else name
        except (OSError, ValueError, KeyError, TypeError, UsageError):
            continue
    return ""


def _lalms(path: Path, header: Header) -> tuple[str, ...]:
    fused = _first(path, header, "fused")
    if fused is None:
        return ()
    made = artifacts.read_header(fused)[1]
    places = [lineage.place_of(one, fused) for one in made.parents if one.role == "lalm"]
    return tuple(artifacts.read_header(place)[1].parameters["model"] for place in places if place.is_file())
