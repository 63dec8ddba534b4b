"""Readers of corpora as they are distributed: from a root directory to one `Utterance` for every clip.

A corpus is one module with a `Corpus` named ``CORPUS`` and one name in ``_MODULES``. It reads file names and
label files only, never audio, and returns all utterances; `select` chooses among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath

from mifuse_cli.errors import InputError, UsageError, did_you_mean
from mifuse_cli.manifest import audio_below
from mifuse_cli.segments import WHOLE, Bounds

_MODULES = {
    "iemocap": "iemocap",
    "msp-improv": "msp_improv",
    "msp-podcast": "msp_podcast",
    "crema-d": "crema_d",
    "ravdess": "ravdess",
    "emodb": "emodb",
    "nemo": "nemo",
    "generic": "generic",
    "kaldi": "kaldi_directory",
    "audformat": "audformat_database",
}
NAMES = tuple(_MODULES)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip as a corpus describes it; fields that the corpus does not provide are "".

    Attributes:
        utt_id: name within the corpus, usually the file's without suffix.
        path: audio file, None if it is missing.
        speaker: name within the corpus.
        label: as in the corpus, a key of `Corpus.labels`; "" if the clip is not labelled.
        session, split, part: of recording; train, test1, ...; kind of speech.
        gender: "female" or "male".
        text: what is said.
        command: shell command that writes the audio to its standard output, instead of ``path``.
        bounds: the part of the audio that is the clip.
    """

    utt_id: str
    path: Path | None
    speaker: str = ""
    label: str = ""
    session: str = ""
    split: str = ""
    part: str = ""
    gender: str = ""
    text: str = ""
    command: str = ""
    bounds: Bounds = WHOLE


@dataclass(frozen=True)
class Known:
    """A published count, to check a copy against.

    Attributes:
        clips: how many there are.
        emotions: of these emotions together, before any is merged; none: all utterances.
        where: field of `Utterance` and its value, None for the whole corpus.
    """

    clips: int
    emotions: tuple[str, ...] = ()
    where: tuple[str, str] | None = None


@dataclass(frozen=True)
class Corpus:
    """How to read one corpus, and its known properties.

    Attributes:
        name: as on the command line; also the prefix of its speakers.
        read: gives the utterances below a root directory in any order; a corpus with ``columns`` takes a
            mapping from our column names to the file's as well.
        labels: emotion of every label of the corpus; None where labels are emotions already.
        merge: default of ``--merge``: emotions, each with the emotion that it is counted as.
        parts: kinds of speech; those in ``default_parts`` (none: all) are used by default.
        partitions: names of published splits.
        known: published counts.
        speakers: how many there are, None if that differs by release.
        columns: whether ``read`` takes a mapping of columns.
        note: what every user has to know about its labels.
    """

    name: str
    read: Callable[..., Iterable[Utterance]]
    labels: Mapping[str, str] | None
    merge: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    default_parts: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    known: tuple[Known, ...] = ()
    speakers: int | None = None
    columns: bool = False
    note: str = ""


def find(name: str) -> Corpus:
    """The corpus called ``name``.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in _MODULES:
        hint = did_you_mean(name, NAMES)
        raise UsageError(f"corpus {name!r}: expected one of {', '.join(NAMES)}{hint}")
    corpus: Corpus = import_module(f"mifuse_cli.corpora.{_MODULES[name]}").CORPUS
    return corpus


def coded(root: Path, pattern: str, example: str) -> Iterator[tuple[Path, re.Match[str]]]:
    """Every audio file below ``root`` with the match of its stem, for corpora that code all in names.

    Args:
        root: searched at every depth; hidden files (and so the ``._`` files of macOS) are skipped.
        pattern: regular expression that the whole stem has to match.
        example: a file name of the corpus, for the error message.

    Raises:
        InputError: no directory, no audio in it, or audio files with other names.
    """
    regex, strange, matched = re.compile(pattern), [], False
    for name in audio_below(root):
        if match := regex.fullmatch(PurePosixPath(name).stem):
            matched = True
            yield root / name, match
        else:
            strange.append(name)
    if strange:
        found = f"{len(strange)} audio files that are" if matched else "audio files, but all of them are"
        raise InputError(
            f"{root}: holds {found} not named like {example}, first {min(strange)}. "
            "Give the directory that holds this corpus alone."
        )
    if not matched:
        raise InputError(f"{root}: holds no audio. Expected files like {example} at any depth.")
