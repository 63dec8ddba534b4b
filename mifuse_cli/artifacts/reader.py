"""Reading the datasets of an artifact as they are needed, in constant memory where a part at a time is enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli.artifacts.schema import (
    Columns,
    DatasetHash,
    Header,
    check_arrays,
    check_shapes,
    content_hash,
    content_hash_of_schema_1,
    unsorted,
)
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import LOCKED, found_errno

if TYPE_CHECKING:
    import h5py

_BYTES = 2**22
"""Of the rows that are read at a time."""


class Column:
    """A dataset of an open artifact whose content was found to be whole; slices along the clips are read from the file.

    Attributes:
        shape: of the whole dataset.
        dtype: of what is read.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        self._dataset, self._path = dataset, path
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        with damage_named(self._path):
            return np.asarray(self._dataset[part])


class Reader:
    """An artifact in an open file, of which no more is read than is asked for, made by `mifuse_cli.artifacts.reading`.

    What is read is checked against the schema and against the hash that was recorded when it was written.

    Attributes:
        path: of the file.
        kind: of the artifact.
        header: its root attributes.
    """

    def __init__(self, file: h5py.File, path: Path, kind: str, header: Header, columns: Columns) -> None:
        self.path, self.kind, self.header = path, kind, header
        self._file, self._columns = file, columns
        self._found: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._columns and name in self._file

    @property
    def names(self) -> list[str]:
        """Of the datasets that are there."""
        return [name for name in self._columns if name in self._file]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a dataset.

        Raises:
            ArtifactError: there is none of this name.
        """
        with damage_named(self.path):
            return self._dataset(name).shape

    @cached_property
    def utt_id(self) -> np.ndarray:
        """(U,) utterance ids, sorted."""
        return self.read("utt_id")

    @cached_property
    def sha256(self) -> str:
        """Content hash of the artifact as it was recorded. It agrees with the header and with the recorded hashes of
        the datasets, which are compared with the content of each when that is read.

        Raises:
            ArtifactError: it does not agree.
        """
        with damage_named(self.path):
            recorded = self._file.attrs.get("sha256")
            if self._is_of_schema_1:
                parts = ((name, self._shapes[name], self._blocks(name)) for name in sorted(self.names))
                found = content_hash_of_schema_1(self.kind, self.header, parts)
            else:
                found = content_hash(self.kind, self.header, self._shapes, self._recorded)
        if found != recorded:
            raise self._edited()
        return found

    def read(self, name: str) -> np.ndarray:
        """A dataset as a whole.

        Raises:
            ArtifactError: it is missing, violates the schema, or was edited.
        """
        with damage_named(self.path):
            if self._columns[name]["dtype"] == "str":
                parts = [np.array([text.decode() for text in block]) for block in self._checked(name)]
                return np.concatenate(parts) if parts else np.zeros(0, str)
            found = np.empty(self._dataset(name).shape, self._columns[name]["dtype"])
            start = 0
            for block in self._checked(name):
                found[start : start + len(block)] = block
                start += len(block)
            return found

    def column(self, name: str) -> Column:
        """A dataset to be read in slices. It is read once to see that it is whole.

        Raises:
            ArtifactError: as for `read`.
        """
        with damage_named(self.path):
            assert self.content(name)
            return Column(self._dataset(name), self.path)

    def content(self, name: str) -> str:
        """Hash of the content of a dataset, which is read once to see that it is whole.

        Raises:
            ArtifactError: as for `read`.
        """
        if name not in self._found:
            with damage_named(self.path):
                for _ in self._checked(name):
                    pass
        return self._found[name]

    def _checked(self, name: str) -> Iterator[np.ndarray]:
        self._dataset(name)
        assert self.sha256
        check_shapes(self._columns, self._shapes, self.header.classes, str(self.path))
        found, last_id, empty = DatasetHash(), None, True
        for block in self._blocks(name):
            check_arrays(self._columns, {name: block}, self.header.classes, str(self.path), last_id)
            found.update(block)
            last_id, empty = block[-1] if name == "utt_id" else None, False
            yield block
        if name == "utt_id" and empty:
            raise unsorted(str(self.path))
        self._found[name] = found.hexdigest()
        if not self._is_of_schema_1 and self._found[name] != self._recorded[name]:
            raise self._edited()

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        """Strings as bytes."""
        dataset, dtype = self._dataset(name), self._columns[name]["dtype"]
        if dtype == "str":
            dataset.asstr()  # a TypeError, if it holds something else
            dtype = object
        a_row = max(1, int(np.prod(dataset.shape[1:])) * max(dataset.dtype.itemsize, 8))
        at_once = dataset.chunks[0] if dataset.chunks else 1
        step = max(1, _BYTES // a_row // at_once) * at_once
        for start in range(0, len(dataset), step):
            yield dataset[start : start + step].astype(dtype, copy=False)

    def _dataset(self, name: str) -> h5py.Dataset:
        if name not in self._file:
            raise ArtifactError(f"{self.path}: has no dataset {name!r}. {anew(self.path)}")
        return self._file[name]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (len(self._file[name]), *self._file[name].shape[1:]) for name in self.names}

    @cached_property
    def _recorded(self) -> dict[str, str]:
        """Recorded hash of every dataset; none where it was replaced."""
        return {name: str(self._file[name].attrs.get("sha256", "")) for name in self.names}

    @cached_property
    def _is_of_schema_1(self) -> bool:
        return bool(self._file.attrs["schema_version"] == 1)

    def _edited(self) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: content does not match its recorded hash; it was edited. {anew(self.path)}"
        )


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what h5py raises about a damaged file into an error that names it.

    Raises:
        InputError: it cannot be read as HDF5.
        ArtifactError: it holds something else than the schema says.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError, MemoryError) as error:
        raise InputError(f"{path}: {_why_unreadable(path, error)}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path}: is damaged or no mifuse artifact ({error}). {anew(path)}") from None


def _why_unreadable(path: Path, error: Exception) -> str:
    """What keeps an artifact from being read, and what to do; a sound file is never said to be damaged."""
    number = found_errno(error)
    if number in LOCKED:
        return (
            "is locked by another process, or lies on a network file system that does not lock files. It is not "
            "damaged: run the command again when the other one has ended, or set HDF5_USE_FILE_LOCKING=FALSE if none "
            "is running."
        )
    if number is not None or not path.is_file():
        why = os.strerror(number) if number else "it is no longer there"
        return f"cannot be read now ({why}). Check the disk and its permissions, and run the command again."
    return f"is no readable HDF5 file ({error}); it may be truncated. {anew(path)}"


def journal_of(path: Path) -> Path:
    """Where the answers behind an artifact of query-lalm are kept, if it is one."""
    return path.with_name(path.name + ".journal.sqlite")


def anew(path: Path) -> str:
    """How to make an artifact anew; of answers that were paid for, from the journal."""
    if not (journal := journal_of(path)).exists():
        return "Make it anew."
    return (
        f"Make it anew by the same mifuse query-lalm command with --force: the answers are in {journal.name}, so that "
        "only what is missing there is asked."
    )
