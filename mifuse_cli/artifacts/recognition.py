"""What lies at a path where something else was expected, in words, and the command that makes what was expected."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mifuse_cli.artifacts.examination import examine
from mifuse_cli.artifacts.reader import anew, journal_of
from mifuse_cli.errors import InputError, some
from mifuse_cli.files import HDF5, HDF5_SIGNATURE, format_of, nearest

MADE_BY = {
    "lalm": "query-lalm --manifest CSV --model NAME --base-url URL --out FILE",
    "source": "sample-source --model DIR --manifest CSV --out FILE",
    "fused": "fuse --lalm FILE --source FILE --out FILE",
    "predictions": "predict --model DIR --manifest CSV --out FILE.h5",
    "evaluation": "evaluate --model DIR --manifest CSV --out FILE",
    "compared": "compare --data DIR --models DIR --lalm DIR --out DIR",
    "target": "compare --data DIR --models DIR --lalm DIR --out DIR",
    "training": "train-source --manifest CSV --encoder NAME --out DIR",
}
"""What is to be typed after ``mifuse`` for an artifact of every kind."""
CHECKPOINT = "a checkpoint, the directory of a model"
EXPORT = "a model that mifuse export wrote for other programs"
_HISTORY = "train.h5"
_OF_EXPORTS = ("modeling_mifuse.py", "model.onnx")
_PREDICTED = (rb"utt_id,file,.*,predicted,decision", rb'\{"utt_id": ', rb"SPEAKER .* <NA> <NA> ")
"""How the tables, JSON lines and RTTM of predict begin."""
_LONGEST_HEADER = 1 << 16
_MOST = 200
"""Files of a directory that are looked at."""


def check_artifact(path: Path, wanted: str = "") -> None:
    """Refuse a path at which no HDF5 file is.

    Args:
        path: of an artifact.
        wanted: its kind; "": any.

    Raises:
        InputError: saying what is there, and how to make what was expected.
        OSError: it cannot be read.
    """
    if not path.exists():
        how = f"Make it first (mifuse {MADE_BY[wanted]})" if wanted else "Make it first"
        raise InputError(f"{path}: no such file{nearest(path)}. {how} or check the path.")
    if path.is_dir() or not path.is_file():
        raise InputError(f"{path}: is {what(path)}, expected {_expected(wanted)}.{how_to_make(wanted, path)}")
    if not _has_signature(path):
        raise InputError(
            f"{path}: is no mifuse artifact, but {what(path)}. Expected {_expected(wanted)}."
            f"{f' {anew(path)}' if journal_of(path).exists() else how_to_make(wanted, path)}"
        )


def how_to_make(wanted: str, given: Path) -> str:
    """A sentence with the command that makes an artifact of a kind, of the model that was given if it takes one.

    Args:
        wanted: the kind; "": any, for which there is no sentence.
        given: what was there instead.
    """
    if not wanted:
        return ""
    command = MADE_BY[wanted]
    if is_checkpoint(given):
        command = command.replace("--model DIR", f"--model {shlex.quote(str(given))}")
    return f" Make one: mifuse {command}"


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a directory with the history of a training, as every checkpoint has."""
    return (path / _HISTORY).is_file()


def is_export(path: Path) -> bool:
    """Whether a path is a directory as ``export`` writes it."""
    return not is_checkpoint(path) and any((path / name).is_file() for name in _OF_EXPORTS)


def what(path: Path) -> str:
    """What is at a path that exists, as a phrase: ``a checkpoint, the directory of a model``, ``a WAV file``.

    Of another directory it names the artifacts and checkpoints that lie in it.
    """
    if is_checkpoint(path):
        return CHECKPOINT
    if is_export(path):
        return f"{EXPORT}, not the checkpoint that it was made from"
    if path.is_dir():
        inside = list(islice(_in(path), _MOST))
        return f"a directory that holds {some(inside)}" if inside else "a directory without artifacts"
    if not path.is_file():
        return "a device or a pipe"
    if kind := kind_of(path):
        return made_by(kind)
    if path.name in _OF_EXPORTS:
        return f"a file of {EXPORT}"
    if (found := format_of(path)) == HDF5:
        return f"{found} that mifuse has not made, or a damaged one"
    if found == "text" and _is_predicted(path):
        return "predictions as text (mifuse predict --out FILE.h5 writes them as an artifact)"
    return found


def _is_predicted(path: Path) -> bool:
    """Whether a text is one that ``predict`` wrote, by its first line."""
    with path.open("rb") as file:
        first = file.readline(_LONGEST_HEADER)
    return any(re.match(start, first) for start in _PREDICTED)


def made_by(kind: str) -> str:
    """An artifact of a kind, as a phrase."""
    if kind == "training":
        return f"the history of a training, {_HISTORY} of a checkpoint"
    return f"an artifact of {MADE_BY[kind].split()[0]} (kind {kind!r})"


def kind_of(path: Path) -> str:
    """Kind of the artifact in a file, "" if it is none or cannot be read."""
    import h5py

    try:
        if not _has_signature(path):
            return ""
        examine(path)
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("kind")
    except (OSError, RuntimeError, KeyError, MemoryError, TypeError, ValueError):
        return ""
    return kind if isinstance(kind, str) and kind in MADE_BY else ""


def _expected(wanted: str) -> str:
    return made_by(wanted) if wanted else "an artifact (.h5)"


def _in(directory: Path) -> Iterator[str]:
    """Artifacts and checkpoints in a directory or, if there are none, in those below it."""
    for pattern in ("*", "*/*"):
        found = False
        for path in sorted(islice(directory.glob(pattern), 50 * _MOST)):
            if path.name.startswith("."):
                continue
            kind = "checkpoint" if is_checkpoint(path) else kind_of(path) if path.suffix == ".h5" else ""
            if kind:
                found = True
                yield f"{path.relative_to(directory)} ({kind})"
        if found:
            return


def _has_signature(path: Path) -> bool:
    """Whether a file has the mark of HDF5 at one of the places where it may be."""
    with path.open("rb") as file:
        size, place = path.stat().st_size, 0
        while place < size:
            file.seek(place)
            if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
            place = 2 * place or 512
    return False
