"""Manifests: lists of clips with their speakers and, in a separate type, their labels.

A manifest is a CSV file with a column ``file`` (relative to the CSV) and, where known, ``utt_id``,
``speaker``, ``emotion`` and ``duration_s``; further columns are kept. `Clip` has no label at all, so a step
that takes clips cannot see one; only `read_labelled` reads the ``emotion`` column. `Clips` iterates over a
corpus of any size in constant memory; the functions return sorted lists.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from mifuse_cli import audio, splits
from mifuse_cli.errors import InputError
from mifuse_cli.labels import class_index

_COLUMNS = ("utt_id", "file", "speaker", "emotion", "duration_s")


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance without its label."""

    utt_id: str
    path: Path
    speaker: str | None = None
    duration_s: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One utterance with its label, as an index into the class list it was read with."""

    clip: Clip
    label: int


class Clips:
    """Clips of a manifest or of a directory, or one part of them, read one at a time and in unspecified order.

    The constructor checks the whole corpus, using 8 bytes of memory a clip, and of a part the ids of its clips;
    iterating reads the corpus again. Ids are the column ``utt_id`` of the manifest if it has one, else file stems
    where those are unique (so that a manifest and a directory agree), else paths without suffix; in a part they are
    those of the whole corpus.

    Attributes:
        where: the manifest or the directory.
        columns: columns of the manifest, none for a directory.
    """

    def __init__(
        self, manifest: Path | None, wav_dir: Path | None, *, need_audio: bool = True, shard: str = ""
    ) -> None:
        """Check every clip of whichever of the two is given.

        Args:
            manifest: a CSV file; an ``emotion`` column is never looked at.
            wav_dir: a directory, searched for audio files at every depth.
            need_audio: whether the files that a manifest names have to be there.
            shard: the part "I/N" to hold, see `splits.shard`; "" for all.

        Raises:
            InputError: unreadable or empty CSV, no ``file`` column, a row or value that is malformed,
                repeated ids, missing audio files; no such directory, or no audio in it; a part without clips.
        """
        self._part: frozenset[str] | None = None
        if manifest is not None and wav_dir is None:
            self.where, self.columns = manifest, columns_of(manifest)
        elif wav_dir is not None and manifest is None:
            self.where, self.columns = wav_dir, ()
        else:
            raise ValueError("expected either a manifest or a directory")
        self._from_directory = manifest is None
        self._name = _given if "utt_id" in self.columns else _stem
        hashes = self._check(need_audio and not self._from_directory)
        self._length = len(hashes)
        twice = _twice(hashes)
        if self._name is _stem and self._collide(twice):
            self._name = _path
            twice = _twice(array("q", map(hash, self._ids())))
        if self._collide(twice):
            found = set(twice.tolist())
            first = next(utt_id for utt_id in self._ids() if hash(utt_id) in found)
            raise InputError(f"{self.where}: {len(found)} clips stand more than once, first {first!r}.")
        if shard:
            self._part = self._in_shard(shard)
            self._length = len(self._part)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Clip]:
        clips = (self._clip(row) for row in self._rows())
        return clips if self._part is None else (clip for clip in clips if clip.utt_id in self._part)

    def _in_shard(self, shard: str) -> frozenset[str]:
        """Ids of the clips of a part."""
        found = splits.shard(
            np.array([audio.fingerprint(clip.path) for clip in self], dtype=np.uint64), shard
        )
        part = frozenset(clip.utt_id for clip, here in zip(self, found, strict=True) if here)
        if not part:
            raise InputError(
                f"{self.where}: there is nothing in part {shard}, since its {len(self)} clips are fewer than the "
                "parts, or copies of each other. Make fewer parts with --shard."
            )
        return part

    def _check(self, need_audio: bool) -> array[int]:
        """Check every clip; the hash of every id."""
        hashes, missing, first = array("q"), 0, None
        for clip in self:
            hashes.append(hash(clip.utt_id))
            if need_audio and not clip.path.is_file():
                missing, first = missing + 1, first or clip.path
        if not hashes:
            raise InputError(
                f"{self.where}: holds no audio ({', '.join(audio.SUFFIXES)}). Check the directory."
                if self._from_directory
                else f"{self.where}: has a header but no clips."
            )
        if missing:
            raise InputError(
                f"{self.where}: {missing} of {len(hashes)} audio files are missing, first {first}. "
                "Paths in the column 'file' are relative to the CSV."
            )
        return hashes

    def _collide(self, hashes: np.ndarray) -> bool:
        """Whether two clips with one of these hashes have the same id; nearly always the first hash decides."""
        for value in hashes:
            seen = set()
            for utt_id in self._ids():
                if hash(utt_id) == value:
                    if utt_id in seen:
                        return True
                    seen.add(utt_id)
        return False

    def _ids(self) -> Iterator[str]:
        return map(self._name, self._rows())

    def _rows(self) -> Iterator[dict[str, str]]:
        if self._from_directory:
            return ({"file": name} for name in audio_below(self.where))
        return _rows(self.where)

    def _clip(self, row: dict[str, str]) -> Clip:
        directory = self.where if self._from_directory else self.where.parent
        utt_id = self._name(row)
        return Clip(
            utt_id=utt_id,
            path=directory / row["file"],
            speaker=row.get("speaker", "").strip() or None,
            duration_s=_seconds(row.get("duration_s", "").strip(), f"{self.where}, {utt_id}"),
            extra={key: value for key, value in row.items() if key not in _COLUMNS},
        )


def read_clips(manifest: Path, *, need_audio: bool = True) -> list[Clip]:
    """Clips of a manifest sorted by utterance id.

    Raises:
        InputError: as `Clips`.
    """
    return sorted(Clips(manifest, None, need_audio=need_audio), key=lambda clip: clip.utt_id)


def read_labelled(
    manifest: Path, classes: tuple[str, ...], *, need_audio: bool = True, some: bool = False
) -> list[LabelledClip]:
    """Clips with the index of their ``emotion`` in ``classes``, sorted by utterance id.

    Args:
        manifest: CSV.
        classes: K names in order.
        need_audio: whether audio files have to be there.
        some: whether clips with an empty ``emotion`` are passed over, instead of refused.

    Raises:
        InputError: as `Clips`; no ``emotion`` column, or a label that is not in ``classes``.
    """
    clips = Clips(manifest, None, need_audio=need_audio)
    if "emotion" not in clips.columns:
        raise InputError(
            f"{manifest}: has no column 'emotion' (found: {', '.join(clips.columns)}). "
            "This command needs labels: add the column or give the labelled manifest."
        )
    labelled = []
    for row in clips._rows():
        clip = clips._clip(row)
        if some and not row["emotion"].strip():
            continue
        label = class_index(row["emotion"].strip(), classes, f"{manifest}, {clip.utt_id}")
        labelled.append(LabelledClip(clip, label))
    return sorted(labelled, key=lambda one: one.clip.utt_id)


def without_label(clips: Clips) -> list[str]:
    """Ids of clips with an empty ``emotion``; none where there is no such column."""
    if "emotion" not in clips.columns:
        return []
    return [clips._clip(row).utt_id for row in clips._rows() if not row["emotion"].strip()]


def scan(wav_dir: Path) -> list[Clip]:
    """Clips of every audio file below a directory, without speakers, sorted by utterance id.

    Raises:
        InputError: no such directory, no audio in it, or one clip in two formats.
    """
    return sorted(Clips(None, wav_dir), key=lambda clip: clip.utt_id)


def clips_of(manifest: Path | None, wav_dir: Path | None, *, shard: str = "") -> tuple[list[Clip], Path]:
    """Clips of whichever of the two was given, or a part of them, sorted by utterance id, and its path.

    Raises:
        InputError: as `Clips`.
    """
    clips = Clips(manifest, wav_dir, shard=shard)
    return sorted(clips, key=lambda clip: clip.utt_id), clips.where


def speakers_of(clips: Sequence[Clip]) -> list[str] | None:
    """Speaker of every clip, or None unless at least two are known and no clip lacks one."""
    names = [clip.speaker for clip in clips if clip.speaker]
    return names if len(names) == len(clips) and len(set(names)) > 1 else None


def digest(clips: Sequence[Clip]) -> str:
    """Hex SHA-256 over ids and audio bytes of the clips, on which the steps that read audio depend."""
    return digest_of((clip.utt_id, audio.file_sha256(clip.path)) for clip in clips)


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """What `digest` gives, from pairs of utterance id and hex SHA-256 of the file, sorted by id."""
    total = hashlib.sha256()
    for utt_id, sha256 in pairs:
        total.update(f"{utt_id}\0{sha256}\n".encode())
    return total.hexdigest()


def audio_below(root: Path, below: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths relative to ``root`` of all audio files below it; hidden ones are skipped, links are followed.

    Args:
        root: directory to search at every depth.
        below: directory to search, relative to ``root``; for the recursion.
        above: real paths of the directories above it, so that links that form a cycle are not followed
            for ever.
    """
    here = os.path.realpath(root / below)
    if here in above:
        return
    try:
        with os.scandir(root / below) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from audio_below(root, f"{below}{entry.name}/", above | {here})
                elif _is_audio(entry.name) and entry.is_file():
                    yield below + entry.name
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{root / below}: no such directory. Give the directory that holds the audio files."
        ) from None
    except OSError as error:
        raise InputError(
            f"{root / below}: cannot be read ({error.strerror}). Check its permissions."
        ) from None


