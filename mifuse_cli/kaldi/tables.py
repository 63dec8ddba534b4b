"""Utterances, and the files of ``key value`` lines that describe them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli.audio import Excerpt
from mifuse_cli.segments import WHOLE, Bounds

FILES = ("wav.scp", "utt2spk", "spk2utt")
"""Files that every data directory has."""
LETTERS = {"female": "f", "male": "m"}
"""Genders as Kaldi writes them."""
RESERVED = r"(?<!\w)(?:<s>|</s>|#0)(?!\w)"
"""Words that Kaldi reserves, as a regular expression over ASCII or bytes."""

Rows = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One utterance; unknown fields are "".

    Attributes:
        utt_id: when writing, without the speaker; when read, with the speaker as prefix.
        path: audio file, None if a command makes the audio.
        speaker, emotion, text: as the corpus names them.
        gender: "female" or "male".
        command: shell command that writes the audio to its standard output.
        bounds: the part of the audio that is the utterance.
        seconds: length of the utterance; only needed for writing one that is a part, or beside one.
    """

    utt_id: str
    path: Path | None
    speaker: str = ""
    emotion: str = ""
    gender: str = ""
    text: str = ""
    command: str = ""
    bounds: Bounds = WHOLE
    seconds: float = 0.0


def parse(text: bytes) -> Rows:
    """First field and rest of every line; only a line feed ends one, only ASCII separates fields."""
    parts = [line.split(None, 1) for line in text.removesuffix(b"\n").split(b"\n")] if text else []
    return [(part[0] if part else b"", part[1].rstrip() if len(part) > 1 else b"") for part in parts]


def audio_of(value: bytes) -> Path | None:
    """File that an entry of ``wav.scp`` takes audio from, None if it is a command."""
    if not value or value.endswith(b"|"):
        return None
    return Path(re.sub(rb":\d+$", b"", value).decode("utf-8", "surrogateescape"))


def bounds_of(value: bytes) -> Bounds | None:
    """Bounds that an entry of ``segments`` has behind its recording, None if it has none that make sense.

    As in Kaldi, an end below 0 is that of the recording, and a channel may follow, counted from 0.
    """
    try:
        start, end, *channel = map(float, value.split()[1:])
        if not 0 <= start < math.inf or not (end < 0 or start < end < math.inf) or len(channel) > 1:
            return None
        return Bounds(
            start, None if end < 0 else end, int(channel[0]) if channel and channel[0] >= 0 else None
        )
    except ValueError:
        return None


def excerpts(directory: Path) -> list[Excerpt]:
    """The audio of every utterance, existing or not; without commands and archives.

    Empty if ``wav.scp`` cannot be read, which `check` reports.
    """
    try:
        values = dict(parse((directory / "wav.scp").read_bytes()))
        segments = (
            parse((directory / "segments").read_bytes()) if (directory / "segments").is_file() else None
        )
    except OSError:
        return []
    files = {
        key: path
        for key, value in values.items()
        if (path := audio_of(value)) and not re.search(rb":\d+$", value)
    }
    if segments is None:
        return [Excerpt(path) for path in files.values()]
    parts = ((value.split(None, 1)[0], bounds_of(value)) for _, value in segments if value)
    return [Excerpt(files[key], *bounds) for key, bounds in parts if key in files and bounds]
