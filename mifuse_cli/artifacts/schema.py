"""What all artifacts have in common: root attributes, checks of their datasets, and the content hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import provenance
from mifuse_cli.artifacts.parameters import FORMS, OPTIONS, recorded
from mifuse_cli.errors import ArtifactError

SCHEMA_VERSION = 2
"""Since 2, every dataset has a hash of its own, of which that of the artifact is made."""

Columns = Mapping[str, Mapping[str, Any]]
"""Axes, type and meaning of every dataset of a kind by name, as `Artifact.columns` gives them."""


@dataclass(frozen=True)
class Parent:
    """An input of an artifact: its role, where it was (relative to the artifact), and its content hash."""

    role: str
    path: str
    sha256: str

    def checked(self) -> Parent:
        """This parent, as read from a file.

        Raises:
            TypeError, ValueError: one of its fields is no text, or none that could be a path.
        """
        for text in (self.role, self.path, self.sha256):
            if not isinstance(text, str) or "\0" in text:
                raise TypeError(f"{text!r} is no text")
            text.encode()
        return self


@dataclass(frozen=True)
class Header:
    """Root attributes of every artifact; ``schema_version`` is that of the file it was read from."""

    classes: tuple[str, ...]
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    versions: dict[str, str] = field(default_factory=provenance.versions)
    command: str = field(default_factory=provenance.command_line)
    created: str = field(default_factory=provenance.now)
    schema_version: int = SCHEMA_VERSION

    def parent(self, role: str) -> Parent | None:
        """The parent with this role, if there is one."""
        return next((parent for parent in self.parents if parent.role == role), None)

    @property
    def shards(self) -> list[str]:
        """The parts I/N of a list of clips that it holds, made with ``--shard`` or merged; "1/1" is all."""
        return self.config.get("shards") or [self.config.get("shard") or "1/1"]

    def attributes(self) -> dict[str, Any]:
        """This header as HDF5 attributes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "classes": list(self.classes),
            "seed": self.seed,
            "config": json.dumps(self.config),
            "parameters": json.dumps(self.parameters),
            "parents": json.dumps([dataclasses.asdict(parent) for parent in self.parents]),
            "versions": json.dumps(self.versions),
            "command": self.command,
            "created": self.created,
        }

    @classmethod
    def of(cls, attributes: Mapping[str, Any], path: Path) -> Header:
        """The header from the root attributes of the file at ``path``.

        Raises:
            ArtifactError: one is missing or malformed.
        """
        try:
            classes = attributes["classes"]
            if (
                not isinstance(classes, np.ndarray)
                or classes.ndim != 1
                or not len(set(classes)) == len(classes) > 0
            ):
                raise ValueError(f"classes {classes!r}")
            for text in (*classes, attributes["command"], attributes["created"]):
                if not isinstance(text, str):
                    raise TypeError(f"{text!r} is no text")
                text.encode()
            if not isinstance(attributes["seed"], int | np.integer):
                raise TypeError(f"seed {attributes['seed']!r}")
            where, parents = str(path), json.loads(attributes["parents"])
            return cls(
                classes=tuple(map(str, classes)),
                seed=int(attributes["seed"]),
                config=recorded(attributes["config"], where, OPTIONS),
                parameters=recorded(attributes["parameters"], where, FORMS),
                parents=tuple(Parent(**parent).checked() for parent in parents),
                versions=recorded(
                    attributes["versions"], where, {name: str for name in provenance.versions()}
                ),
                command=attributes["command"],
                created=attributes["created"],
                schema_version=int(attributes["schema_version"]),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path}: root attributes are damaged ({error!r}). Make it anew.") from None


def column(
    axes: str,
    dtype: str,
    holds: str,
    *,
    distribution: bool = False,
    finite: bool = False,
    optional: bool = False,
) -> Any:
    """Array field of an artifact.

    Args:
        axes: axis letters, as "U N K"; axes with the same letter must have the same length.
        dtype: numpy type, or "str".
        holds: one phrase for the schema table.
        distribution: rows along the last axis are probabilities that sum to 1, or all NaN for "missing".
        finite: no number is NaN or infinite.
        optional: may be absent (None).
    """
    metadata = {
        "axes": axes.split(),
        "dtype": dtype,
        "holds": holds,
        "distribution": distribution,
        "finite": finite,
    }
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def as_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the type that the schema says, strings as UTF-8 in an array of objects."""
    if dtype != "str":
        return array.astype(dtype, copy=False)
    stored = np.empty(array.shape, object)
    stored[:] = [str(text).encode() for text in array.tolist()]
    return stored


class DatasetHash:
    """SHA-256 of the content of one dataset, which comes in blocks along its first axis."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._strings = 0

    def update(self, block: np.ndarray) -> None:
        """Add a block, of the type that the schema says; strings as UTF-8, in an array of objects."""
        if block.dtype.kind != "O":
            self._total.update(np.ascontiguousarray(block).data)
        elif len(block):
            self._total.update((b"\0" if self._strings else b"") + b"\0".join(block.tolist()))
            self._strings += len(block)

    def hexdigest(self) -> str:
        """Hex SHA-256 of what was added."""
        return self._total.hexdigest()


