"""Helpers for differences between copies of a corpus: file names, nesting, line ends, encodings, stray files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from mifuse_cli.errors import InputError, some
from mifuse_cli.manifest import audio_below


def first(places: Iterable[Path], *names: str) -> Path | None:
    """The first file that exists of ``names``, in the order of names, in any of ``places``."""
    places = list(places)
    return next((place / name for name in names for place in places if (place / name).is_file()), None)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file without white space around them, each with its number from 1.

    The encoding is UTF-8, with or without byte order mark; lines that are not UTF-8 are read as Windows-1252.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    yield number, raw.decode("cp1252", errors="replace").strip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None


def recordings(root: Path, start: str = "") -> dict[str, str]:
    """Path from ``root`` of every audio file below it whose name begins with ``start``, by file stem.

    Raises:
        InputError: ``root`` cannot be read, or two files have the same stem.
    """
    found: dict[str, str] = {}
    for name in audio_below(root):
        stem = PurePosixPath(name).stem
        if stem.startswith(start):
            other = found.setdefault(stem, name)
            if other != name:
                raise InputError(
                    f"{root}: has two recordings of {stem}, {min(name, other)} and {max(name, other)}. "
                    "Move the copy that is not to be used elsewhere."
                )
    return found


def stranger(root: Path, corpus: str, expected: str, mark: str) -> InputError:
    """The error for a root directory without the corpus: what was found, what expected, where it may be.

    Args:
        root: as it was given.
        corpus: its name in the message.
        expected: what was looked for.
        mark: glob pattern, relative to the root, of something that only this corpus has.
    """
    try:
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return InputError(
            f"{root}: cannot be read ({error.strerror}). Give the directory of {corpus} with {expected}."
        )
    found = some(names) or "nothing"
    above = root.resolve().parents[:2]
    near = next((p for p in (*above, *root.glob("*/"), *root.glob("*/*/")) if any(p.glob(mark))), None)
    hint = f" Did you mean {near}?" if near else ""
    return InputError(f"{root}: is not {corpus}: found {found}, expected {expected}.{hint}")
