"""Reading Kaldi data directories."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mifuse_cli.errors import InputError, some
from mifuse_cli.kaldi.checking import check
from mifuse_cli.kaldi.tables import LETTERS, Entry, audio_of, parse

_GENDERS = {letter: gender for gender, letter in LETTERS.items()}


def read(directory: Path) -> list[Entry]:
    """Utterances of a data directory in its order; paths are absolute and need not exist.

    A speaker with the same name as its only utterance is taken as unknown, by Kaldi's convention.

    Raises:
        InputError: faults that make it ambiguous (see `check`), a file ``segments``, or audio inside
            archives.
    """
    faults = [fault.text for fault in check(directory) if fault.ambiguous]
    if faults:
        raise InputError(
            f"{directory}: cannot be read as a Kaldi data directory: {'; '.join(faults)}. Correct it, for "
            f"instance with utils/fix_data_dir.sh; mifuse validate {directory} names every fault."
        )
    if (directory / "segments").is_file():
        raise InputError(
            f"{directory}: has segments, expected one audio file an utterance. Cut the recordings first, for "
            "instance with utils/data/extract_wav_segments_data_dir.sh."
        )
    sources, speakers = _table(directory / "wav.scp"), _table(directory / "utt2spk")
    if archived := [utt_id for utt_id, source in sources.items() if re.search(r":\d+$", source)]:
        raise InputError(
            f"{directory}: audio lies inside archives, that of {some(archived)}; expected files. "
            "Write them first, for instance with wav-copy."
        )
    emotions, texts = _table(directory / "utt2emo"), _table(directory / "text")
    genders, spoken = _table(directory / "spk2gender"), Counter(speakers.values())
    entries = []
    for utt_id, source in sources.items():
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
            )
        )
    return entries


def _table(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {key.decode(): value.decode() for key, value in parse(path.read_bytes())}
