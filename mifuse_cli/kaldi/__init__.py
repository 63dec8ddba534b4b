"""Kaldi data directories: written so that Kaldi's own validation passes, checked by the same rules, read.

Files are tables of one ``key value`` line each, sorted by the bytes of their keys. Utterance ids start with
their speaker and a hyphen. A hyphen sorts before everything that a speaker's name may hold, so utterances in
order are also in the order of their speakers, even if one name is the beginning of another.
"""

from mifuse_cli.kaldi.checking import Fault, check
from mifuse_cli.kaldi.reading import read
from mifuse_cli.kaldi.tables import FILES, Entry, audio_files
from mifuse_cli.kaldi.writing import names, write

__all__ = ["FILES", "Entry", "Fault", "audio_files", "check", "names", "read", "write"]
