"""Options and result of ``mifuse prepare``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import corpora
from mifuse_cli.config import Config, StepResult, one_of, option
from mifuse_cli.corpora.selection import Wanted
from mifuse_cli.errors import UsageError
from mifuse_cli.labels import CLASSES, parse_classes

_SELECTION, _KALDI = "Selection", "Kaldi"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """Turn an unpacked corpus into a manifest of clips, with the labels in a separate file."""

    corpus: str = option(help=f"One of {', '.join(corpora.NAMES)}.", positional=True)
    root: Path = option(
        help="Directory of the unpacked corpus; for generic, a CSV file or a directory with one folder a class.",
        positional=True,
    )
    out: Path = option(help="Directory to write.", positional=True)
    classes: str = option(",".join(CLASSES), "Emotions to keep.", panel=_SELECTION)
    merge: str = option(
        "", "Emotions to count as others, such as excited=happy,calm=neutral, or none; default: depends on the corpus.",
        panel=_SELECTION,
    )  # fmt: skip
    parts: str = option(
        "",
        "Kinds of speech to keep, such as improvised, or all; default: depends on the corpus.",
        panel=_SELECTION,
    )
    partitions: str = option(
        "", "Published splits to keep, such as train,development; default: all.", panel=_SELECTION
    )
    sessions: str = option("", "Sessions to keep, such as 1,2,3,4; default: all.", panel=_SELECTION)
    columns: str = option(
        "",
        "For generic: columns of the CSV that have other names, such as emotion=label,file=path.",
        panel=_SELECTION,
    )
    allow_missing: bool = option(
        False,
        "Leave out clips whose audio is missing, cannot be decoded or holds nothing to hear.",
        panel=_SELECTION,
    )
    kaldi: bool = option(False, "Also write a Kaldi data directory, OUT/kaldi.", panel=_KALDI)
    allow_pipes: bool = option(
        False, "Run the commands in wav.scp and keep the audio that they write.", panel=_KALDI
    )
    force: bool = option(False, "Overwrite an existing OUT.", settles=False)
    update: bool = option(
        False, "Do nothing if OUT was made with these settings and inputs, else make it anew.", settles=False
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from one_of("CORPUS", self.corpus, corpora.NAMES)
        try:
            parse_classes(self.classes)
        except UsageError as error:
            yield str(error)
        if self.merge != "none":
            yield from _pair_problems("--merge", self.merge)
        yield from _pair_problems("--columns", self.columns)
        if self.allow_pipes and self.corpus != "kaldi":
            yield "--allow-pipes: only a Kaldi directory holds commands"

    def wanted(self, corpus: corpora.Corpus) -> Wanted:
        """The selection that these options describe."""
        parts = corpus.default_parts if not self.parts else _names(self.parts)
        return Wanted(
            classes=parse_classes(self.classes),
            merge=corpus.merge if not self.merge else pairs(self.merge),
            parts=() if self.parts == "all" else parts,
            partitions=() if self.partitions == "all" else _names(self.partitions),
            sessions=() if self.sessions == "all" else _names(self.sessions),
        )


@dataclass(frozen=True, kw_only=True)
class PrepareResult(StepResult):
    """What was prepared.

    Attributes:
        out: the directory.
        corpus: its name.
        root: where it was read.
        clips: how many are in the manifest.
        hours: their total duration.
        speakers: how many are known.
        classes: clips by emotion; empty if nothing is labelled.
        groups: clips by emotion in every session, else partition, else part.
        left_out: clips of other emotions.
        published: published counts beside those of this copy, as (what, published, found), where they are
            known.
    """

    corpus: str
    root: str
    clips: int
    hours: float
    speakers: int
    classes: dict[str, int]
    groups: dict[str, dict[str, int]]
    left_out: dict[str, int]
    published: list[dict[str, Any]]


def pairs(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a mapping; empty for "" and "none"."""
    parted = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {name.strip(): value.strip() for name, _, value in parted}


def _pair_problems(flag: str, text: str) -> Iterable[str]:
    for pair in text.split(",") if text else ():
        if len([part for part in pair.split("=") if part.strip()]) != 2 or pair.count("=") != 1:
            yield f"{flag} {text!r}: expected NAME=NAME pairs separated by commas"
            return


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
