"""CREMA-D: ``AudioWAV/1001_DFA_ANG_XX.wav`` is actor, sentence, emotion and level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance, coded
from mifuse_cli.tables import Table

# The level is XX if none was prescribed; one file of the release has X.
_NAME = r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}"
_DEMOGRAPHICS = "VideoDemographics.csv"


def read(root: Path) -> Iterator[Utterance]:
    """Every clip of ``root``, which is the release, its AudioWAV, or any directory of clips named alike.

    Raises:
        InputError: not CREMA-D; demographics that cannot be read.
    """
    genders = _genders(root)
    # AudioMP3 has the same clips once more.
    wav = root / "AudioWAV"
    for path, name in coded(wav if wav.is_dir() else root, _NAME, "1001_DFA_ANG_XX.wav"):
        yield Utterance(
            utt_id=path.stem,
            path=path,
            speaker=name["actor"],
            label=name["emotion"],
            gender=genders.get(name["actor"], ""),
        )


def _genders(root: Path) -> dict[str, str]:
    for path in (root / _DEMOGRAPHICS, root.parent / _DEMOGRAPHICS):
        if path.is_file():
            table = Table(path, ("ActorID", "Sex"), "Take the file from the release, or remove it.")
            return {row["ActorID"]: row["Sex"].lower() for _, row in table}
    return {}


CORPUS = Corpus(
    name="crema-d",
    read=read,
    labels={
        "ANG": "angry",
        "DIS": "disgusted",
        "FEA": "fearful",
        "HAP": "happy",
        "NEU": "neutral",
        "SAD": "sad",
    },
    known=(
        Known(7442),
        *(Known(1271, (emotion,)) for emotion in ("angry", "disgusted", "fearful", "happy", "sad")),
        Known(1087, ("neutral",)),
    ),
    speakers=91,
    note="labels are the emotions that the actors were asked for, not those that listeners heard",
)
