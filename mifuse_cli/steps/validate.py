"""``mifuse validate``: check audio, manifests, Kaldi directories, prepared corpora, artifacts and checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import artifacts, audio, kaldi, lineage, manifest
from mifuse_cli.audio import Excerpt
from mifuse_cli.config import Config, Progress, option
from mifuse_cli.errors import ArtifactError, InputError, MifuseError, some
from mifuse_cli.files import nearest
from mifuse_cli.manifest import Clips
from mifuse_cli.tables import Table

_NAMED = 50
_MADE = ("artifact", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(Config):
    """Check audio, manifests, Kaldi directories, prepared corpora, artifacts and checkpoints; name every fault."""

    paths: tuple[Path, ...] = option(
        help="Manifest (.csv), directory of audio, artifact (.h5), checkpoint, prepared corpus or Kaldi directory; one "
        "or more.",
        positional=True,
    )


@dataclass(frozen=True)
class Finding:
    """What was found at one path.

    Attributes:
        path: as given.
        kind: "manifest", "audio", "kaldi", "prepared", "artifact", "checkpoint", "export", or "unknown".
        faults: one sentence each, none if the path is valid; the first fifty of a kind are named, the
            others counted.
        facts: counts and the like, by name.
    """

    path: Path
    kind: str
    faults: tuple[str, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class ValidateResult:
    """What was found at every path, in the order given."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """3 if an input is faulty or of no known kind, else 4 if an artifact or a checkpoint is, else 0."""
        faulty = {one.kind in _MADE for one in self.findings if one.faults}
        return InputError.exit_code if False in faulty else ArtifactError.exit_code if faulty else 0


def validate(config: ValidateConfig, *, progress: Progress | None = None) -> ValidateResult:
    """Examine every path; a faulty one is a finding, not an error."""
    return ValidateResult(tuple(_examine(path, progress) for path in config.paths))


def _examine(path: Path, progress: Progress | None) -> Finding:
    kind, facts = _kind(path), dict[str, Any]()
    faults = tuple(_CHECKS[kind](path, facts, progress))
    return Finding(path, kind, faults, facts)


def _kind(path: Path) -> str:
    if path.is_file():
        return {".csv": "manifest", ".tsv": "manifest", ".h5": "artifact"}.get(path.suffix.lower(), "unknown")
    if artifacts.is_export(path):
        return "export"
    for kind, names in (
        ("checkpoint", ("train.h5", "config.json")),
        ("prepared", ("summary.json", "manifest.csv")),
        ("kaldi", kaldi.FILES),
    ):
        if any((path / name).is_file() for name in names):
            return kind
    return "audio" if _holds_audio(path) else "unknown"


def _holds_audio(path: Path) -> bool:
    try:
        return any(manifest.audio_below(path))
    except InputError:  # no directory, or one that cannot be read
        return False


_Check = Callable[[Path, dict[str, Any], Progress | None], Iterable[str]]
"""Returns the faults of a path and adds facts to the mapping."""


def _unknown(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    yield (
        "is neither a manifest (.csv or .tsv), an artifact (.h5), a checkpoint, a prepared corpus, a Kaldi directory "
        "nor a directory of audio"
        if path.exists()
        else f"no such file or directory{nearest(path)}"
    )


def _manifest(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    try:
        clips = Clips(path, None, need_audio=False)
    except InputError as error:
        yield _said(error, path)
        return
    facts["clips"] = len(clips)
    facts["speakers"] = len({clip.speaker for clip in clips} - {None})
    labels = Counter(label for _, label in clips.labelled() if label) if "emotion" in clips.columns else {}
    facts["labelled"] = bool(labels)
    if labels:
        facts["labels"] = dict(sorted(labels.items()))
    yield from clips.contradictions()
    yield from _audio((clip.excerpt for clip in clips), len(clips), facts, path, progress)
    if hint := clips.hint():
        yield hint.strip()
    if empty := manifest.without_label(clips):
        yield f"{len(empty)} of {len(clips)} clips have no emotion: {some(empty)}"


def _directory(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    """A directory as ``--wav-dir`` takes it."""
    try:
        clips = Clips(None, path)
    except InputError as error:
        yield _said(error, path)
        return
    facts["clips"] = len(clips)
    yield from _audio((clip.excerpt for clip in clips), len(clips), facts, path, progress)


def _audio(
    excerpts: Iterable[Excerpt], total: int, facts: dict[str, Any], where: Path, progress: Progress | None
) -> Iterator[str]:
    """Missing files and clips that cannot be heard; adds the total duration to the facts."""
    missing, broken, seconds = [], [], 0.0
    for done, one in enumerate(excerpts, start=1):
        try:
            if one.path.is_file():
                seconds += audio.check(*one)
            else:
                missing.append(one.path)
        except InputError as error:
            broken.append(str(error))
        if progress:
            progress(f"audio of {where}", done, total)
    facts["hours"] = round(seconds / 3600, 4)
    if missing:
        yield f"{len(missing)} of {total} audio files are missing: {some(missing)}"
    yield from broken[:_NAMED]
    if len(broken) > _NAMED:
        yield f"{len(broken)} of {total} clips cannot be heard, {len(broken) - _NAMED} besides these"


def _kaldi(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    yield from (fault.text for fault in kaldi.check(path))
    found = kaldi.excerpts(path)
    facts["audio files"] = len({one.path for one in found})
    there = [one for one in found if one.path.is_file()]
    yield from _audio(there, len(there), facts, path, progress)


def _prepared(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    found = path / "manifest.csv"
    if not found.is_file():
        yield "manifest.csv: no such file"
    else:
        yield from (f"manifest.csv: {fault}" for fault in _manifest(found, facts, progress))
        if facts.pop("labelled", False) and facts.pop("labels"):
            yield "manifest.csv: has a column 'emotion', but labels belong only in labels.csv"
    yield from _labels(path, facts)
    yield from _summary(path, facts)
    if (path / "kaldi").is_dir():
        yield from (f"kaldi/{fault.text}" for fault in kaldi.check(path / "kaldi"))


def _labels(path: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Labels and speakers that do not match the manifest."""
    try:
        clips = {clip.utt_id: clip for clip in Clips(path / "manifest.csv", None, need_audio=False)}
    except InputError:
        return
    facts["labelled"] = (path / "labels.csv").is_file()
    if facts["labelled"]:
        try:
            labels = Clips(path / "labels.csv", None, need_audio=False)
        except InputError as error:
            yield f"labels.csv: {_said(error, path / 'labels.csv')}"
            return
        if "emotion" not in labels.columns:
            yield "labels.csv: has no column 'emotion'"
        if empty := manifest.without_label(labels):
            yield f"labels.csv: {len(empty)} of {len(labels)} clips have no emotion: {some(empty)}"
        ids = {clip.utt_id for clip in labels}
        yield from _differ("labels.csv", "clips", ids, "manifest.csv", set(clips))
        moved = [
            one.utt_id for one in labels if one.utt_id in clips and one.excerpt != clips[one.utt_id].excerpt
        ]
        if moved:
            yield f"labels.csv: names other files than manifest.csv for {some(moved)}"
    speakers = {clip.speaker for clip in clips.values() if clip.speaker}
    listed, table = set[str](), path / "speakers.csv"
    try:
        if table.exists():
            listed = {row["speaker"] for _, row in Table(table, ("speaker",), known=("speaker",))}
    except InputError as error:
        yield f"speakers.csv: {_said(error, table)}"
        return
    yield from _differ("speakers.csv", "speakers", listed, "manifest.csv", speakers)


