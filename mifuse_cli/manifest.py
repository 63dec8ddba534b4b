"""Manifests: lists of clips with their speakers and, in a separate type, their labels.

A manifest is a table with a column ``file`` (relative to it) and, where known, ``utt_id``,
``speaker``, ``emotion`` and ``duration_s``; ``start``, ``end`` and ``channel`` make a clip of a part of a recording;
further columns are kept. `Clip` has no label at all, so a step
that takes clips cannot see one; only `read_labelled` reads the ``emotion`` column. `Clips` iterates over a
corpus of any size in constant memory; the functions return sorted lists.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mifuse_cli import audio, splits
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import InputError, listed, some
from mifuse_cli.files import nearest
from mifuse_cli.labels import class_index
from mifuse_cli.listing import ListedClip, Listing, file_row

_log = logging.getLogger("mifuse")

_COLUMNS = ("utt_id", "file", "speaker", "emotion", "duration_s")


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance without its label: a file, or a part of one.

    Attributes:
        utt_id, path, speaker: its name, its recording, and who speaks.
        duration_s: its length in seconds, where a table tells it.
        extra: values of further columns.
        start, end: where it is in the recording, in seconds; None for the end of the file.
        channel: counted from 0; None for the mean of all.
    """

    utt_id: str
    path: Path
    speaker: str | None = None
    duration_s: float | None = None
    extra: dict[str, str] = field(default_factory=dict)
    start: float = 0.0
    end: float | None = None
    channel: int | None = None

    @property
    def excerpt(self) -> Excerpt:
        """What the functions of `audio` take."""
        return Excerpt(self.path, self.start, self.end, self.channel)


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One utterance with its label, as an index into the class list it was read with."""

    clip: Clip
    label: int


class Clips:
    """Clips of a manifest or of a directory, or one part of them, read one at a time and in unspecified order.

    The constructor checks the whole corpus, using 8 bytes of memory a clip, and of a part the ids of its clips;
    iterating reads the corpus again. Ids are the column ``utt_id`` of the manifest if it has one, else file stems
    where those are unique (so that a manifest and a directory agree), else paths without suffix; clips that are parts
    of recordings have their bounds behind. In a part of the clips they are those of the whole corpus. Accents in ids
    are composed (NFC); bytes that are not UTF-8 stand as ``\\xfc``.

    Attributes:
        where: the manifest or the directory.
        columns: columns of the manifest, none for a directory.
    """

    def __init__(
        self, manifest: Path | None, wav_dir: Path | None, *, need_audio: bool = True, shard: str = ""
    ) -> None:
        """Check every clip of whichever of the two is given.

        Args:
            manifest: a table; an ``emotion`` column is never looked at.
            wav_dir: a directory, searched for audio files at every depth.
            need_audio: whether the files that a manifest names have to be there, and others of a directory are told of.
            shard: the part "I/N" to hold, see `splits.shard`; "" for all.

        Raises:
            InputError: unreadable or empty CSV, no ``file`` column, a row or value that is malformed,
                repeated ids, missing audio files, `contradictions`; no such directory, or no audio in it; a part
                without clips.
        """
        self._listed: Listing | None = None
        self._part: frozenset[str] | None = None
        if manifest is not None and wav_dir is None:
            self.where, self._listed = manifest, _rows_of(manifest)
            self.columns = self._listed.columns
        elif wav_dir is not None and manifest is None:
            self.where, self.columns = wav_dir, ()
        else:
            raise ValueError("expected either a manifest or a directory")
        used = frozenset() if self._listed is None else self._listed.segments.used
        self._read = used | set(_COLUMNS)
        self._name = _given if "utt_id" in self.columns else _stem
        if self._listed is not None and (faults := self._listed.malformed()):
            raise InputError(listed(faults))
        hashes = self._check(need_audio and self._listed is not None)
        self._length = len(hashes)
        twice = _twice(hashes)
        if self._name is _stem and self._collide(twice):
            self._name = _path
            twice = _twice(array("q", map(hash, self._ids())))
        if self._collide(twice):
            found = set(twice.tolist())
            first = next(utt_id for utt_id in self._ids() if hash(utt_id) in found)
            once = (
                " Its name without suffix is that of another; rename or remove one."
                if self._listed is None
                else " Keep one row of each; parts of a recording need start and end."
            )
            raise InputError(f"{self.where}: {len(found)} clips stand more than once, first {first!r}.{once}")
        if need_audio and (faults := self.contradictions()):
            raise InputError(f"{self.where}: {' '.join(faults)}")
        if need_audio and self._listed is None and (others := passed_over(self.where)):
            _log.info("passed over in %s: %s", self.where, described(others))
        if shard:
            self._part = self._in_shard(shard)
            self._length = len(self._part)

    def contradictions(self) -> list[str]:
        """What a manifest tells of the audio files and their headers deny, see `Listing.contradictions`."""
        return [] if self._listed is None else self._listed.contradictions()

    def hint(self) -> str:
        """A sentence about files that are named as on Windows, "" if none is."""
        return "" if self._listed is None else self._listed.hint()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Clip]:
        clips = (self._clip(row) for row in self._rows())
        return clips if self._part is None else (clip for clip in clips if clip.utt_id in self._part)

    def labelled(self) -> Iterator[tuple[Clip, str]]:
        """Every clip with what its column ``emotion`` says, "" where that is empty."""
        return ((self._clip(row), row.values["emotion"]) for row in self._rows())

    def _in_shard(self, shard: str) -> frozenset[str]:
        """Ids of the clips of a part."""
        found = splits.shard(
            np.array([audio.fingerprint(*clip.excerpt) for clip in self], dtype=np.uint64), shard
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
        for row in self._rows():
            clip = self._clip(row)
            if not clip.utt_id:
                raise InputError(f"{self.where}, line {row.line}: the column 'utt_id' is empty.")
            hashes.append(hash(clip.utt_id))
            if need_audio and not clip.path.is_file():
                missing, first = missing + 1, first or clip.path
        if not hashes:
            raise InputError(
                f"{self.where}: has a header but no clips."
                if self._listed is not None
                else f"{self.where}: holds no audio ({', '.join(audio.suffixes())}){_instead(self.where)}. Check the "
                "directory."
            )
        if missing:
            raise InputError(
                f"{self.where}: {missing} of {len(hashes)} audio files are missing, first {first}. "
                f"Paths in the column 'file' are relative to the CSV.{self.hint()}"
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

    def _rows(self) -> Iterator[ListedClip]:
        if self._listed is None:
            return (file_row(self.where, name) for name in audio_below(self.where))
        return iter(self._listed)

    def _clip(self, row: ListedClip) -> Clip:
        utt_id, values, bounds = self._name(row), row.values, row.bounds
        duration_s = _seconds(values.get("duration_s", ""), f"{self.where}, {utt_id}")
        if bounds.end is not None:
            duration_s = bounds.end - bounds.start
        elif bounds.start:
            duration_s = None
        return Clip(
            utt_id,
            row.path,
            values.get("speaker") or None,
            duration_s,
            {name: value for name, value in values.items() if name not in self._read},
            *bounds,
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
    labelled = [
        LabelledClip(clip, class_index(emotion, classes, f"{manifest}, {clip.utt_id}"))
        for clip, emotion in clips.labelled()
        if emotion or not some
    ]
    return sorted(labelled, key=lambda one: one.clip.utt_id)


def without_label(clips: Clips) -> list[str]:
    """Ids of clips with an empty ``emotion``; none where there is no such column."""
    if "emotion" not in clips.columns:
        return []
    return [clip.utt_id for clip, emotion in clips.labelled() if not emotion]


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
    """Hex SHA-256 over ids, audio bytes and bounds of the clips, on which the steps that read audio depend."""
    return digest_of((clip.utt_id, audio.key(*clip.excerpt)) for clip in clips)


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """What `digest` gives, from pairs of utterance id and `audio.key`, sorted by id."""
    total = hashlib.sha256()
    for utt_id, sha256 in pairs:
        total.update(f"{utt_id}\0{sha256}\n".encode())
    return total.hexdigest()


def audio_below(root: Path) -> Iterator[str]:
    """Paths relative to ``root`` of all audio files below it; hidden ones are skipped, links are followed.

    Raises:
        InputError: there is no such directory, or one cannot be read.
    """
    endings = audio.suffixes()
    return (name for name in _files_below(root) if _suffix(name) in endings)


def passed_over(root: Path) -> Counter[str]:
    """Number of files below ``root`` that `audio_below` does not take, by suffix in lower case."""
    endings = audio.suffixes()
    return Counter(suffix for suffix in map(_suffix, _files_below(root)) if suffix not in endings)


def described(counts: Counter[str]) -> str:
    """Numbers of files by suffix in words."""
    listed = [f"{number} {suffix or 'without suffix'}" for suffix, number in sorted(counts.items())]
    return f"{some(listed)}, which are no audio that can be decoded here"


def _files_below(root: Path, below: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths relative to ``root`` of all files below it but hidden ones; links are followed.

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
                    yield from _files_below(root, f"{below}{entry.name}/", above | {here})
                elif entry.is_file():
                    yield below + entry.name
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{root / below}: no such directory{nearest(root / below)}. Give the directory that holds the audio files."
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
    return _rows_of(manifest).columns


def _rows_of(manifest: Path) -> Listing:
    return Listing(manifest, {}, "Add it, relative to the CSV.")


def _suffix(name: str) -> str:
    # Not of a path, whose parts Python keeps.
    return os.path.splitext(name)[1].lower()


def _instead(directory: Path) -> str:
    others = passed_over(directory)
    return f" but {described(others)}" if others else ""


def _seconds(text: str, where: str) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InputError(f"{where}: duration_s {text!r} is not a number of seconds.")
    return seconds


def _given(row: ListedClip) -> str:
    return row.given


def _stem(row: ListedClip) -> str:
    return row.stem


def _path(row: ListedClip) -> str:
    return row.place


def _twice(hashes: array[int]) -> np.ndarray:
    """Hashes that occur more than once; sorts ``hashes`` in place."""
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])
