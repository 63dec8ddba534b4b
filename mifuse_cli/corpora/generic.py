"""Any corpus: a CSV file that names the clips, or a directory with one folder for every class."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path, PurePosixPath

from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.errors import InputError, UsageError, listed
from mifuse_cli.labels import composed
from mifuse_cli.listing import Listing, portable_id
from mifuse_cli.manifest import audio_below

COLUMNS = ("file", "utt_id", "speaker", "emotion", "session", "split", "part", "gender", "text")
_BOUNDS = ("start", "end", "duration", "channel")
_GENDERS = {"f": "female", "m": "male"}


def read(root: Path, columns: Mapping[str, str] | None = None) -> Iterator[Utterance]:
    """Every clip of a table or below a directory.

    A table needs the column ``file``, relative to it; the others of `COLUMNS` are optional, and those that bound a
    clip within its recording, see `segments`. In a
    directory the folder below ``root`` is the emotion, in lower case, and speakers are unknown.

    Ids are the column ``utt_id``, else file stems where those are unique, else paths without suffix; then the bounds.
    Paths are relative to the class folder, so that an id does not reveal the class. If two classes contain the same
    path, numbers are appended in order of file size, so that ids do not depend on the names of the classes.

    Args:
        root: the CSV file or the directory.
        columns: our column names, each with its name in the CSV where that differs.

    Raises:
        UsageError: ``columns`` names one that we do not know, or is given with a directory.
        InputError: a CSV that is malformed or lacks a column, a row without file; a directory that holds no
            audio, or audio outside the class folders.
    """
    columns = columns or {}
    for ours in columns:
        if ours not in COLUMNS + _BOUNDS:
            raise UsageError(
                f"--columns {ours}={columns[ours]}: expected one of {', '.join(COLUMNS + _BOUNDS)} before ="
            )
    if not root.is_dir():
        return _listed(root, columns)
    if columns:
        raise UsageError(f"--columns is for a CSV file, but {root} is a directory. Leave it out.")
    return _in_folders(root)


def _listed(table: Path, columns: Mapping[str, str]) -> Iterator[Utterance]:
    hint = f"Name columns with --columns, as {','.join(f'{ours}=NAME' for ours in {'file': '', **columns})}."
    rows = Listing(table, columns, hint)
    if faults := rows.malformed():
        raise InputError(listed(faults))
    if faults := rows.contradictions():
        raise InputError(f"{table}: {' '.join(faults)}")
    found = list(rows)
    unique = len({row.stem for row in found}) == len(found)
    for row in found:
        values = {ours: row.values.get(ours, "") for ours in COLUMNS}
        gender = values["gender"].lower()
        yield Utterance(
            utt_id=row.given or (row.stem if unique else row.place),
            path=row.path,
            speaker=values["speaker"],
            label=values["emotion"],
            session=values["session"],
            split=values["split"],
            part=values["part"],
            gender=_GENDERS.get(gender, gender),
            text=values["text"],
            bounds=row.bounds,
        )


def _in_folders(root: Path) -> Iterator[Utterance]:
    found = sorted(map(PurePosixPath, audio_below(root)))
    names = [name for name in found if not any(part.startswith(".") for part in name.parts)]
    loose = [name for name in names if len(name.parts) == 1]
    if loose or not names:
        held = f"{len(loose)} audio files outside of any folder, first {loose[0]}" if loose else "no audio"
        raise InputError(
            f"{root}: holds {held}. Expected one folder for every class, as angry/ and happy/, or a CSV file "
            "with the columns file and emotion. Clips without labels need not be prepared: give --wav-dir to the "
            "other commands."
        )
    ids = _ids(root, names)
    for name in names:
        yield Utterance(utt_id=ids[name], path=root / name, label=composed(name.parts[0].strip().lower()))


def _ids(root: Path, names: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Ids that are unique across classes; two formats of one clip keep the same id, which the caller refuses."""
    ids = {name: portable_id(name.stem) for name in names}
    if len(set(ids.values())) == len(names):
        return ids
    ids = {name: portable_id(str(PurePosixPath(*name.parts[1:]).with_suffix(""))) for name in names}
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
    return (root / name).stat().st_size, hashlib.sha256(os.fsencode(name)).digest()


CORPUS = Corpus(name="generic", read=read, labels=None, columns=True)
