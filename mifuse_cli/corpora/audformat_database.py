"""Databases in audformat, as distributed by audb: a header ``db.yaml``, tables beside it, audio below it.

They are read without the package audformat, which may execute code contained in a header or a pickled table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.corpora.table import rows
from mifuse_cli.errors import DependencyError, InputError, UsageError

_SAVE = "Save the database anew with audformat.Database.save(root, storage_format='csv')."


def read(root: Path, columns: Mapping[str, str] | None = None) -> Iterator[Utterance]:
    """Every file of the table that holds the emotions, with speakers and splits from any table.

    Args:
        root: directory of the database.
        columns: ``emotion`` by TABLE.COLUMN, needed where several tables have a column or scheme "emotion".

    Raises:
        UsageError: ``columns`` names anything else, or it is needed.
        InputError: no header or table that can be read, no emotions, or only emotions of segments of
            files.
        DependencyError: tables in Parquet, but no pyarrow.
    """
    columns = columns or {}
    if columns.keys() - {"emotion"}:
        raise UsageError(f"--columns {','.join(columns)}: expected emotion=TABLE.COLUMN alone")
    tables = _tables(root)
    found = list(_column(root, *_emotions(root, tables, columns.get("emotion"))))
    whole = {name: table for name, table in tables.items() if table.get("type") == "filewise"}
    speakers = {
        file: speaker
        for name, table in whole.items()
        if "speaker" in table["columns"]
        for file, speaker in _column(root, name, "speaker")
    }
    splits = {
        file: table["split_id"]
        for name, table in whole.items()
        if table.get("split_id")
        for file, _ in _column(root, name, "file")
    }
    unique = len({PurePosixPath(file).stem for file, _ in found}) == len(found)
    for file, label in found:
        path = PurePosixPath(file)
        yield Utterance(
            utt_id=path.stem if unique else str(path.with_suffix("")),
            path=root / path if (root / path).is_file() else None,
            speaker=speakers.get(file, ""),
            label=label,
            split=splits.get(file, ""),
        )


def _tables(root: Path) -> dict[str, dict[str, Any]]:
    """The header's entry for every table."""
    import yaml

    path = root / "db.yaml"
    try:
        tables = yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]
        return {name: {**about, "columns": about.get("columns") or {}} for name, about in tables.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: cannot be read as the header of an audformat database ({error}). Give the directory "
            "that audb.load_to wrote."
        ) from None


def _emotions(root: Path, tables: dict[str, dict[str, Any]], wanted: str | None) -> tuple[str, str]:
    """Table and column of the emotions."""
    there = {
        f"{name}.{column}": (name, column)
        for name, table in tables.items()
        for column, about in table["columns"].items()
        if wanted or "emotion" in (column, (about or {}).get("scheme_id"))
    }
    if wanted and wanted not in there:
        raise UsageError(f"--columns emotion={wanted}: expected one of {', '.join(there)}")
    names = [wanted] if wanted else list(there)
    if not names:
        raise InputError(f"{root}: no column is called emotion. Name it with --columns emotion=TABLE.COLUMN.")
    whole = [name for name in names if tables[there[name][0]].get("type") == "filewise"]
    if not whole:
        raise InputError(
            f"{root}: {', '.join(names)} is of parts of files, expected one file a clip. Cut the files first."
        )
    if len(whole) > 1:
        raise UsageError(f"{root}: emotions are in {len(whole)} tables; choose --columns emotion={whole[0]} or "
                         + " or ".join(whole[1:]))  # fmt: skip
    return there[whole[0]]


def _column(root: Path, table: str, column: str) -> Iterator[tuple[str, str]]:
    return ((row["file"], row[column]) for row in _rows(root, table, {"file", column}))


def _rows(root: Path, table: str, needed: Iterable[str]) -> Iterable[dict[str, str]]:
    path = root / f"db.{table}.csv"
    if path.is_file():
        return rows(path, needed, _SAVE)
    path = path.with_suffix(".parquet")
    if not path.is_file():
        raise InputError(f"{path.with_suffix('')}: is there neither as .csv nor as .parquet. {_SAVE}")
    try:
        from pyarrow import parquet
    except ImportError:
        raise DependencyError(
            f"{path}: needs pyarrow to be read, which is not installed. Run: pip install 'mifuse[audformat]'"
        ) from None
    try:
        found = parquet.read_table(path, columns=sorted(needed)).to_pylist()
        return [{name: "" if row[name] is None else str(row[name]) for name in needed} for row in found]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}). {_SAVE}") from None


CORPUS = Corpus(
    name="audformat",
    read=read,
    labels=None,
    columns=True,
    note="most databases in audformat name emotions by nouns: --merge anger=angry,happiness=happy,sadness=sad",
)
