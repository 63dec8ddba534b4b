"""Utterances, and the files that hold them as lines of a key and a value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILES = ("wav.scp", "utt2spk", "spk2utt")
"""What every data directory has."""
LETTERS = {"female": "f", "male": "m"}
"""Genders as Kaldi writes them."""
RESERVED = r"(?<!\w)(?:<s>|</s>|#0)(?!\w)"
"""Words that Kaldi keeps for itself, as a regular expression over ASCII or bytes."""
_NAMED = 10

Rows = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One utterance; what is not known is "".

    Attributes:
        utt_id: of its own when written, with the speaker in front when read.
        path: audio file, None if a command makes the audio.
        speaker, emotion, text: as they are called.
        gender: "female" or "male".
        command: shell command that writes the audio to its standard output.
    """

    utt_id: str
    path: Path | None
    speaker: str = ""
    emotion: str = ""
    gender: str = ""
    text: str = ""
    command: str = ""


def parse(text: bytes) -> Rows:
    """First field and rest of every line; only a line feed ends one, only ASCII separates fields."""
    parts = [line.split(None, 1) for line in text.removesuffix(b"\n").split(b"\n")] if text else []
    return [(part[0] if part else b"", part[1].rstrip() if len(part) > 1 else b"") for part in parts]


def audio_of(value: bytes) -> Path | None:
    """File that an entry of ``wav.scp`` takes audio from, None if it is a command."""
    if not value or value.endswith(b"|"):
        return None
    return Path(re.sub(rb":\d+$", b"", value).decode("utf-8", "surrogateescape"))


def audio_files(directory: Path) -> list[Path]:
    """Files that ``wav.scp`` takes whole, there or not; no commands and no archives."""
    values = (value for _, value in parse((directory / "wav.scp").read_bytes()))
    return [path for value in values if (path := audio_of(value)) and not re.search(rb":\d+$", value)]


def some(values: Iterable[object]) -> str:
    """The first ten values for a message, and how many more there are."""
    listed = [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values
    ]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
