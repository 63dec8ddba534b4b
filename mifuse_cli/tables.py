"""Tables of text as people have them: CSV, TSV, and what Excel and Windows make of them.

Every table that mifuse reads (manifests, labels, speakers, tables of corpora) is read here. What is unambiguous is
taken: any of four separators, UTF-8 or UTF-16, Excel's line ``sep=``, spaces around names and values, names in other
case, columns that stand twice with the same values, empty rows and nameless columns. The rest is refused by line.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mifuse_cli.errors import InputError
from mifuse_cli.files import HDF5, known_format, nearest

if TYPE_CHECKING:
    from _csv import Reader as _Reader

_SEPARATORS = (",", ";", "\t", "|")
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_UNSEEN = "\ufeff\u00ad\u200b\u200e\u200f\u2060"
"""Characters of no width that are copied along with text; the first is the byte order mark of a file."""
_HEAD = 4096
"""Bytes by which an encoding is recognised."""


class Table:
    """A table of text, read row by row and as often as it is iterated over.

    Attributes:
        path: its file.
        columns: their names, without those that are empty; each once.
        separator: of its values.
    """

    def __init__(self, path: Path, needed: Iterable[str], hint: str = "", known: Iterable[str] = ()) -> None:
        """Read the header.

        Args:
            path: of the file.
            needed: columns that have to be there.
            hint: what to do if one is not.
            known: columns whose names are also taken in other case, as ``File`` for ``file``.

        Raises:
            InputError: unreadable, or a column is missing.
        """
        self.path = path
        self._needed = tuple(needed)
        self._known = {name.casefold(): name for name in (*known, *self._needed)}
        self._encoding = _encoding(path)
        with self._opened() as (reader, _, self.separator):
            names = self._header(reader)
        self.columns = tuple(dict.fromkeys(filter(None, names)))
        if missing := [name for name in self._needed if name not in self.columns]:
            raise InputError(
                f"{path}: has no column {' or '.join(map(repr, missing))} "
                f"(found: {', '.join(self.columns) or 'nothing'}). {hint}".rstrip()
            )

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Number of the last line and values by column of every row that is not empty.

        Raises:
            InputError: a row of another length than the header, a zero byte, or a doubled column with two values.
        """
        with self._opened() as (reader, above, _):
            names = self._header(reader)
            twice = len(set(names) - {""}) < sum(map(bool, names))
            for cells in reader:
                line, values = reader.line_num + above, [_stripped(cell) for cell in cells]
                if not any(values):
                    continue
                if any("\0" in value for value in values):  # no file name or artifact can hold one
                    raise InputError(
                        f"{self.path}, line {line}: holds a zero byte. Save the table anew as UTF-8."
                    )
                while len(values) > len(names) and not values[-1]:
                    values.pop()
                if len(values) != len(names):
                    raise InputError(
                        f"{self.path}, line {line}: expected {len(names)} values, one a column, found {len(values)}."
                    )
                if twice:
                    self._agree(line, names, values)
                row = dict(zip(names, values, strict=True))
                row.pop("", None)
                yield line, row

    def _agree(self, line: int, names: list[str], values: list[str]) -> None:
        """Refuse a row with two values for one name."""
        first: dict[str, str] = {}
        for name, value in zip(names, values, strict=True):
            if name and first.setdefault(name, value) != value:
                raise InputError(
                    f"{self.path}: two columns are called {name!r}, and line {line} has {first[name]!r} in one and "
                    f"{value!r} in the other. Keep one of them, or rename one."
                )

    def _header(self, reader: _Reader) -> list[str]:
        """Names of the columns as we call them; nameless ones at the end are left out."""
        names = next((row for row in reader if any(value.strip() for value in row)), [])
        names = [_stripped(name) for name in names]
        while names and not names[-1]:
            names.pop()
        return [name if name in self._needed else self._known.get(name.casefold(), name) for name in names]

    @contextmanager
    def _opened(self) -> Iterator[tuple[_Reader, int, str]]:
        """A reader of the header and what is below, the number of lines above, and the separator."""
        reader: _Reader | None = None
        above = 0
        try:
            with self.path.open(newline="", encoding=self._encoding) as file:
                first, above = next(file, ""), 0
                given = re.fullmatch(r'"?sep=(.)"?[,;\t|]*\s*', first, re.IGNORECASE | re.DOTALL)
                if given:
                    first, above = next(file, ""), 1
                while first and not first.strip(" \r\n,;\t|"):  # empty rows above the header
                    first, above = next(file, ""), above + 1
                separator = given[1] if given else self._separator(first)
                reader = csv.reader(
                    chain([first], (text.removeprefix("\ufeff") for text in file)),
                    delimiter=separator,
                    skipinitialspace=True,
                    strict=True,
                )
                yield reader, above, separator
        except UnicodeDecodeError:
            raise _undecodable(self.path, self._encoding) from None
        except (OSError, UnicodeError, csv.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            if isinstance(error, csv.Error) and reader:
                why = f"{error}, line {reader.line_num + above}"
            raise InputError(
                f"{self.path}: cannot be read as CSV ({why}). Expected UTF-8 text, a header line"
                + (f" with the column {self._needed[0]!r}," if self._needed else ",")
                + " values separated by commas."
            ) from None

    def _separator(self, header: str) -> str:
        """The separator by which the header has the columns that are needed, else the most columns."""

        def fits(separator: str) -> tuple[int, int]:
            try:
                cells = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
            except csv.Error:
                return 0, 0
            names = [self._known.get(cell.strip().casefold(), cell.strip()) for cell in cells]
            return sum(name in names for name in self._needed), len(cells)

        return max(_SEPARATORS, key=fits)


def _stripped(cell: str) -> str:
    """A cell without what cannot be seen around it."""
    return cell.strip() if cell.isascii() else cell.strip().strip(_UNSEEN).strip()


def written_name(directory: Path, name: str) -> str:
    """Name of a file that a table in ``directory`` names.

    Where there is no such file, a backslash is a slash of Windows, and accents may be composed in another way than on
    the disk (NFC or NFD).
    """
    if ("\\" not in name and name.isascii()) or os.path.lexists(directory / name):
        return name
    slashes = name.replace("\\", "/")
    forms = (slashes, unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes))
    return next((form for form in forms if os.path.lexists(directory / form)), slashes)


