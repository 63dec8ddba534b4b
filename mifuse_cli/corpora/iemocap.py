"""IEMOCAP: five sessions of a man and a woman, acting improvised and scripted scenes.

The labels are the lines in brackets of ``Session1/dialog/EmoEvaluation/Ses01F_impro01.txt``; those of single
raters below them are not read. The speaker is given by the last letter of a turn's name. The letter after the
session is not the speaker: it names the actor who wore the motion-capture markers in that recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance
from mifuse_cli.corpora.copies import lines, recordings, stranger
from mifuse_cli.errors import InputError

_TURN = re.compile(
    r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+"
    r"(?P<name>Ses0(?P<session>[1-5])[FM]_(?P<part>impro|script)\d\d[ab]?(?:_\d[ab]?)?_(?P<gender>[FM])\w{3})\s+"
    r"(?P<label>\w+)\s+\[.*\]"
)
_SAID = re.compile(r"(?P<name>Ses\w+)\s+\[[^]]*\]:\s*(?P<text>.*)")
_EXAMPLE = "[6.2901 - 8.2357] Ses01F_impro01_F000 neu [2.5000, 2.5000, 2.5000]"
_PARTS = {"impro": "improvised", "script": "scripted"}
_GENDERS = {"F": "female", "M": "male"}


def read(root: Path) -> Iterator[Utterance]:
    """Every turn of the sessions that are present; recordings that no label file names have no label.

    Args:
        root: ``IEMOCAP_full_release`` or the directory that holds it.

    Raises:
        InputError: no sessions, a session without labels, a turn that cannot be read.
    """
    sessions = sorted(root.glob("Session[1-5]")) or sorted(root.glob("*/Session[1-5]"))
    if not sessions:
        raise stranger(
            root, "IEMOCAP", "directories Session1 to Session5", "Session[1-5]/dialog/EmoEvaluation"
        )
    for session in sessions:
        yield from _session(session)


def _session(session: Path) -> Iterator[Utterance]:
    labels = sorted((session / "dialog/EmoEvaluation").glob("Ses*.txt"))
    if not labels:
        raise InputError(
            f"{session}: has no labels, expected dialog/EmoEvaluation/Ses*.txt. "
            "Unpack the release again, or move the session elsewhere to do without it."
        )
    sentences = session / "sentences/wav"
    audio = recordings(sentences, "Ses") if sentences.is_dir() else {}
    labelled = set()
    for path in labels:
        texts = _texts(session / "dialog/transcriptions" / path.name)
        for turn in _turns(path):
            name = turn["name"]
            labelled.add(name)
            yield Utterance(
                utt_id=name,
                path=sentences / audio[name] if name in audio else None,
                speaker=f"0{turn['session']}{turn['gender']}",
                label=turn["label"],
                session=turn["session"],
                part=_PARTS[turn["part"]],
                gender=_GENDERS[turn["gender"]],
                text=texts.get(name, ""),
            )
    for name in audio.keys() - labelled:
        yield Utterance(utt_id=name, path=sentences / audio[name])


def _turns(path: Path) -> Iterator[re.Match[str]]:
    for number, line in lines(path):
        if line.startswith("["):
            match = _TURN.fullmatch(line)
            if match is None:
                raise InputError(
                    f"{path}, line {number}: {line!r} is not a turn, expected one like {_EXAMPLE!r}. "
                    "Restore the file from the release."
                )
            yield match


def _texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    said = (_SAID.fullmatch(line) for _, line in lines(path))
    return {match["name"]: match["text"] for match in said if match}


_FOUR = ("angry", "happy", "excited", "neutral", "sad")
_TOGETHER = ("neutral",), ("happy", "excited"), ("angry",), ("sad",)
_PER_SESSION = {
    # as in _TOGETHER
    "1": (384, 278, 229, 194),
    "2": (362, 327, 137, 197),
    "3": (320, 286, 240, 305),
    "4": (258, 303, 327, 143),
    "5": (384, 442, 170, 245),
}
_PER_SPEAKER = {
    # of the four classes
    "01F": 528, "01M": 557,
    "02F": 481, "02M": 542,
    "03F": 522, "03M": 629,
    "04F": 528, "04M": 503,
    "05F": 590, "05M": 651,
}  # fmt: skip

CORPUS = Corpus(
    name="iemocap",
    read=read,
    labels={
        "ang": "angry",
        "hap": "happy",
        "exc": "excited",
        "sad": "sad",
        "neu": "neutral",
        "fru": "frustrated",
        "fea": "fearful",
        "sur": "surprised",
        "dis": "disgusted",
        "oth": "other",
        "xxx": "undecided",
    },
    merge={"excited": "happy"},
    parts=("improvised", "scripted"),
    known=(
        Known(10039),
        Known(5531, _FOUR),
        Known(1103, ("angry",)),
        Known(595, ("happy",)),
        Known(1041, ("excited",)),
        Known(1708, ("neutral",)),
        Known(1084, ("sad",)),
        Known(2943, _FOUR, ("part", "improvised")),
        Known(2588, _FOUR, ("part", "scripted")),
        *(
            Known(clips, emotions, ("session", session))
            for session, row in _PER_SESSION.items()
            for emotions, clips in zip(_TOGETHER, row, strict=True)
        ),
        *(Known(clips, _FOUR, ("speaker", speaker)) for speaker, clips in _PER_SPEAKER.items()),
    ),
    speakers=10,
    note=(
        "Excited is counted as happy unless --merge says otherwise. Scripted dialogues are repeated in "
        "every session, so the same words are said by all speakers."
    ),
)
