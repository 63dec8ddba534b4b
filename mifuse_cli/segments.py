"""Columns of a table that bound a clip within a recording: where it begins and ends, and on which channel it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mifuse_cli.errors import InputError

_UNITS = {"": 1.0, "_s": 1.0, "_sec": 1.0, "_seconds": 1.0, "_time": 1.0, "_ms": 0.001}
_STARTS = {f"{name}{unit}": scale for name in ("start", "begin", "onset") for unit, scale in _UNITS.items()}
_ENDS = {f"{name}{unit}": scale for name in ("end", "stop") for unit, scale in _UNITS.items()}
_OFFSETS = {f"offset{unit}": scale for unit, scale in _UNITS.items()}
_LENGTHS = {f"duration{unit}": scale for unit, scale in _UNITS.items() if unit not in ("_s", "_time")}
NAMES = (*_STARTS, *_ENDS, *_OFFSETS, *_LENGTHS, "channel")
"""Columns that are looked for. ``duration_s`` is not among them: it is the length of the clip itself, and tells its
end where nothing else does."""
_BOUND_WORDS = {"start", "begin", "onset", "end", "stop", "offset", "xmin", "xmax", "tmin", "tmax"}

_NOTHING = {"", "nat", "nan", "none", "null", "na", "<na>", "inf"}
_CLOCK = re.compile(r"(?:(\d+) days?(?:,? |$))?(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)?")
_SIDES = {"left": 0, "right": 1, "l": 0, "r": 1, **{chr(65 + n).lower(): n for n in range(11)}}
"""Channels by name: sides, and letters A to K as Kaldi has them."""


class Bounds(NamedTuple):
    """Part of a recording: start and end in seconds, None for its end; a channel from 0, None for all of them."""

    start: float = 0.0
    end: float | None = None
    channel: int | None = None

    @property
    def name(self) -> str:
        """What an id says of them: ``_START-END`` in seconds and ``_A`` for the first channel; "" for all of it."""
        part = f"_{_digits(self.start)}-{'' if self.end is None else _digits(self.end)}"
        return (part if self.start or self.end is not None else "") + (
            "" if self.channel is None else f"_{letter(self.channel)}"
        )


WHOLE = Bounds()


@dataclass(frozen=True)
class Segments:
    """Which columns of a table bound its clips.

    Attributes:
        start, end, length: name of the column and seconds in its unit, if there is one.
        channel: whether there is a column ``channel``.
        first_channel: the number of the first channel, 0 or 1.
        decimal_comma: whether ``0,5`` is a number.
    """

    start: tuple[str, float] | None = None
    end: tuple[str, float] | None = None
    length: tuple[str, float] | None = None
    channel: bool = False
    first_channel: int = 1
    decimal_comma: bool = False

    @classmethod
    def of(cls, columns: Sequence[str], where: object, *, decimal_comma: bool = False) -> Segments:
        """The columns of a table that bound its clips.

        Raises:
            InputError: two columns for one bound, or an end without a start.
        """
        starts = [name for name in columns if name in _STARTS]
        ends = [name for name in columns if name in _ENDS]
        lengths = [name for name in columns if name in _LENGTHS]
        offsets = [name for name in columns if name in _OFFSETS]
        if offsets and starts and starts[0].startswith("onset") and not ends:
            ends, offsets = offsets, []  # of an onset the offset is the end
        starts += offsets
        if starts and not ends and not lengths and "duration_s" in columns:
            lengths = ["duration_s"]
        for what, names in (("beginning", starts), ("end", ends), ("length", lengths)):
            if len(names) > 1:
                raise InputError(
                    f"{where}: the columns {' and '.join(map(repr, names))} all seem to be the {what} of a clip within "
                    "its recording. Keep one of them, or rename the others."
                )

        def found(names: list[str]) -> tuple[str, float] | None:
            scales = _STARTS | _ENDS | _OFFSETS | _LENGTHS | {"duration_s": 1.0}
            return (names[0], scales[names[0]]) if names else None

        return cls(found(starts), found(ends), found(lengths), "channel" in columns, 1, decimal_comma)

    @property
    def used(self) -> frozenset[str]:
        """Names of the columns."""
        names = {pair[0] for pair in (self.start, self.end) if pair} | (
            {"channel"} if self.channel else set()
        )
        return frozenset(names | ({self.length[0]} if self.length and self.start else set()))

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Other columns that sound like bounds, such as ``SegmentStart`` or ``end_frame``."""
        return [
            name
            for name in columns
            if name not in self.used
            and not _BOUND_WORDS.isdisjoint(
                word.casefold() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)
            )
        ]

    def bounds(self, row: Mapping[str, str], where: str) -> Bounds:
        """Bounds of the clip of a row; ``where`` names the row.

        Raises:
            InputError: a time or channel that is none, or an end that is not after the start.
        """
        if self == _NONE:
            return WHOLE
        start = self._seconds(self.start, row, where) or 0.0
        end = self._seconds(self.end, row, where)
        if end is None and self.start and self.length:
            length = self._seconds(self.length, row, where)
            end = None if length is None else start + length
        if end is not None and not start < end:
            raise InputError(
                f"{where}: the clip begins at {start:g} s and ends at {end:g} s. Expected an end that is later."
            )
        return Bounds(start, end, self._channel(row, where))

    def stated_length(self, row: Mapping[str, str], where: str) -> tuple[float, float] | None:
        """Seconds that a column ``duration`` tells of the whole file, and how exactly; None if it does not."""
        if self.start or self.end or self.length is None:
            return None
        seconds = self._seconds(self.length, row, where)
        if seconds is None:
            return None
        decimals = re.search(r"[.,](\d+)$", row[self.length[0]].strip())
        return seconds, 0.5 * self.length[1] * 10.0 ** -len(decimals[1] if decimals else "") + 0.05

    def _seconds(self, column: tuple[str, float] | None, row: Mapping[str, str], where: str) -> float | None:
        if column is None:
            return None
        name, scale = column
        seconds = seconds_of(row[name], decimal_comma=self.decimal_comma)
        if seconds is not None and not 0 <= seconds < math.inf:
            raise InputError(
                f"{where}: {name} {row[name]!r} is no time. Expected seconds, such as 1.5, or 00:00:01.5."
            )
        return None if seconds is None else seconds * scale

    def _channel(self, row: Mapping[str, str], where: str) -> int | None:
        text = row["channel"].strip().casefold() if self.channel else ""
        if text in _NOTHING:
            return None
        number = channel_number(text)
        found = _SIDES.get(text) if number is None else number - self.first_channel
        if found is None or found < 0:
            raise InputError(
                f"{where}: channel {row['channel']!r} is none. Expected left or right, A or B, or a number "
                f"from {self.first_channel}."
            )
        return found