def _differ(name: str, what: str, found: set[str], other: str, expected: set[str]) -> Iterator[str]:
    if more := sorted(found - expected):
        yield f"{name}: has {len(more)} {what} that {other} has not: {some(more)}"
    if less := sorted(expected - found):
        yield f"{name}: lacks {len(less)} {what} that {other} has: {some(less)}"


def _summary(path: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Files that were changed since ``prepare`` wrote them."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        facts["corpus"], files = summary["corpus"], dict[str, str](summary["files"])
    except FileNotFoundError:
        yield "summary.json: no such file"
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"summary.json: cannot be read as the summary of a prepared corpus ({error!r})"
        return
    for name, sha256 in sorted(files.items()):
        try:
            if audio.file_sha256(path / name) != sha256:
                yield f"{name}: was changed since it was prepared; run mifuse prepare again"
        except InputError as error:
            yield f"{name}: {_said(error, path / name)}"


def _artifact(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    try:
        made = artifacts.read(path)
        facts |= {"of kind": made.kind, "clips": len(made.utt_id), "classes": " ".join(made.header.classes)}
        lineage.check_parents(made, path)
    except MifuseError as error:
        yield _said(error, path)


def _checkpoint(path: Path, facts: dict[str, Any], progress: Progress | None) -> Iterator[str]:
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.shape import read_shape

    train = path / "train.h5"
    calls: Sequence[Callable[[], object]] = (
        lambda: checkpoint.load(path),
        lambda: _check_model(path),
        lambda: lineage.check_parents(artifacts.read(train), train),
        lambda: (path / "predictions.h5").exists() and artifacts.read(path / "predictions.h5"),
    )
    faults: dict[str, None] = {}  # two of them may report the same file
    for call in calls:
        try:
            call()
        except MifuseError as error:
            faults.setdefault(_said(error, path))
    yield from faults
    if not faults:
        shape = read_shape(path)
        facts |= {"classes": " ".join(shape.classes), "encoder": shape.encoder}


def _check_model(path: Path) -> None:
    """Refuse a model whose files are not those that training wrote.

    Raises:
        ArtifactError, InputError: it differs from what was recorded; there is no model, or no record of
            it.
    """
    recorded = artifacts.Training.load(path / "train.h5").header.parameters.get("model_sha256")
    if lineage.digest(path) != recorded:
        raise ArtifactError(
            f"{path}: its configuration or weights are not those that train.h5 was written for. Train it anew."
        )


def _said(error: MifuseError, path: Path) -> str:
    """The message without the path, which the finding already names."""
    return str(error).removeprefix(f"{path}: ")


_CHECKS: dict[str, _Check] = {
    "unknown": _unknown,
    "manifest": _manifest,
    "audio": _directory,
    "kaldi": _kaldi,
    "prepared": _prepared,
    "artifact": _artifact,
    "checkpoint": _checkpoint,
    "export": lambda path, facts, progress: (),
}