def windows_hint(name: str) -> str:
    """A sentence about a path of another machine, "" for any other path."""
    if re.match(r"[A-Za-z]:[\\/]|\\\\", name):
        return " It is a path of a Windows machine: write it relative to the table, with slashes."
    return ""


def _encoding(path: Path) -> str:
    """Encoding by a byte order mark, or by the zero bytes of UTF-16 without one; else UTF-8.

    Raises:
        InputError: the file cannot be read.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path}: is a device or a pipe, but a table is read more than once. Write it to a file."
        )
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}){nearest(path)}. Check the path and its permissions."
        ) from None
    if known := known_format(head):
        artifact = ", as artifacts of mifuse are" if known == HDF5 else ""
        raise InputError(f"{path}: is {known}{artifact}; expected a table, such as CSV. Check the path.")
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) / 8 and min(even, odd) < max(even, odd) / 8:
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8-sig"


def _undecodable(path: Path, encoding: str) -> InputError:
    """The error for bytes that are not text in the encoding of a table."""
    with path.open("rb") as file:
        for number, raw in enumerate(file if encoding.startswith("utf-8") else (), start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start : error.start + 1]
                meant = byte.decode("cp1252", errors="replace")
                return InputError(
                    f"{path}: cannot be read as CSV: line {number} is not UTF-8 (byte 0x{byte.hex()}, {meant!r} in "
                    "Windows-1252). Save it as UTF-8 ('CSV UTF-8' in Excel), or convert it: "
                    "iconv -f WINDOWS-1252 -t UTF-8."
                )
    return InputError(
        f"{path}: cannot be read as CSV: it is cut off, or not in {encoding}, as it seems. Save it as UTF-8."
    )
