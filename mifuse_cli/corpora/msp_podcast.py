"""MSP-Podcast: turns from podcasts, in partitions defined by the releases.

Names of files and words in them differ by release: labels are a CSV table, whose columns are found by name, a
JSON object, or the lines of ``labels.txt`` that are not of a rater, with speakers and partitions in separate
files. Clips that only the file of partitions lists, such as those of Test3, have no label.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance
from mifuse_cli.corpora.copies import first, lines, recordings, stranger
from mifuse_cli.errors import InputError
from mifuse_cli.tables import Table

_FILES = (
    "labels_consensus.csv",
    "labels_concensus.csv",
    "labels_consensus.json",
    "labels_concensus.json",
    "labels.txt",
)
_CLIP = re.compile(
    r"(?P<name>MSP-PODCAST_\w+\.wav)\s*;\s*(?P<label>\w+)\s*;(?:\s*[AVD]:\s*(?:[\d.]+|NaN)\s*;){2}"
)
_PARTITION = re.compile(r"(?P<split>\w+)\s*;\s*(?P<name>MSP-PODCAST_\w+\.wav)\s*;?")
_SPEAKER = re.compile(r"(?P<name>MSP-PODCAST_\w+\.wav|Speaker_[^;\s]+)\s*;\s*(?P<value>[^;]+?)\s*;?")
_SPLITS = {
    "train": "train",
    "development": "development",
    "validation": "development",
    "test1": "test1",
    "test2": "test2",
    "test3": "test3",
}
_GENDERS = {"Female": "female", "Male": "male"}


def read(root: Path) -> Iterator[Utterance]:
    """Every clip that has a label, then those of the partitions that have none.

    Raises:
        InputError: no labels, or a row, line or partition that cannot be read.
    """
    places = root / "Labels", root
    labels = first(places, *_FILES)
    if labels is None:
        raise stranger(
            root, "MSP-Podcast", f"one of {', '.join(_FILES)} in it or in Labels/", "Labels/labels*[st].*"
        )
    partitions = _partitions(first(places, "Partitions.txt", "Partition.txt"))
    # Two kinds of lines: clip and speaker, speaker and gender.
    speakers = _speakers(first(places, "Speaker_ids.txt"))
    sounds = next((root / name for name in ("Audios", "Audio") if (root / name).is_dir()), root)
    audio = recordings(sounds, "MSP-PODCAST_")
    texts = root / "Transcripts"
    with_text = set(os.listdir(texts)) if texts.is_dir() else set()
    for row in _with_the_rest(_rows(labels), partitions):
        name = row["FileName"]
        utt_id = name.removesuffix(".wav")
        speaker = _known(row.get("SpkrID") or speakers.get(name, ""))
        yield Utterance(
            utt_id=utt_id,
            path=sounds / audio[utt_id] if utt_id in audio else None,
            speaker=speaker,
            label=row.get("EmoClass", ""),
            split=_split(row.get("Split_Set") or partitions.get(name, ""), f"{root}: {name}"),
            gender=_GENDERS.get(row.get("Gender") or speakers.get(f"Speaker_{speaker}", ""), ""),
            text=_text(texts / f"{utt_id}.txt") if f"{utt_id}.txt" in with_text else "",
        )


def _with_the_rest(
    rows: Iterator[Mapping[str, str]], partitions: dict[str, str]
) -> Iterator[Mapping[str, str]]:
    seen = set()
    for row in rows:
        seen.add(row["FileName"])
        yield row
    yield from ({"FileName": name} for name in partitions if name not in seen)


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    """Columns of the table by name, at least ``FileName`` and ``EmoClass``, whatever the format."""
    return {".csv": _csv, ".json": _json, ".txt": _txt}[path.suffix](path)


def _csv(path: Path) -> Iterator[Mapping[str, str]]:
    for line, row in Table(path, ("FileName", "EmoClass"), "Restore the file from the release."):
        if not row["FileName"]:
            raise InputError(f"{path}, line {line}: expected a file name. Restore the file from the release.")
        yield row


def _json(path: Path) -> Iterator[Mapping[str, str]]:
    try:
        clips = json.loads(path.read_bytes())
        for name, values in clips.items():
            yield {
                "FileName": name,
                "EmoClass": "",
                **{k: str(v) for k, v in values.items() if v is not None},
            }
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as a JSON object of clips, each an object of its values ({error}). "
            "Restore the file from the release."
        ) from None


def _txt(path: Path) -> Iterator[Mapping[str, str]]:
    for number, line in lines(path):
        if line.startswith("MSP-PODCAST"):
            match = _CLIP.match(line)
            if match is None:
                raise _unreadable(path, number, line)
            yield {"FileName": match["name"], "EmoClass": match["label"]}


def _partitions(path: Path | None) -> dict[str, str]:
    return {match["name"]: match["split"] for match in _pairs(path, _PARTITION)}


def _speakers(path: Path | None) -> dict[str, str]:
    return {match["name"]: match["value"] for match in _pairs(path, _SPEAKER)}


def _pairs(path: Path | None, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    if path is None:
        return
    for number, line in lines(path):
        if match := pattern.fullmatch(line):
            yield match
        elif "MSP-PODCAST_" in line:
            raise _unreadable(path, number, line)


def _unreadable(path: Path, number: int, line: str) -> InputError:
    return InputError(
        f"{path}, line {number}: {line!r} cannot be read, expected values separated by semicolons. "
        "Restore the file from the release."
    )


def _split(text: str, where: str) -> str:
    if text and text.lower() not in _SPLITS:
        raise InputError(
            f"{where} is in the partition {text!r}, expected one of {', '.join(map(str.title, _SPLITS))}."
        )
    return _SPLITS.get(text.lower(), "")


def _known(text: str) -> str:
    return "" if text.lower() == "unknown" else text


def _text(path: Path) -> str:
    return " ".join(line for _, line in lines(path) if line)


_FOUR = ("angry", "happy", "neutral", "sad")
_PER_SPLIT = {
    # release 1.8
    "train": (1839, 8564, 16518, 1680),
    "development": (621, 1320, 2529, 302),
    "test1": (622, 3475, 4702, 505),
    "test2": (136, 926, 2260, 161),
}

CORPUS = Corpus(
    name="msp-podcast",
    read=read,
    labels={
        "A": "angry",
        "S": "sad",
        "H": "happy",
        "U": "surprised",
        "F": "fearful",
        "D": "disgusted",
        "C": "contempt",
        "N": "neutral",
        "O": "other",
        "X": "undecided",
    },
    partitions=tuple(dict.fromkeys(_SPLITS.values())),
    known=tuple(
        Known(clips, (emotion,), ("split", split))
        for split, row in _PER_SPLIT.items()
        for emotion, clips in zip(_FOUR, row, strict=True)
    ),
    note=(
        "The published counts are those of release 1.8; others differ, later ones are several times as large, "
        "and some have no Test1. Happy does not include excited, as it does in IEMOCAP. Clips of unknown "
        "speakers have none and may be of anyone, also of a speaker in another partition."
    ),
)
