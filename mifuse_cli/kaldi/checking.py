"""Checks of the rules for Kaldi data directories."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mifuse_cli.errors import some
from mifuse_cli.kaldi.tables import FILES, RESERVED, Rows, audio_of, bounds_of, parse


@dataclass(frozen=True, slots=True)
class Fault:
    """A violated rule, and whether it makes the directory ambiguous (wrong order and missing audio do not)."""

    text: str
    ambiguous: bool = True


@dataclass(frozen=True)
class _Form:
    """Format of a file: what its keys are, what follows a key, and whether mifuse reads the file."""

    keys: str
    expected: str = "a value"
    fits: Callable[[bytes], object] = bool
    read: bool = False


def _number(low: float, high: float, whole: bool = False) -> Callable[[bytes], bool]:
    def fits(value: bytes) -> bool:
        try:
            number = float(value)
        except ValueError:
            return False
        return low < number < high and (not whole or number.is_integer())

    return fits


_WARP = "a number between 0.5 and 1.5", _number(0.5, 1.5)
_SECONDS = "a number above 0", _number(0, math.inf)
_FORMS = {
    "wav.scp": _Form("recordings", "audio by a path without ~", re.compile(rb"[^~]").match, True),
    "utt2spk": _Form("utterances", "one speaker", re.compile(rb"\S+").fullmatch, True),
    "spk2utt": _Form("speakers", "utterances", bool, True),
    "utt2emo": _Form("some utterances", "an emotion", bool, True),
    "text": _Form("utterances", "words", lambda value: True, True),
    "segments": _Form("utterances", "a recording, a start and a later end", bounds_of, True),
    "spk2gender": _Form("speakers", "m or f", re.compile(rb"[mf]").fullmatch, True),
    "spk2warp": _Form("speakers", *_WARP),
    "utt2warp": _Form("utterances", *_WARP),
    "utt2dur": _Form("utterances", *_SECONDS),
    "reco2dur": _Form("recordings", *_SECONDS),
    "utt2num_frames": _Form("utterances", "a whole number above 0", _number(0, math.inf, whole=True)),
    "reco2file_and_channel": _Form("recordings", "a file and A or B", re.compile(rb"\S+\s+[AB1]").fullmatch),
    "feats.scp": _Form("utterances"),
    "cmvn.scp": _Form("speakers"),
    "vad.scp": _Form("utterances"),
    "utt2lang": _Form("utterances"),
    "utt2uniq": _Form("utterances"),
}


def check(directory: Path) -> list[Fault]:
    """Every rule of Kaldi that a data directory violates, and missing audio files.

    Features and texts are optional; they are checked if present. Relative paths in ``wav.scp`` are
    relative to the current directory, as in Kaldi.
    """
    if not directory.is_dir():
        return [Fault("no such directory")]
    try:
        content = {name: (directory / name).read_bytes() for name in _FORMS if (directory / name).is_file()}
    except OSError as error:
        return [Fault(f"cannot be read ({error})")]
    tables = {name: parse(text) for name, text in content.items()}
    faults = [Fault(f"{name}: no such file", name != "spk2utt") for name in FILES if name not in tables]
    faults += [Fault(f"{name}: is empty") for name in FILES if tables.get(name) == []]
    for name, text in content.items():
        faults += _line_faults(name, text, tables[name])
    if utt2spk := tables.get("utt2spk"):
        faults += _key_faults(tables, utt2spk)
        faults += _speaker_faults(utt2spk, tables.get("spk2utt"))
    faults += _text_faults(content.get("text", b""))
    missing = [
        path for _, value in tables.get("wav.scp", []) if (path := audio_of(value)) and not path.is_file()
    ]
    if missing:
        faults.append(Fault(f"wav.scp: {len(missing)} audio files are missing: {some(missing)}", False))
    return faults


def _line_faults(name: str, text: bytes, rows: Rows) -> Iterable[Fault]:
    """Malformed lines, repeated keys, and lines out of order."""
    form = _FORMS[name]
    if text and not text.endswith(b"\n"):
        yield Fault(f"{name}: its last line does not end with a line feed; is the file whole?", form.read)
    if b"\r" in text:
        yield Fault(f"{name}: has carriage returns, as Windows writes them", False)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        yield Fault(f"{name}: is not UTF-8 in line {line}", form.read)
    wrong = [number for number, (key, value) in enumerate(rows, 1) if not key or not form.fits(value)]
    if wrong:
        yield Fault(f"{name}: expected a name and {form.expected} in line {some(wrong)}", form.read)
    keys = [key for key, _ in rows]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        yield Fault(f"{name}: more than one line for {some(twice)}", form.read)
    if late := [second for first, second in pairwise(keys) if first > second]:
        yield Fault(f"{name}: is not sorted, {some(late[:1])} comes too late (sort with LC_ALL=C)", False)


def _key_faults(tables: dict[str, Rows], utt2spk: Rows) -> Iterable[Fault]:
    """Files whose keys are not the utterances, speakers or recordings of the directory."""
    utterances = {key for key, _ in utt2spk}
    segments = tables.get("segments")
    listed = {
        "utterances": (utterances, "utt2spk"),
        "speakers": ({value for _, value in utt2spk}, "utt2spk"),
        "recordings": (utterances, "utt2spk")
        if segments is None
        else ({value.split()[0] for _, value in segments if value}, "segments"),
    }
    for name, rows in tables.items():
        form, found = _FORMS[name], {key for key, _ in rows}
        keys = form.keys.removeprefix("some ")
        expected, home = listed[keys]
        if more := sorted(found - expected):
            yield Fault(f"{name}: has {keys} that {home} has not: {some(more)}", form.read)
        if form.keys == keys and (less := sorted(expected - found)):
            yield Fault(f"{name}: lacks {keys} that {home} has: {some(less)}", form.read)


def _speaker_faults(utt2spk: Rows, spk2utt: Rows | None) -> Iterable[Fault]:
    """Utterances that are not sorted by speaker, and disagreement of ``spk2utt`` with ``utt2spk``."""
    by_speaker = sorted(utt2spk, key=lambda row: (row[1], row[0]))
    if utt2spk == sorted(utt2spk) != by_speaker:
        late = next(one for one, other in zip(utt2spk, by_speaker, strict=True) if one != other)
        yield Fault(
            f"utt2spk: is not sorted by speaker, first {some(late[:1])} of {some(late[1:])} "
            "(let utterance ids begin with their speaker)",
            False,
        )
    if spk2utt is None:
        return
    spoken = {speaker: value.split() for speaker, value in spk2utt}
    pairs = {(utt_id, speaker) for speaker, ids in spoken.items() for utt_id in ids}
    if differs := sorted(pairs ^ set(utt2spk)):
        yield Fault(f"spk2utt: disagrees with utt2spk on {some(utt_id for utt_id, _ in differs)}")
    if untidy := [speaker for speaker, ids in spoken.items() if ids != sorted(set(ids))]:
        yield Fault(f"spk2utt: utterances are not sorted or are repeated, those of {some(untidy)}", False)


def _text_faults(text: bytes) -> Iterable[Fault]:
    """Words and white space in ``text`` that Kaldi does not accept."""
    if symbols := sorted(set(re.findall(RESERVED.encode(), text))):
        yield Fault(f"text: holds {some(symbols)}, which Kaldi reserves", False)
    if strange := sorted(set(re.findall(r"[^\S \t\n\r\x1c-\x1f]", text.decode("utf-8", "replace")))):
        yield Fault(f"text: holds white space other than blanks and tabs: {some(map(ascii, strange))}", False)