def content_hash(
    kind: str, header: Header, shapes: Mapping[str, tuple[int, ...]], hashes: Mapping[str, str]
) -> str:
    """Hex SHA-256 over kind, classes, parameters and datasets; not over time, versions or paths.

    It is made of the hashes of the datasets, so that it is known, and one dataset can be checked, without reading the
    others.

    Args:
        kind: kind of the artifact.
        header: its header.
        shapes: shape of every dataset by name.
        hashes: of every dataset by name, `DatasetHash.hexdigest`.
    """
    parts = [[name, list(shapes[name]), hashes[name]] for name in sorted(shapes)]
    text = json.dumps([kind, header.classes, header.parameters, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash_of_schema_1(
    kind: str, header: Header, datasets: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]
) -> str:
    """Hex SHA-256 as recorded in artifacts of schema 1, for which all datasets have to be read.

    Args:
        kind: kind of the artifact.
        header: its header.
        datasets: name, shape and content of each by name in order; the content in blocks along the first axis.
    """
    total = hashlib.sha256(json.dumps([kind, header.classes, header.parameters], sort_keys=True).encode())
    for name, shape, blocks in datasets:
        total.update(f"{name}{shape}".encode())
        between = b""
        for block in blocks:
            if block.dtype.kind == "O":
                total.update(between + b"\0".join(block.tolist()))
                between = b"\0"
            else:
                total.update(np.ascontiguousarray(block).data)
    return total.hexdigest()


def check_shapes(
    columns: Columns, shapes: Mapping[str, tuple[int, ...]], classes: tuple[str, ...], where: str
) -> None:
    """Refuse datasets with too many or too few axes, or with other lengths along the same axis.

    Raises:
        ArtifactError: ``where`` names the file.
    """
    sizes = {"K": len(classes)}
    for name, shape in shapes.items():
        axes = columns[name]["axes"]
        if len(shape) != len(axes):
            raise ArtifactError(f"{where}: {name} has {len(shape)} axes, expected {' x '.join(axes)}.")
        for axis, length in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise ArtifactError(
                    f"{where}: {name} has {length} along {axis}, other datasets {sizes[axis]}. Make it anew."
                )


def check_arrays(
    columns: Columns,
    arrays: Mapping[str, np.ndarray],
    classes: tuple[str, ...],
    where: str,
    last_id: str | bytes | None = None,
) -> None:
    """Refuse arrays that violate the schema: shapes, distributions, numbers that are not finite, sorted and unique ids.

    Args:
        columns: the schema.
        arrays: some or all datasets, or a block of each.
        classes: class names.
        where: the file, for the error message.
        last_id: last utterance id of the block before this one.

    Raises:
        ArtifactError: naming the dataset.
    """
    check_shapes(columns, {name: array.shape for name, array in arrays.items()}, classes, where)
    for name, array in arrays.items():
        if columns[name]["distribution"]:
            _check_distributions(array, f"{where}: {name}")
        if columns[name]["finite"] and not np.isfinite(array).all():
            raise ArtifactError(f"{where}: {name} holds NaN or infinity. Make it anew.")
    ids = arrays.get("utt_id", np.zeros(0, str))
    if (ids[:-1] >= ids[1:]).any() or (last_id is not None and len(ids) and last_id >= ids[0]):
        raise unsorted(where)


def unsorted(where: str) -> ArtifactError:
    """The error for ids that are unsorted, repeated or missing."""
    return ArtifactError(f"{where}: utterance ids are not sorted and unique. Make it anew.")


def _check_distributions(array: np.ndarray, where: str) -> None:
    rows = array.reshape(-1, array.shape[-1])
    # As a product with ones, since sums over a last axis of a few classes are slow.
    broken = rows[~(np.abs(rows @ np.ones(rows.shape[1], rows.dtype) - 1) <= 1e-3)]
    broken = broken[~np.isnan(broken).all(axis=-1)]
    if not np.isfinite(broken).all():
        raise ArtifactError(f"{where}: probabilities hold NaN or infinity in part of a row. Make it anew.")
    if len(broken) or (rows < 0).any():
        raise ArtifactError(f"{where}: probabilities are negative or do not sum to 1. Make it anew.")
