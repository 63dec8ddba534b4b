"""Databases in audformat, as distributed by audb: a header ``db.yaml``, tables beside it, audio below it.

They are read without the package audformat, which may execute code contained in a header or a pickled table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mifuse_cli.config import load_yaml
from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.errors import DependencyError, InputError, UsageError
from mifuse_cli.listing import portable_id
from mifuse_cli.segments import WHOLE, Bounds, Segments
from mifuse_cli.tables import Table

_Clip = tuple[str, Bounds]
"""A file as it is named, and the part of it."""
_SAVE = "Save the database anew with audformat.Database.save(root, storage_format='csv')."


def read(root: Path, columns: Mapping[str, str] | None = None) -> Iterator[Utterance]:
    """Every clip of the tables that hold the emotions, with speakers and splits from any table.

    Tables of files go before tables of segments. Several tables are taken together where they have the emotions in
    columns of the same name and share no clip, as those of a split each do.

    Args:
        root: directory of the database.
        columns: ``emotion`` by TABLE.COLUMN, needed where several tables tell emotions of the same clips.

    Raises:
        UsageError: ``columns`` names anything else, or it is needed.
        InputError: no header or table that can be read, or no emotions.
        DependencyError: tables in Parquet, but no pyarrow.
    """
    columns = columns or {}
    if columns.keys() - {"emotion"}:
        raise UsageError(f"--columns {','.join(columns)}: expected emotion=TABLE.COLUMN alone")
    tables, named_splits = _header(root)
    emotions = _emotions(root, tables, columns.get("emotion"))
    speakers = dict[_Clip, str]()
    splits = dict[_Clip, str]()
    for name, table in tables.items():
        split = table["split_id"] or next((part for part in name.split(".") if part in named_splits), "")
        if "speaker" in table["columns"]:
            speakers |= dict(_column(root, name, table, "speaker"))
        if split:
            splits |= {clip: split for clip, _ in _column(root, name, table, None)}

    def told(values: Mapping[_Clip, str], clip: _Clip) -> str:
        return values.get(clip) or values.get((clip[0], WHOLE), "")

    stems = Counter(PurePosixPath(file).stem + bounds.name for file, bounds in emotions)
    unique = len(stems) == len(emotions)
    for (file, bounds), label in emotions.items():
        path = PurePosixPath(file)
        yield Utterance(
            utt_id=portable_id(path.stem if unique else str(path.with_suffix(""))) + bounds.name,
            path=root / path if (root / path).is_file() else None,
            speaker=told(speakers, (file, bounds)),
            label=label,
            split=told(splits, (file, bounds)),
            bounds=bounds,
        )


def _header(root: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The header's entry for every table, its columns a mapping, and the names of its splits."""
    path = root / "db.yaml"
    try:
        header = _mapping("the header", load_yaml(path, path.name, InputError))
        tables = _mapping("tables", header.get("tables"))
        if not tables:
            raise TypeError("it names no tables")
        for name, about in tables.items():
            about = _mapping(f"table {name}", about)
            columns = _mapping(f"columns of table {name}", about.get("columns"))
            columns = {column: _mapping(f"column {column}", one) for column, one in columns.items()}
            split = about.get("split_id") or ""
            if not isinstance(split, str):
                raise TypeError(f"split_id of table {name}: expected a name, found {split!r:.60}")
            tables[name] = {**about, "columns": columns, "split_id": split}
        return tables, set(_mapping("splits", header.get("splits")))
    except (InputError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as the header of an audformat database ({error}). Give the directory "
            "that audb.load_to wrote."
        ) from None


def _mapping(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise TypeError(f"{name}: expected names with values, found {value!r:.60}")
    return {str(key): one for key, one in (value or {}).items()}


def _emotions(root: Path, tables: dict[str, dict[str, Any]], wanted: str | None) -> dict[_Clip, str]:
    """Emotion of every clip."""
    there = {
        f"{name}.{column}": (name, column)
        for name, table in tables.items()
        for column, about in table["columns"].items()
        if wanted or "emotion" in (column, about.get("scheme_id"))
    }
    if wanted and wanted not in there:
        raise UsageError(f"--columns emotion={wanted}: expected one of {', '.join(there)}")
    names = [wanted] if wanted else list(there)
    if not names:
        raise InputError(f"{root}: no column is called emotion. Name it with --columns emotion=TABLE.COLUMN.")
    names = [name for name in names if tables[there[name][0]].get("type") != "segmented"] or names
    several = UsageError(
        f"{root}: emotions are in {len(names)} tables; choose --columns emotion={' or '.join(names)}"
    )
    if len({there[name][1] for name in names}) > 1:
        raise several
    together: dict[_Clip, str] = {}
    for table, column in map(there.__getitem__, names):
        of_table = dict(_column(root, table, tables[table], column))
        if together.keys() & of_table.keys():
            raise several
        together |= of_table
    return together


def _column(root: Path, name: str, table: dict[str, Any], column: str | None) -> Iterator[tuple[_Clip, str]]:
    """Clips of a table with their value in a column, "" without one."""
    bounds = ("start", "end") if table.get("type") == "segmented" else ()
    segments = Segments.of(bounds, f"{root}, table {name}")
    for row in _rows(root, name, ("file", *bounds, *([column] if column else []))):
        where = f"{root}, table {name}, {row['file']}"
        yield (row["file"], segments.bounds(row, where)), row[column] if column else ""


def _rows(root: Path, table: str, needed: Iterable[str]) -> Iterable[dict[str, str]]:
    path = root / f"db.{table}.csv"
    if path.is_file():
        return (row for _, row in Table(path, needed, _SAVE))
    path = path.with_suffix(".parquet")
    if not path.is_file():
        raise InputError(f"{path.with_suffix('')}: is there neither as .csv nor as .parquet. {_SAVE}")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DependencyError(
            f"{path}: needs pyarrow to be read, which is not installed. Run: pip install 'mifuse[audformat]'"
        ) from None
    try:
        found = parquet.read_table(path, columns=list(needed)).to_pylist()
        return [{name: "" if row[name] is None else str(row[name]) for name in needed} for row in found]
    except (OSError, ValueError, KeyError, ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}). {_SAVE}") from None


CORPUS = Corpus(
    name="audformat",
    read=read,
    labels=None,
    columns=True,
    note="most databases in audformat name emotions by nouns: --merge anger=angry,happiness=happy,sadness=sad",
)
