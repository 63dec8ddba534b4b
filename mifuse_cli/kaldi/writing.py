"""Writing Kaldi data directories."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from mifuse_cli.errors import InputError
from mifuse_cli.kaldi.tables import LETTERS, RESERVED, Entry
from mifuse_cli.segments import WHOLE


def names(utt_id: str, speaker: str) -> tuple[str, str]:
    """Utterance id and speaker in characters that Kaldi accepts; without a speaker, the clip becomes its own."""
    safe = re.sub(r"[^\w.]", "_", speaker or utt_id)
    if not speaker:
        return safe, safe
    name, prefix = re.sub(r"[^\w.-]", "_", utt_id), f"{safe}-"
    return name if name.startswith(prefix) else prefix + name, safe


def write(directory: Path, entries: Iterable[Entry]) -> None:
    """Write a data directory: the three `FILES`, and what is known of emotions, texts and genders.

    Where an utterance is a part of its recording there is a file ``segments`` too, and recordings are named by their
    first utterance. Paths are made absolute. WAV files are named as they are; for other formats and for one of several
    channels, Kaldi is told a command that decodes them with ``flac``, ``ffmpeg`` or ``sox``. There
    is a ``spk2gender`` only if every gender is known.

    Args:
        directory: made if it is not there.
        entries: in any order, at least one; each with a path or a command.

    Raises:
        InputError: two utterances or two speakers that would get the same name, a speaker of two genders,
            a path with a line break or bytes that are not text.
    """
    tables: dict[str, dict[str, str]] = {
        name: {} for name in ("wav.scp", "segments", "utt2spk", "utt2emo", "text", "spk2gender")
    }
    entries = list(entries)
    cut = any(one.bounds != WHOLE for one in entries)
    recordings: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    named: dict[tuple[str, str], str] = {}
    for one in entries:
        utt_id, speaker = names(one.utt_id, one.speaker)
        utterance = f"utterance {one.utt_id!r} of {repr(one.speaker) if one.speaker else 'no speaker'}"
        voice = f"speaker {one.speaker!r}" if one.speaker else utterance
        for kind, name, origin in (("utterance", utt_id, utterance), ("speaker", speaker, voice)):
            before = named.setdefault((kind, name), origin)
            if before != origin or (kind == "utterance" and name in tables["utt2spk"]):
                raise InputError(
                    f"{before} and {origin}: both would be the {kind} {name!r} of a Kaldi directory. "
                    "Rename one of them."
                )
        gender = tables["spk2gender"].setdefault(speaker, LETTERS.get(one.gender, ""))
        if gender != LETTERS.get(one.gender, ""):
            raise InputError(f"{voice}: is not of one gender in all utterances. Correct the corpus.")
        source, recording = _source(one), utt_id
        if cut:
            start, end, _ = one.bounds
            recording = recordings.setdefault(source, utt_id)
            tables["segments"][utt_id] = (
                f"{recording} {start:.6f} {start + one.seconds if end is None else end:.6f}"
            )
        tables["wav.scp"][recording] = source
        tables["utt2spk"][utt_id] = speaker
        tables["text"][utt_id] = _words(one.text)
        ids.setdefault(speaker, []).append(utt_id)
        if one.emotion:
            tables["utt2emo"][utt_id] = one.emotion
    if not any(tables["text"].values()):
        del tables["text"]
    if not all(tables["spk2gender"].values()):
        del tables["spk2gender"]
    tables["spk2utt"] = {speaker: " ".join(sorted(spoken)) for speaker, spoken in ids.items()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if table:
            lines = (f"{key} {value}".rstrip() + "\n" for key, value in sorted(table.items()))
            (directory / name).write_bytes("".join(lines).encode())


def _source(one: Entry) -> str:
    """The recording's entry in ``wav.scp``."""
    channel = one.bounds.channel
    if one.path is None:
        source = f"{one.command} |" + (
            "" if channel is None else f" sox -t wav - -t wav - remix {channel + 1} |"
        )
    elif one.path.suffix.lower() == ".wav" and channel is None:
        source = str(one.path.absolute())
    else:
        quoted = shlex.quote(str(one.path.absolute()))
        is_flac = one.path.suffix.lower() == ".flac" and channel is None
        pan = "" if channel is None else f"-af 'pan=mono|c0=c{channel}' "
        decode = (
            f"flac -c -d -s {quoted}" if is_flac else f"ffmpeg -nostdin -v error -i {quoted} {pan}-f wav -"
        )
        source = f"{decode} |"
    if re.search(r"[\n\ud800-\udfff]", source):
        raise InputError(
            f"{source!r}: holds a line break or is not UTF-8, and wav.scp is lines of UTF-8. Rename the file."
        )
    return source


def _words(text: str) -> str:
    """``text`` without control characters and without words that Kaldi reserves."""
    return " ".join(re.sub(rf"[\x00-\x1f\x7f]|{RESERVED}", " ", text, flags=re.ASCII).split())
