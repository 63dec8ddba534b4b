"""Any corpus: a CSV file that names the clips, or a directory with one folder for every class."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path, PurePosixPath

from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.corpora.table import rows
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.manifest import audio_below

COLUMNS = ("file", "utt_id", "speaker", "emotion", "session", "split", "part", "gender", "text")
_GENDERS = {"f": "female", "m": "male"}


def read(root: Path, columns: Mapping[str, str] | None = None) -> Iterator[Utterance]:
    """Every clip of a CSV file (a TSV file by its suffix) or below a directory.

    A CSV needs the column ``file``, relative to it; the others of `COLUMNS` are optional. In a
    directory the folder below ``root`` is the emotion, in lower case, and speakers are unknown.

    Ids are the column ``utt_id``, else file stems where those are unique, else paths without suffix. Paths
    are relative to the class folder, so that an id does not reveal the class. If two classes contain the same
    path, numbers are appended in order of file size, so that ids do not depend on the names of the classes.

    Args:
        root: the CSV file or the directory.
        columns: our column names, each with its name in the CSV where that differs.

    Raises:
        UsageError: ``columns`` names one that is not in `COLUMNS`, or is given with a directory.
        InputError: a CSV that is malformed or lacks a column, a row without file; a directory that holds no
            audio, or audio outside the class folders.
    """
    columns = columns or {}
    for ours in columns:
        if ours not in COLUMNS:
            raise UsageError(
                f"--columns {ours}={columns[ours]}: expected one of {', '.join(COLUMNS)} before ="
            )
    if not root.is_dir():
        return _listed(root, columns)
    if columns:
        raise UsageError(f"--columns is for a CSV file, but {root} is a directory. Leave it out.")
    return _in_folders(root)


def _listed(table: Path, columns: Mapping[str, str]) -> Iterator[Utterance]:
    needed = {"file": "file", **columns}
    hint = f"Name columns with --columns, as {','.join(f'{ours}=NAME' for ours in needed)}."
    theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
    found = [
        {ours: row.get(name, "") for ours, name in theirs.items()}
        for row in rows(table, needed.values(), hint)
    ]
    for number, row in enumerate(found, start=1):
        if not row["file"]:
            raise InputError(f"{table}: row {number} has nothing in the column {theirs['file']!r}.")
    files = [PurePosixPath(row["file"]) for row in found]
    unique = len({file.stem for file in files}) == len(files)
    for file, row in zip(files, found, strict=True):
        path, gender = table.parent / file, row["gender"].lower()
        yield Utterance(
            utt_id=row["utt_id"] or (file.stem if unique else str(file.with_suffix(""))),
            path=path if path.is_file() else None,
            speaker=row["speaker"],
            label=row["emotion"],
            session=row["session"],
            split=row["split"],
            part=row["part"],
            gender=_GENDERS.get(gender, gender),
            text=row["text"],
        )


def _in_folders(root: Path) -> Iterator[Utterance]:
    found = sorted(map(PurePosixPath, audio_below(root)))
    names = [name for name in found if not any(part.startswith(".") for part in name.parts)]
    loose = [name for name in names if len(name.parts) == 1]
    if loose or not names:
        held = f"{len(loose)} audio files outside of any folder, first {loose[0]}" if loose else "no audio"
        raise InputError(
            f"{root}: holds {held}. Expected one folder for every class, as angry/ and happy/, or a CSV file "
            "with the columns file and emotion."
        )
    ids = _ids(root, names)
    for name in names:
        yield Utterance(utt_id=ids[name], path=root / name, label=name.parts[0].strip().lower())


def _ids(root: Path, names: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Ids that are unique across classes; two formats of one clip keep the same id, which the caller refuses."""
    ids = {name: name.stem for name in names}
    if len(set(ids.values())) == len(names):
        return ids
    ids = {name: str(PurePosixPath(*name.parts[1:]).with_suffix("")) for name in names}
    taken = set(ids.values())
    sharing: dict[str, dict[str, list[PurePosixPath]]] = defaultdict(lambda: defaultdict(list))
    for name, plain in ids.items():
        sharing[plain][name.parts[0]].append(name)
    for plain, classes in sharing.items():
        if len(classes) > 1:
            fresh = (new for n in count(1) if (new := f"{plain}-{n}") not in taken)
            for group, new in zip(
                sorted(classes.values(), key=lambda g: _rank(root, g[0])), fresh, strict=False
            ):
                ids.update(dict.fromkeys(group, new))
    return ids


def _rank(root: Path, name: PurePosixPath) -> tuple[int, bytes]:
    """Sort key: the size of the file, then a hash of its path, so that ids do not reveal the class."""
    return (root / name).stat().st_size, hashlib.sha256(str(name).encode()).digest()


CORPUS = Corpus(name="generic", read=read, labels=None, columns=True)
