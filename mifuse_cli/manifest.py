"""Manifests: which clips there are, who speaks, and (in a type of its own) which emotion was labelled.

A manifest is a CSV file with a column ``file`` (relative to the CSV) and, where known, ``utt_id``,
``speaker``, ``emotion`` and ``duration_s``; further columns are kept. `Clip` has no label at all, so a step
that takes clips cannot see one; only `read_labelled` reads the ``emotion`` column.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mifuse_cli import audio
from mifuse_cli.errors import InputError
from mifuse_cli.labels import class_index

_COLUMNS = ("utt_id", "file", "speaker", "emotion", "duration_s")


@dataclass(frozen=True)
class Clip:
    """One utterance without its label."""

    utt_id: str
    path: Path
    speaker: str | None = None
    duration_s: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledClip:
    """One utterance with its label, as an index into the class list it was read with."""

    clip: Clip
    label: int


def read_clips(manifest: Path, *, need_audio: bool = True) -> list[Clip]:
    """Clips of a manifest sorted by utterance id; an ``emotion`` column is never looked at.

    Raises:
        InputError: unreadable or empty CSV, no ``file`` column, duplicate clips, missing audio files.
    """
    return [clip for clip, _ in _read(manifest, need_audio)]


def read_labelled(manifest: Path, classes: tuple[str, ...], *, need_audio: bool = True) -> list[LabelledClip]:
    """Clips with the index of their ``emotion`` in ``classes``, sorted by utterance id.

    Raises:
        InputError: as `read_clips`; no ``emotion`` column, or a label that is not in ``classes``.
    """
    rows = _read(manifest, need_audio)
    if "emotion" not in rows[0][1]:
        raise InputError(
            f"{manifest}: has no column 'emotion' (found: {', '.join(rows[0][1])}). "
            "This command needs labels: add the column or give the labelled manifest."
        )
    return [
        LabelledClip(clip, class_index(row["emotion"].strip(), classes, f"{manifest}, {clip.utt_id}"))
        for clip, row in rows
    ]


def scan(wav_dir: Path) -> list[Clip]:
    """Clips of every audio file below a directory, without speakers, sorted by utterance id.

    Raises:
        InputError: no such directory, or no audio in it.
    """
    if not wav_dir.is_dir():
        raise InputError(f"{wav_dir}: no such directory. Give the directory that holds the audio files.")
    files = sorted(
        path
        for path in wav_dir.rglob("*")
        if path.suffix.lower() in audio.SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise InputError(f"{wav_dir}: holds no audio ({', '.join(audio.SUFFIXES)}). Check the directory.")
    ids = _utterance_ids([path.relative_to(wav_dir).as_posix() for path in files])
    _refuse_repeated(ids, wav_dir)
    return sorted((Clip(i, p) for i, p in zip(ids, files, strict=True)), key=lambda clip: clip.utt_id)


def clips_of(manifest: Path | None, wav_dir: Path | None) -> tuple[list[Clip], Path]:
    """Clips of whichever of the two was given, and its path."""
    if manifest is not None:
        return read_clips(manifest), manifest
    assert wav_dir is not None
    return scan(wav_dir), wav_dir


def digest(clips: Sequence[Clip]) -> str:
    """Hex SHA-256 over ids and audio bytes of the clips: what a step that hears them depends on."""
    total = hashlib.sha256()
    for clip in clips:
        total.update(f"{clip.utt_id}\0{audio.file_sha256(clip.path)}\n".encode())
    return total.hexdigest()


def _read(manifest: Path, need_audio: bool) -> list[tuple[Clip, dict[str, str]]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: cannot be read as a CSV manifest ({error}).") from None
    if "file" not in columns:
        found = ", ".join(columns) or "nothing"
        raise InputError(f"{manifest}: has no column 'file' (found: {found}). Add it, relative to the CSV.")
    if not rows:
        raise InputError(f"{manifest}: has a header but no clips.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{manifest}, line {number}: expected {len(columns)} values, one a column.")
        for name in ("file", "utt_id"):
            if name in row and not row[name].strip():
                raise InputError(f"{manifest}, line {number}: the column {name!r} is empty.")
    ids = (
        [row["utt_id"] for row in rows] if "utt_id" in columns else _utterance_ids([r["file"] for r in rows])
    )
    _refuse_repeated(ids, manifest)
    clips = [_clip(manifest, utt_id, row) for utt_id, row in zip(ids, rows, strict=True)]
    missing = [clip.path for clip in clips if need_audio and not clip.path.is_file()]
    if missing:
        raise InputError(
            f"{manifest}: {len(missing)} of {len(clips)} audio files are missing, first {missing[0]}. "
            "Paths in the column 'file' are relative to the CSV."
        )
    return sorted(zip(clips, rows, strict=True), key=lambda pair: pair[0].utt_id)


def _refuse_repeated(ids: Sequence[str], where: Path) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InputError(f"{where}: {len(repeated)} clips stand more than once, first {repeated[0]!r}.")


def _clip(manifest: Path, utt_id: str, row: dict[str, str]) -> Clip:
    duration = row.get("duration_s", "").strip()
    try:
        seconds = float(duration) if duration else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InputError(f"{manifest}, {utt_id}: duration_s {duration!r} is not a number of seconds.")
    return Clip(
        utt_id=utt_id,
        path=manifest.parent / row["file"],
        speaker=row.get("speaker", "").strip() or None,
        duration_s=seconds,
        extra={key: value for key, value in row.items() if key not in _COLUMNS},
    )


def _utterance_ids(files: Sequence[str]) -> list[str]:
    """File stems where those are unique (so that a manifest and a scan agree), else paths without suffix."""
    stems = [PurePosixPath(name).stem for name in files]
    if len(set(stems)) == len(stems):
        return stems
    return [PurePosixPath(name).with_suffix("").as_posix() for name in files]
