"""Kaldi data directories: writing (Kaldi's own validation passes), checking by the same rules, reading.

Files are tables of one ``key value`` line each, sorted by the bytes of their keys. Utterance ids start with
their speaker and a hyphen. A hyphen sorts before every character allowed in a speaker's name, so sorting by
utterance also sorts by speaker, even if one speaker's name is a prefix of another's.
"""

from mifuse_cli.kaldi.checking import Fault, check
from mifuse_cli.kaldi.reading import read
from mifuse_cli.kaldi.tables import FILES, Entry, excerpts
from mifuse_cli.kaldi.writing import names, write

__all__ = ["FILES", "Entry", "Fault", "check", "excerpts", "names", "read", "write"]
