"""Kaldi data directories, with emotions in a file ``utt2emo`` beside Kaldi's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mifuse_cli import kaldi
from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.errors import InputError
from mifuse_cli.labels import composed


def read(root: Path) -> Iterator[Utterance]:
    """Utterances of the data directory ``root``; relative paths in it are relative to the current directory.

    Raises:
        InputError: as `kaldi.read`; not one of the audio files is there.
    """
    entries = kaldi.read(root)
    paths = [one.path for one in entries if one.path]
    if paths and not any(path.is_file() for path in paths):
        raise InputError(
            f"{root}/wav.scp: none of {len(paths)} audio files is there, first {paths[0]}. Check the paths; "
            "relative ones are, as in Kaldi, relative to the directory that the command is run in."
        )
    for one in entries:
        yield Utterance(
            utt_id=one.utt_id,
            path=one.path,
            speaker=one.speaker,
            label=composed(one.emotion),
            gender=one.gender,
            text=one.text,
            command=one.command,
            bounds=one.bounds,
        )


CORPUS = Corpus(name="kaldi", read=read, labels=None)
