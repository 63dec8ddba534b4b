"""Writing an artifact block by block, in constant memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mifuse_cli.artifacts.schema import (
    Columns,
    DatasetHash,
    Header,
    as_stored,
    check_arrays,
    check_shapes,
    content_hash,
    unsorted,
)
from mifuse_cli.errors import ArtifactError

if TYPE_CHECKING:
    import h5py

CHUNK = 2**18
"""Bytes of a chunk before compression: four fit HDF5's cache, so one that spans two blocks is compressed once."""
_ROWS = 2**15
"""Rows at a time, where a block has more."""


class Output(io.FileIO):
    """File object for HDF5 that hides write errors from it, since HDF5 crashes at exit after a full disk;
    `check` raises them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first write error, if any; data written after it is lost."""
        if self._error:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self._error = self._error or error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off at ``size`` bytes, or make it that long."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self.tell() if size is None else size


class Writer:
    """An artifact under way in an open file; `mifuse_cli.artifacts.writing` makes one.

    Attributes:
        finished: whether the content hash has been written.
    """

    def __init__(
        self,
        file: h5py.File,
        output: Output,
        kind: str,
        columns: Columns,
        classes: tuple[str, ...],
        where: str,
    ) -> None:
        self._file = file
        self._output = output
        self._kind = kind
        self._columns = columns
        self._classes = classes
        self._where = where
        self._last_id: str | None = None
        self._hashes: dict[str, DatasetHash] = {}
        self._first: dict[str, np.ndarray] = {}
        self.finished = False

    def append(self, **block: np.ndarray) -> None:
        """Add one block to the datasets that are named, each along its first axis.

        Offsets into a dataset, such as ``raw_end``, have to continue from block to block; that is up to the
        caller. The first block of a dataset is written with the second, or in the end: a chunk takes its whole size on
        disk, so that those of a dataset of one block are no longer than it.

        Args:
            block: arrays by dataset; lengths along the same axis have to agree within the block. They are not to be
                changed afterwards.

        Raises:
            ArtifactError: shapes, distributions or the order of ids break the schema, in this block or with
                those before.
            OSError: it cannot be written.
        """
        if self.finished:
            raise RuntimeError(f"{self._where}: is finished")
        if unknown := block.keys() - self._columns.keys():
            raise TypeError(f"{self._kind} has no datasets {', '.join(sorted(unknown))}")
        arrays = {name: np.asarray(values) for name, values in block.items()}
        check_arrays(self._columns, arrays, self._classes, self._where, self._last_id)
        for name, array in arrays.items():
            if name not in self._first and name not in self._file:
                self._first[name] = array
                continue
            if name in self._first:
                self._add(name, self._first.pop(name))
            self._add(name, array)
        self._output.check()
        if len(arrays.get("utt_id", ())):
            self._last_id = str(arrays["utt_id"][-1])

    def finish(self, header: Header) -> str:
        """Write the root attributes and the content hash, which is returned.

        Raises:
            ArtifactError: no clips, a dataset that is missing, or datasets of other lengths.
            ValueError: the header is about other classes.
            OSError: it cannot be written.
        """
        if header.classes != self._classes:
            raise ValueError(f"{self._where}: was begun with the classes {self._classes}")
        for name, array in self._first.items():
            self._add(name, array, most=len(array))
        self._first.clear()
        self._output.check()
        for name, spec in self._columns.items():
            if spec["required"] and name not in self._file:
                raise ArtifactError(f"{self._where}: has no dataset {name!r}. Make it anew.")
        shapes = {name: dataset.shape for name, dataset in self._file.items()}
        check_shapes(self._columns, shapes, self._classes, self._where)
        if self._last_id is None:
            raise unsorted(self._where)
        hashes = {name: total.hexdigest() for name, total in self._hashes.items()}
        for name, sha256 in hashes.items():
            self._file[name].attrs["sha256"] = sha256
        digest = content_hash(self._kind, header, shapes, hashes)
        self._file.attrs.update(kind=self._kind, **header.attributes(), sha256=digest)
        self.finished = True
        return digest

    def _add(self, name: str, array: np.ndarray, most: int | None = None) -> None:
        """Write a block of a dataset, of no more than ``most`` rows in the end, if that is known."""
        dataset = self._file.get(name)
        if dataset is None:
            dataset = self._create(name, array.shape[1:], most)
        elif dataset.shape[1:] != array.shape[1:]:
            raise ArtifactError(
                f"{self._where}: {name} has rows of shape {array.shape[1:]}, earlier blocks {dataset.shape[1:]}."
            )
        begin = len(dataset)
        dataset.resize(begin + len(array), axis=0)
        for start in range(0, len(array), _ROWS):
            rows = as_stored(array[start : start + _ROWS], self._columns[name]["dtype"])
            self._hashes[name].update(rows)
            place = slice(begin + start, begin + start + len(rows))
            dataset[place] = rows

    def _create(self, name: str, row: tuple[int, ...], most: int | None) -> h5py.Dataset:
        import h5py

        spec = self._columns[name]
        dtype: Any = h5py.string_dtype() if spec["dtype"] == "str" else np.dtype(spec["dtype"])
        rows = CHUNK // max(1, dtype.itemsize * int(np.prod(row)))
        if most is not None:
            rows = min(rows, most)
        dataset = self._file.create_dataset(
            name,
            shape=(0, *row),
            maxshape=(None, *row),
            dtype=dtype,
            chunks=(max(1, rows), *row),
            # Others become little smaller, and would take twenty times as long to read and write.
            compression="gzip" if dtype.kind in "iu" else None,
        )
        self._hashes[name] = DatasetHash()
        dataset.attrs.update(axes=" ".join(spec["axes"]), holds=spec["holds"])
        return dataset
