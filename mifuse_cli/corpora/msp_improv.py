"""MSP-IMPROV: six sessions of a man and a woman who improvise scenes in which given sentences are spoken.

All labels are in one file, a block for each clip: one line for the clip, which is read, and one for each rater,
which is not. The letter after the number of the sentence in a name (``S01A``) is the emotion that the actors were
asked for. It is not the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance
from mifuse_cli.corpora.copies import first, lines, recordings, stranger
from mifuse_cli.errors import InputError

_FILES = ("Evaluation.txt", "Evalution.txt")
_CLIP = re.compile(
    r"(?:UTD|MSP)-IMPROV-"
    r"(?P<name>S\d\d[A-Z]-(?P<speaker>(?P<gender>[FM])0(?P<session>[1-6]))-(?P<part>[PRST])-[FM]{2}\w+)\.avi\s*;"
    r"\s*(?P<label>\w+)\s*;"
    r"(?:\s*[AVDN]:\s*(?:[\d.]+|NaN)\s*;){2}"
)
_EXAMPLE = "UTD-IMPROV-S01A-F01-S-FM01.avi; N; A:3.000000; V:3.500000; D:3.000000 ; N:4.000000;"
_PARTS = {"T": "target-improvised", "R": "target-read", "S": "other-improvised", "P": "natural"}
_GENDERS = {"F": "female", "M": "male"}


def read(root: Path) -> Iterator[Utterance]:
    """Every clip in the file of labels, which is in ``root`` or a directory in it; audio is anywhere below.

    Recordings that the file does not name have no label.

    Raises:
        InputError: no file of labels, a line of a clip that cannot be read, two recordings of a clip.
    """
    labels = first([root, *sorted(root.glob("*/"))], *_FILES)
    if labels is None:
        raise stranger(
            root, "MSP-IMPROV", f"a file {' or '.join(_FILES)} in it or one level down", "Eval*tion.txt"
        )
    audio = recordings(root, "MSP-IMPROV-")
    labelled = set()
    for clip in _clips(labels):
        utt_id = f"MSP-IMPROV-{clip['name']}"
        labelled.add(utt_id)
        yield Utterance(
            utt_id=utt_id,
            path=root / audio[utt_id] if utt_id in audio else None,
            speaker=clip["speaker"],
            label=clip["label"],
            session=clip["session"],
            part=_PARTS[clip["part"]],
            gender=_GENDERS[clip["gender"]],
        )
    for utt_id in audio.keys() - labelled:
        yield Utterance(utt_id=utt_id, path=root / audio[utt_id])


def _clips(path: Path) -> Iterator[re.Match[str]]:
    for number, line in lines(path):
        if line.startswith(("UTD-IMPROV", "MSP-IMPROV")):
            match = _CLIP.match(line)
            if match is None:
                raise InputError(
                    f"{path}, line {number}: {line!r} is not a clip, expected one like {_EXAMPLE!r}. "
                    "Restore the file from the release."
                )
            yield match


_FOUR = ("angry", "sad", "happy", "neutral")
_PER_PART = {
    # all turns, and those of each of the four
    "target-improvised": (652, (115, 106, 136, 283)),
    "target-read": (620, (169, 80, 88, 241)),
    "other-improvised": (4381, (470, 633, 1048, 1789)),
    "natural": (2785, (38, 66, 1372, 1164)),
}

CORPUS = Corpus(
    name="msp-improv",
    read=read,
    labels={
        "A": "angry",
        "H": "happy",
        "S": "sad",
        "N": "neutral",
        "O": "other",
        "X": "undecided",
    },
    parts=tuple(_PER_PART),
    known=(
        Known(8438),
        Known(7798, _FOUR),
        Known(792, ("angry",)),
        Known(885, ("sad",)),
        Known(2644, ("happy",)),
        Known(3477, ("neutral",)),
        *(Known(clips, (), ("part", part)) for part, (clips, _) in _PER_PART.items()),
        *(
            Known(clips, (emotion,), ("part", part))
            for part, (_, row) in _PER_PART.items()
            for emotion, clips in zip(_FOUR, row, strict=True)
        ),
    ),
    speakers=12,
)
