"""nEMO: ``samples/KD0_anger_10.wav`` is speaker, emotion and sentence; ``data.tsv`` has the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mifuse_cli.corpora import Corpus, Known, Utterance, coded
from mifuse_cli.tables import Table

_NAME = r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>[a-z]+)_\d+"
_COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender")


def read(root: Path) -> Iterator[Utterance]:
    """Every clip below ``root``, which is the release, its samples, or any directory of clips named alike.

    Clips that ``data.tsv`` lists but that are not there have no path.

    Raises:
        InputError: not nEMO; a ``data.tsv`` of another kind.
    """
    listed = _listed(root.parent if root.name == "samples" else root)
    for path, name in coded(root, _NAME, "KD0_anger_10.wav"):
        row = listed.pop(path.stem, {})
        yield Utterance(
            utt_id=path.stem,
            path=path,
            speaker=name["speaker"],
            label=name["emotion"],
            gender=row.get("gender", ""),
            text=row.get("raw_text", ""),
        )
    for stem, row in listed.items():
        yield Utterance(
            utt_id=stem,
            path=None,
            speaker=row["speaker_id"],
            label=row["emotion"],
            gender=row["gender"],
            text=row["raw_text"],
        )


def _listed(release: Path) -> dict[str, dict[str, str]]:
    """Rows of ``data.tsv`` by stem; none if it is not there."""
    path = release / "data.tsv"
    if not path.is_file():
        return {}
    table = Table(path, _COLUMNS, "Take the file from the release, or remove it.")
    return {PurePosixPath(row["file_id"]).stem: row for _, row in table}


CORPUS = Corpus(
    name="nemo",
    read=read,
    labels={
        "anger": "angry",
        "fear": "fearful",
        "happiness": "happy",
        "neutral": "neutral",
        "sadness": "sad",
        "surprised": "surprised",
    },
    known=(
        Known(4481),
        Known(809, ("neutral",)),
        Known(769, ("sad",)),
        Known(749, ("angry",)),
        Known(749, ("happy",)),
    ),
    speakers=9,
)
