"""Reading Kaldi data directories."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

from mifuse_cli.errors import InputError, some
from mifuse_cli.kaldi.checking import check
from mifuse_cli.kaldi.tables import LETTERS, Entry, audio_of, bounds_of, parse
from mifuse_cli.segments import WHOLE

_GENDERS = {letter: gender for gender, letter in LETTERS.items()}


def read(directory: Path) -> list[Entry]:
    """Utterances of a data directory in its order; paths are absolute and need not exist.

    A speaker with the same name as its only utterance is taken as unknown, by Kaldi's convention.

    Raises:
        InputError: faults that make it ambiguous (see `check`), or audio inside archives.
    """
    faults = [fault.text for fault in check(directory) if fault.ambiguous]
    if faults:
        raise InputError(
            f"{directory}: cannot be read as a Kaldi data directory: {'; '.join(faults)}. Correct it, for "
            "instance with utils/fix_data_dir.sh. Every fault is named by: "
            f"mifuse validate {shlex.quote(str(directory))}"
        )
    recordings, speakers = _table(directory / "wav.scp"), _table(directory / "utt2spk")
    if archived := [name for name, source in recordings.items() if re.search(r":\d+$", source)]:
        raise InputError(
            f"{directory}: audio lies inside archives, that of {some(archived)}; expected files. "
            "Write them first, for instance with wav-copy."
        )
    emotions, texts = _table(directory / "utt2emo"), _table(directory / "text")
    genders, spoken = _table(directory / "spk2gender"), Counter(speakers.values())
    parts = {utt_id: (utt_id, WHOLE) for utt_id in recordings}
    if (directory / "segments").is_file():
        parts = {
            utt_id: (value.split(None, 1)[0], bounds_of(value.encode()) or WHOLE)
            for utt_id, value in _table(directory / "segments").items()
        }
    entries = []
    for utt_id, (recording, bounds) in parts.items():
        source = recordings[recording]
        path, speaker = audio_of(source.encode()), speakers[utt_id]
        entries.append(
            Entry(
                utt_id=utt_id,
                path=path and path.absolute(),
                speaker="" if speaker == utt_id and spoken[speaker] == 1 else speaker,
                emotion=emotions.get(utt_id, ""),
                gender=_GENDERS.get(genders.get(speaker, ""), ""),
                text=texts.get(utt_id, ""),
                command="" if path else source.removesuffix("|").rstrip(),
                bounds=bounds,
            )
        )
    return entries


def _table(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {key.decode(): value.decode() for key, value in parse(path.read_bytes())}
