"""Clips as a table lists them: every row with its audio file, its bounds within that, and its values.

Manifests and the tables of corpora are read here alike.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mifuse_cli import audio
from mifuse_cli.errors import InputError, some
from mifuse_cli.labels import composed
from mifuse_cli.segments import NAMES, WHOLE, Bounds, Segments, channel_number, numbering
from mifuse_cli.tables import Table, windows_hint, written_name

_log = logging.getLogger("mifuse")

KNOWN = ("utt_id", "file", "speaker", "emotion", "duration_s", *NAMES)
"""Columns with a meaning in every table of clips; their names may be in any case."""


@dataclass(frozen=True, slots=True)
class ListedClip:
    """A clip as it is listed.

    Attributes:
        line: its number in the table, 0 for a file of a directory.
        directory, file: its audio file, by the place that the name starts from, and the name.
        bounds: the part of the file that it is.
        values: what the table says, by column.
    """

    line: int
    directory: Path
    file: str
    bounds: Bounds
    values: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Its audio file."""
        return self.directory / self.file

    @property
    def given(self) -> str:
        """The id in the column ``utt_id``, "" if there is none."""
        return portable_id(self.values.get("utt_id", ""))

    @property
    def stem(self) -> str:
        """An id: the file's name without suffix, and the bounds."""
        # Not by a path, whose parts Python keeps for good.
        return portable_id(os.path.splitext(os.path.basename(self.file))[0]) + self.bounds.name

    @property
    def place(self) -> str:
        """An id: the file's path without suffix, and the bounds."""
        path = PurePosixPath(self.file)
        return portable_id((path.parent / path.stem).as_posix()) + self.bounds.name


class Listing:
    """The rows of a table of clips, read as often as they are iterated over.

    Attributes:
        columns: names in the table, as it has them.
        segments: which of them bound the clips.
    """

    def __init__(self, path: Path, names: Mapping[str, str], hint: str) -> None:
        """Read the header.

        Args:
            path: of the table.
            names: our names of columns, each with its name in this table where that differs; all have to be there,
                and ``file`` in any case.
            hint: what to do if one is not.

        Raises:
            InputError: unreadable, a column is missing, or two columns for one bound.
        """
        self._names = {"file": "file", **names}
        self._table = Table(path, self._names.values(), hint, known=KNOWN)
        self.columns = self._table.columns
        comma = self._table.separator != ","
        theirs = set(self._names.values())
        ours = [*self._names, *(name for name in self.columns if name not in theirs)]
        self.segments = Segments.of(ours, path, decimal_comma=comma)
        if self.segments.channel:
            column = self._names.get("channel", "channel")
            texts = {values[column] for _, values in self._table}
            self.segments = replace(self.segments, first_channel=numbering(texts))
        if unread := self.segments.unread(ours):
            _log.info(
                "%s: the columns %s are not read: if they bound the clips, call them start and end, in seconds "
                "(prepare generic: --columns start=NAME,end=NAME)",
                path,
                some(map(repr, unread)),
            )

    def __iter__(self) -> Iterator[ListedClip]:
        """Every row in the order of the table; values by our names.

        Raises:
            InputError: a row or a bound that is malformed, or an empty ``file``.
        """
        directory, where = self._table.path.parent, self._table.path
        for line, found in self._table:
            values = self._ours(found)
            name = values["file"]
            if not name:
                raise InputError(f"{where}, line {line}: the column {self._names['file']!r} is empty.")
            file = written_name(directory, name)
            yield ListedClip(
                line, directory, file, self.segments.bounds(values, f"{where}, line {line}"), values
            )

    def malformed(self) -> list[str]:
        """What is wrong with the bounds of clips, a sentence for every row."""
        faults = []
        for line, found in self._table if self.segments != Segments() else ():
            try:
                self.segments.bounds(self._ours(found), f"{self._table.path}, line {line}")
            except InputError as error:
                faults.append(str(error))
        return faults

    def contradictions(self) -> list[str]:
        """What the columns tell of the audio files and their headers deny, in sentences.

        A column ``duration`` without ``start`` has to be the length of the file, or else could be that of a part of
        it. Numbers of channels have to count from 1 for sure, which they do if one is that of a file's last channel.
        """
        faults, length = list[str](), self.segments.length
        if length and not self.segments.start and (differ := list(filter(self._differs, self))):
            faults.append(
                f"the column {length[0]!r} is not the length of the file for {len(differ)} clips, first "
                f"{differ[0].stem!r} ({differ[0].values[length[0]]!r}). If it is that of a part of the file, add a "
                "column 'start'; if not, rename it."
            )
        if self.segments.channel and self.segments.first_channel == 1:
            numbered = [row for row in self if channel_number(row.values["channel"]) is not None]
            if numbered and not any(map(_is_last_channel, numbered)):
                faults.append(
                    "the numbers in the column 'channel' could count from 0 as well as from 1, as for "
                    f"{some(row.given or row.stem for row in numbered)}. Write left and right, or A, B, C, ... instead."
                )
        return faults

    def hint(self) -> str:
        """A sentence about files that are named as on Windows, "" if none is."""
        return next(filter(None, (windows_hint(row.values["file"]) for row in self)), "")

    def _ours(self, found: dict[str, str]) -> dict[str, str]:
        values = found | {ours: found[theirs] for ours, theirs in self._names.items()}
        # A class or a speaker is one, however its accents are composed; a file is found as it is written.
        return {name: text if name == "file" else composed(text) for name, text in values.items()}

    def _differs(self, row: ListedClip) -> bool:
        """Whether the length that a row tells of its file is another than that of the file."""
        told = self.segments.stated_length(row.values, str(row.path))
        try:
            return told is not None and abs(audio.seconds(row.path) - told[0]) > told[1]
        except InputError:
            return False  # which is said by those that decode it


def file_row(root: Path, name: str) -> ListedClip:
    """The row of a file in a directory."""
    return ListedClip(0, root, name, WHOLE, {})


def portable_id(name: str) -> str:
    """A name as it stands in artifacts: accents composed (NFC), bytes that are not UTF-8 written as ``\\xfc``."""
    return composed(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_last_channel(row: ListedClip) -> bool:
    try:
        return channel_number(row.values["channel"]) == audio.channels(row.path)
    except InputError:
        return False
