"""Utterances, and the files of ``key value`` lines that describe them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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
    """Audio files that ``wav.scp`` names, existing or not; without commands and archives.

    Empty if ``wav.scp`` cannot be read, which `check` reports.
    """
    try:
        values = [value for _, value in parse((directory / "wav.scp").read_bytes())]
    except OSError:
        return []
    return [path for value in values if (path := audio_of(value)) and not re.search(rb":\d+$", value)]
