"""Files of predictions: CSV, JSON lines, RTTM, a table of audformat, or an artifact."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mifuse_cli import artifacts, audio
from mifuse_cli.artifacts import Header, Predictions
from mifuse_cli.audio import Excerpt
from mifuse_cli.files import atomic_file

FORMATS = ("csv", "jsonl", "rttm", "audformat", "h5")
_BLOCK = 4096
_LONGEST_HEADER = 1 << 16


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted of one clip or window.

    Attributes:
        utt_id, excerpt: its id and where it is.
        probs: (K,) by class; None if it was skipped.
        label: name of the predicted class, "" if it was skipped.
        mi: mutual information of dropout passes in nats, None without any.
        skipped: why there is no prediction, "" if there is one.
    """

    utt_id: str
    excerpt: Excerpt
    probs: np.ndarray | None
    label: str
    mi: float | None
    skipped: str

    def as_dict(self, classes: tuple[str, ...], decision: str) -> dict[str, Any]:
        """As JSON types."""
        path, start, end, _ = self.excerpt
        bounds = {} if end is None and not start else {"start": start, "end": end}
        row = {"utt_id": self.utt_id, "file": str(path), **bounds}
        if self.probs is None:
            return {**row, "skipped": self.skipped}
        probs = {name: round(float(p), 6) for name, p in zip(classes, self.probs, strict=True)}
        mi = {} if self.mi is None else {"mi": round(self.mi, 6)}
        return {**row, "probs": probs, "predicted": self.label, "decision": decision, **mi}


def format_of(out: Path, given: str) -> str:
    """The format of a file: the one given, else by its ending; "" if neither tells."""
    ending = out.suffix.lower().removeprefix(".")
    return given or {"json": "jsonl", "ndjson": "jsonl", "hdf5": "h5"}.get(
        ending, ending if ending in FORMATS else ""
    )


def is_output(path: Path, kind: str, classes: tuple[str, ...]) -> bool:
    """Whether a text file was written by `write` for these classes, by its first line."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(_LONGEST_HEADER).strip()
    except (OSError, UnicodeDecodeError):
        return False
    match kind:
        case "csv":
            return first.startswith("utt_id,file,") and f"{','.join(classes)},predicted,decision" in first
        case "audformat":
            return first == ",".join(["file", "start", "end", "emotion", *classes])
        case "rttm":
            return first.startswith("SPEAKER ") and first.count("<NA>") == 3
        case _:
            return first.startswith('{"utt_id": ') and ('"decision": ' in first or '"skipped": ' in first)


def write(
    out: Path,
    kind: str,
    rows: Iterable[Prediction],
    classes: tuple[str, ...],
    decision: str,
    *,
    mi: bool,
    bounded: bool,
    header: Header,
    gold: np.ndarray | None,
) -> None:
    """Write predictions; the file has its name only when it is complete.

    Args:
        out: the file.
        kind: one of `FORMATS`.
        rows: taken one by one; for ``h5`` in the order of their ids.
        classes: K names.
        decision: its name.
        mi: whether there is a mutual information.
        bounded: whether there are windows.
        header: of the artifact.
        gold: ids of clips whose true class the model was made with, for the artifact.
    """
    if kind == "h5":
        _artifact(out, rows, mi, bounded, header, gold)
        return
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        match kind:
            case "csv":
                _csv(file, rows, classes, decision, mi, bounded)
            case "jsonl":
                for row in rows:
                    file.write(json.dumps(row.as_dict(classes, decision), ensure_ascii=False) + "\n")
            case "rttm":
                file.writelines(map(_rttm, _predicted(rows)))
            case "audformat":
                _audformat(file, rows, classes)


def _csv(
    file: TextIO, rows: Iterable[Prediction], classes: tuple[str, ...], decision: str, mi: bool, bounded: bool
) -> None:
    names = ["utt_id", "file", *(["start", "end"] if bounded else []), *classes, "predicted", "decision"]
    names += [*(["mi"] if mi else []), "skipped"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        told = row.as_dict(classes, decision)
        told |= told.pop("probs", {})
        writer.writerow([told.get(name, "") for name in names])


def _rttm(row: Prediction) -> str:
    """A line of the NIST format, whose fields hold no spaces; the speaker field has the class."""
    path, start, end, channel = row.excerpt
    seconds = (audio.seconds(path) if end is None else end) - start
    assert row.probs is not None
    name, label = ("_".join(text.split()) for text in (path.stem, row.label))
    return (
        f"SPEAKER {name} {(channel or 0) + 1} {start:.3f} {seconds:.3f} <NA> <NA> {label} "
        f"{float(row.probs.max()):.6f} <NA>\n"
    )


def _audformat(file: TextIO, rows: Iterable[Prediction], classes: tuple[str, ...]) -> None:
    """A segmented table, of those clips that were predicted."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "start", "end", "emotion", *classes])
    for row in _predicted(rows):
        path, start, end, _ = row.excerpt
        assert row.probs is not None
        until = "" if end is None else _timedelta(end)
        writer.writerow([path, _timedelta(start), until, row.label, *(round(float(p), 6) for p in row.probs)])


def _timedelta(seconds: float) -> str:
    """As pandas writes it: ``0 days 00:00:01.500000``."""
    micro = round(seconds * 1e6)
    minutes, rest = divmod(micro, 60_000_000)
    days, minutes = divmod(minutes, 1440)
    return f"{days} days {minutes // 60:02}:{minutes % 60:02}:{rest // 1_000_000:02}.{rest % 1_000_000:06}"


def _predicted(rows: Iterable[Prediction]) -> Iterator[Prediction]:
    return (row for row in rows if row.probs is not None)


def _artifact(
    out: Path, rows: Iterable[Prediction], mi: bool, bounded: bool, header: Header, gold: np.ndarray | None
) -> None:
    rest, none = iter(rows), np.full(len(header.classes), np.nan, np.float32)
    with artifacts.writing(out, Predictions, header.classes) as writer:
        while block := list(islice(rest, _BLOCK)):
            columns: dict[str, np.ndarray] = {
                "utt_id": np.array([row.utt_id for row in block]),
                "probs": np.stack([none if row.probs is None else row.probs for row in block]),
                "file": np.array([str(row.excerpt.path) for row in block]),
            }
            if bounded:
                columns["start"] = np.array([row.excerpt.start for row in block])
                columns["end"] = np.array(
                    [np.nan if row.excerpt.end is None else row.excerpt.end for row in block]
                )
            if mi:
                columns["mi"] = np.array([np.nan if row.mi is None else row.mi for row in block])
            writer.append(**columns)
        if gold is not None:
            writer.append(gold=gold)
        writer.finish(header)
