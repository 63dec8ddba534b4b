"""Files of a prepared corpus: the manifest, the labels in a separate file, the speakers, the summary."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import audio, kaldi
from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.segments import letter

MANIFEST, LABELS, SPEAKERS, SUMMARY = "manifest.csv", "labels.csv", "speakers.csv", "summary.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A clip to write: its description, its emotion or "", the path of its audio and its length."""

    utterance: Utterance
    emotion: str
    file: str
    seconds: float


def write_files(directory: Path, corpus: Corpus, rows: Sequence[Row], summary: dict[str, Any]) -> None:
    """Write all files of a prepared corpus; the summary gets the hashes of all files in the directory."""
    tables = {
        MANIFEST: [{**_clip(corpus, row), **_more(row), "text": row.utterance.text} for row in rows],
        LABELS: [
            {
                **_clip(corpus, row),
                "emotion": row.emotion,
                "original_label": row.utterance.label,
                **_more(row),
            }
            for row in rows
            if row.emotion
        ],
        SPEAKERS: _speakers(corpus, rows),
    }
    for name, table in tables.items():
        if table:
            _write(directory / name, table)
    made = sorted(path for path in directory.rglob("*") if path.is_file())
    summary["files"] = {path.relative_to(directory).as_posix(): audio.file_sha256(path) for path in made}
    (directory / SUMMARY).write_text(
        json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_kaldi(directory: Path, corpus: Corpus, rows: Sequence[Row]) -> None:
    """Write the clips as a Kaldi data directory, with their emotions in ``utt2emo``.

    Raises:
        InputError: names that cannot be told apart as Kaldi writes them.
    """
    kaldi.write(
        directory,
        (
            kaldi.Entry(
                utt_id=row.utterance.utt_id,
                path=None if row.utterance.command else Path(row.file),
                speaker=speaker_of(corpus, row.utterance),
                emotion=row.emotion,
                gender=row.utterance.gender,
                text=row.utterance.text,
                command=row.utterance.command,
                bounds=row.utterance.bounds,
                seconds=row.seconds,
            )
            for row in rows
        ),
    )


def count(rows: Sequence[Row]) -> dict[str, Any]:
    """Clips, hours, speakers, and clips by emotion and by session, partition or part."""
    groups: dict[str, Counter[str]] = {}
    field = next(
        (f for f in ("session", "split", "part") if len({getattr(r.utterance, f) for r in rows}) > 1), None
    )
    for row in rows if field else ():
        group = f"{field} {getattr(row.utterance, str(field)) or 'unknown'}"
        groups.setdefault(group, Counter())[row.emotion or "unlabelled"] += 1
    return {
        "clips": len(rows),
        "hours": sum(row.seconds for row in rows) / 3600,
        "speakers": len({row.utterance.speaker for row in rows} - {""}),
        "classes": dict(sorted(Counter(row.emotion for row in rows if row.emotion).items())),
        "groups": {name: dict(groups[name]) for name in sorted(groups)},
    }


def speaker_of(corpus: Corpus, one: Utterance) -> str:
    """Name of the speaker, with the corpus as prefix so that it is unique across corpora; "" if unknown."""
    known = one.speaker and corpus.name not in ("generic", "kaldi")
    return f"{corpus.name}_{one.speaker}" if known else one.speaker


def _clip(corpus: Corpus, row: Row) -> dict[str, str]:
    return {"utt_id": row.utterance.utt_id, "file": row.file, "speaker": speaker_of(corpus, row.utterance)}


def _more(row: Row) -> dict[str, str]:
    one = row.utterance
    start, end, channel = one.bounds
    return {
        "start": f"{start:.6f}" if start or end is not None else "",
        "end": "" if end is None else f"{end:.6f}",
        "channel": "" if channel is None else letter(channel),
        "session": one.session,
        "split": one.split,
        "part": one.part,
        "duration_s": f"{row.seconds:.4f}",
    }


def _speakers(corpus: Corpus, rows: Sequence[Row]) -> list[dict[str, str]]:
    clips = Counter(speaker_of(corpus, row.utterance) for row in rows)
    gender = {speaker_of(corpus, row.utterance): row.utterance.gender for row in rows}
    return [
        {"speaker": name, "gender": gender[name], "clips": str(clips[name])} for name in sorted(clips) if name
    ]


def _write(path: Path, table: Iterable[dict[str, str]]) -> None:
    """A CSV file; columns after the third that are empty in every row are left out."""
    rows = list(table)
    names = [name for n, name in enumerate(rows[0]) if n < 3 or any(row[name] for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
