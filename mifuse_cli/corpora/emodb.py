"""EMO-DB, the Berlin database: ``wav/03a01Wa.wav`` is speaker, text, emotion and version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance, coded

_NAME = r"(?P<speaker>\d\d)[a-z]\d\d(?P<emotion>[A-Z])[a-z]?"
_GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "male"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "female"),
}


def read(root: Path) -> Iterator[Utterance]:
    """Every clip at any depth below ``root``.

    Raises:
        InputError: not EMO-DB.
    """
    for path, name in coded(root, _NAME, "03a01Wa.wav"):
        yield Utterance(
            utt_id=path.stem,
            path=path,
            speaker=name["speaker"],
            label=name["emotion"],
            gender=_GENDERS.get(name["speaker"], ""),
        )


CORPUS = Corpus(
    name="emodb",
    read=read,
    # The letters stand for the German words.
    labels={
        "W": "angry",
        "L": "bored",
        "E": "disgusted",
        "A": "fearful",
        "F": "happy",
        "T": "sad",
        "N": "neutral",
    },
    known=(
        Known(535),
        Known(127, ("angry",)),
        Known(81, ("bored",)),
        Known(46, ("disgusted",)),
        Known(69, ("fearful",)),
        Known(71, ("happy",)),
        Known(62, ("sad",)),
        Known(79, ("neutral",)),
    ),
    speakers=10,
)
