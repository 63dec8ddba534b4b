"""RAVDESS: ``Actor_18/03-01-05-01-02-01-18.wav`` is modality, channel, emotion, ..., actor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mifuse_cli.corpora import Corpus, Known, Utterance, coded
from mifuse_cli.errors import InputError

_NAME = r"(?P<modality>0[123])-(?P<channel>0[12])-(?P<emotion>\d\d)-\d\d-\d\d-\d\d-(?P<actor>\d\d)"
_PARTS = {"01": "speech", "02": "song"}
_AUDIO_ONLY = "03"


def read(root: Path) -> Iterator[Utterance]:
    """Every clip of the audio release at any depth below ``root``.

    The sound of the videos (modality 01 and 02) is skipped, since it is from the same recordings.

    Raises:
        InputError: not RAVDESS, or nothing but sound of the videos.
    """
    empty = True
    for path, name in coded(root, _NAME, "03-01-05-01-02-01-18.wav"):
        if name["modality"] != _AUDIO_ONLY:
            continue
        empty = False
        yield Utterance(
            utt_id=path.stem,
            path=path,
            speaker=name["actor"],
            label=name["emotion"],
            part=_PARTS[name["channel"]],
            gender="male" if int(name["actor"]) % 2 else "female",
        )
    if empty:
        raise InputError(
            f"{root}: holds sound of the videos only, not the audio release. "
            "Expected names that begin with 03: take Audio_Speech_Actors_01-24.zip."
        )


_SPEECH = ("part", "speech")

CORPUS = Corpus(
    name="ravdess",
    read=read,
    labels={
        "01": "neutral",
        "02": "calm",
        "03": "happy",
        "04": "sad",
        "05": "angry",
        "06": "fearful",
        "07": "disgusted",
        "08": "surprised",
    },
    parts=tuple(_PARTS.values()),
    default_parts=("speech",),
    known=(
        Known(1440, where=_SPEECH),
        *(
            Known(192, (emotion,), _SPEECH)
            for emotion in ("calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
        ),
        Known(96, ("neutral",), _SPEECH),
    ),
    speakers=24,
    note="calm is an emotion of its own: --merge calm=neutral counts it as neutral",
)