def columns_of(manifest: Path) -> tuple[str, ...]:
    """Names of the columns of a manifest.

    Raises:
        InputError: unreadable CSV, or no ``file`` column.
    """
    with _csv(manifest) as reader:
        columns = tuple(reader.fieldnames or ())
    if "file" not in columns:
        found = ", ".join(columns) or "nothing"
        raise InputError(f"{manifest}: has no column 'file' (found: {found}). Add it, relative to the CSV.")
    return columns


def _rows(manifest: Path) -> Iterator[dict[str, str]]:
    with _csv(manifest) as reader:
        for row in reader:
            if None in row or None in row.values():
                expected = len(reader.fieldnames or ())
                raise InputError(
                    f"{manifest}, line {reader.line_num}: expected {expected} values, one a column."
                )
            for name in ("file", "utt_id"):
                if name in row and not row[name].strip():
                    raise InputError(f"{manifest}, line {reader.line_num}: the column {name!r} is empty.")
            yield row


@contextmanager
def _csv(manifest: Path) -> Iterator[csv.DictReader[str]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            yield csv.DictReader(file, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{manifest}: cannot be read as CSV ({why}). Expected UTF-8 text, a header line with the column 'file', "
            "values separated by commas."
        ) from None


def _is_audio(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in audio.SUFFIXES


def _seconds(text: str, where: str) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InputError(f"{where}: duration_s {text!r} is not a number of seconds.")
    return seconds


def _given(row: dict[str, str]) -> str:
    return row["utt_id"]


def _stem(row: dict[str, str]) -> str:
    return PurePosixPath(row["file"]).stem


def _path(row: dict[str, str]) -> str:
    path = PurePosixPath(row["file"])
    return (path.parent / path.stem).as_posix()


def _twice(hashes: array[int]) -> np.ndarray:
    """Hashes that occur more than once; sorts ``hashes`` in place."""
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])