_NONE = Segments()


def seconds_of(text: str, *, decimal_comma: bool = False) -> float | None:
    """Seconds of ``1.5``, ``1.5s``, ``1500ms``, ``00:01.5`` or ``0 days 00:00:01.5``; None of nothing, NaN otherwise.

    A comma stands for a point where that is meant for sure: not in ``1,500`` unless ``decimal_comma``.
    """
    text = text.strip().casefold()
    if text in _NOTHING:
        return None
    scale = 1.0
    if unit := re.fullmatch(r"(.*\d)\s*(ms|s|sec|seconds)", text):
        text, scale = unit[1], 0.001 if unit[2] == "ms" else 1.0
    comma = re.fullmatch(r"([\d: a-z]*\d),(\d+)", text)
    if comma and (decimal_comma or len(comma[2]) != 3 or comma[1].startswith("0") or ":" in comma[1]):
        text = f"{comma[1]}.{comma[2]}"
    if text and (clock := _CLOCK.fullmatch(text)):
        days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        return (86400 * days + 3600 * hours + 60 * minutes + seconds) * scale
    try:
        return float(text) * scale
    except ValueError:
        return math.nan


def channel_number(text: str) -> int | None:
    """The whole number in a channel's name, as in ``1``, ``1.0`` or ``ch1``, None if it has none."""
    match = re.fullmatch(r"(?:ch|channel)?[ _]?(\d{1,3})(?:\.0*)?", text.strip().casefold())
    return int(match[1]) if match else None


def letter(channel: int) -> str:
    """Name of a channel counted from 0 that cannot be mistaken for one counted from 1: A, B, ..."""
    return chr(65 + channel) if channel < 11 else f"ch{channel + 1}"


def numbering(texts: Iterable[str]) -> int:
    """Number of the first channel in a column that holds these values: 0 if there is a 0, else 1."""
    return 0 if 0 in map(channel_number, texts) else 1


def _digits(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") or "0"
