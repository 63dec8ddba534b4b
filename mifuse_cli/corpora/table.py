"""CSV and TSV tables of a corpus."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from mifuse_cli.errors import InputError


def rows(path: Path, needed: Iterable[str], hint: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, or of a TSV file by its suffix, without the space around names and values.

    Args:
        path: UTF-8 with or without byte order mark, any line ends.
        needed: columns that have to be there.
        hint: what to do if one is not.

    Raises:
        InputError: unreadable, a column is missing, or a row is longer or shorter than the header.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if missing := [name for name in needed if name not in names]:
                raise InputError(
                    f"{path}: has no column {' or '.join(map(repr, missing))} "
                    f"(found: {', '.join(names) or 'nothing'}). {hint}"
                )
            for values in filter(None, reader):
                if len(values) != len(names):
                    raise InputError(
                        f"{path}, line {reader.line_num}: expected {len(names)} values, one a column, "
                        f"found {len(values)}."
                    )
                yield dict(zip(names, map(str.strip, values), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a {delimiter!r}-separated table ({error}).") from None
