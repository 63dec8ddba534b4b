"""Every HDF5 artifact: its schema, how it is checked, saved and loaded.

A kind of artifact is a frozen dataclass whose array fields are made with `column`: the axes (U clips,
N or M samples, T teachers, K classes, E epochs), the type, and what it holds. Root attributes are those of
`Header`. Saving writes under a temporary name and renames, so a file under its final name is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from mifuse_cli import provenance
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import atomic_file

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Parent:
    """An input of an artifact: its role, where it was (relative to the artifact), and its content hash."""

    role: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Header:
    """Root attributes of every artifact."""

    classes: tuple[str, ...]
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    versions: dict[str, str] = field(default_factory=provenance.versions)
    command: str = field(default_factory=provenance.command_line)
    created: str = field(default_factory=provenance.now)

    def parent(self, role: str) -> Parent | None:
        """The parent with this role, if there is one."""
        return next((parent for parent in self.parents if parent.role == role), None)


def column(axes: str, dtype: str, holds: str, *, distribution: bool = False, optional: bool = False) -> Any:
    """Array field of an artifact.

    Args:
        axes: axis letters, as "U N K"; axes with the same letter must have the same length.
        dtype: numpy type, or "str".
        holds: one phrase for the schema table.
        distribution: rows along the last axis are probabilities that sum to 1, or all NaN for "missing".
        optional: may be absent (None).
    """
    metadata = {"axes": axes.split(), "dtype": dtype, "holds": holds, "distribution": distribution}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


@dataclass(frozen=True, eq=False)
class Artifact:
    """What all kinds share: a header, utterance ids, and saving, loading, checking and hashing."""

    kind: ClassVar[str]
    header: Header
    utt_id: np.ndarray = column("U", "str", "utterance ids, sorted")

    @classmethod
    def columns(cls) -> dict[str, dict[str, Any]]:
        """Axes, type and meaning of every dataset by name."""
        return {
            f.name: dict(f.metadata, required=f.default is not None)
            for f in dataclasses.fields(cls)
            if f.metadata
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The datasets that are present, by name."""
        values = {name: getattr(self, name) for name in self.columns()}
        return {name: value for name, value in values.items() if value is not None}

    def sizes(self) -> dict[str, int]:
        """Length of every axis letter, K among them."""
        sizes = {"K": len(self.header.classes)}
        for name, array in self.arrays().items():
            for axis, length in zip(self.columns()[name]["axes"], array.shape, strict=True):
                sizes.setdefault(axis, length)
        return sizes

    def digest(self) -> str:
        """Hex SHA-256 over kind, classes, parameters and datasets; not over time, versions or paths."""
        total = hashlib.sha256(
            json.dumps([self.kind, self.header.classes, self.header.parameters], sort_keys=True).encode()
        )
        for name, array in sorted(self.arrays().items()):
            total.update(f"{name}{array.shape}".encode())
            dtype = self.columns()[name]["dtype"]
            total.update(
                "\0".join(array).encode() if dtype == "str" else np.ascontiguousarray(array, dtype).tobytes()
            )
        return total.hexdigest()

    def check(self, where: str) -> Self:
        """This artifact, if its arrays keep to the schema.

        Raises:
            ArtifactError: a shape, an order or a probability that breaks it; ``where`` names the file.
        """
        sizes = {"K": len(self.header.classes)}
        for name, array in self.arrays().items():
            spec = self.columns()[name]
            if array.ndim != len(spec["axes"]):
                raise ArtifactError(
                    f"{where}: {name} has {array.ndim} axes, expected {' x '.join(spec['axes'])}."
                )
            for axis, length in zip(spec["axes"], array.shape, strict=True):
                if sizes.setdefault(axis, length) != length:
                    raise ArtifactError(
                        f"{where}: {name} has {length} along {axis}, other datasets {sizes[axis]}. Make it anew."
                    )
            if spec["distribution"]:
                _check_distributions(array, f"{where}: {name}")
        if len(self.utt_id) == 0 or any(
            a >= b for a, b in zip(self.utt_id[:-1], self.utt_id[1:], strict=True)
        ):
            raise ArtifactError(f"{where}: utterance ids are not sorted and unique. Make it anew.")
        return self

    def save(self, path: Path) -> str:
        """Check, then write to ``path`` atomically; returns the content hash.

        Raises:
            ArtifactError: the arrays break the schema (nothing is written).
        """
        import h5py

        self.check(str(path))
        digest = self.digest()
        with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update(
                kind=self.kind,
                schema_version=SCHEMA_VERSION,
                classes=list(self.header.classes),
                seed=self.header.seed,
                config=json.dumps(self.header.config),
                parameters=json.dumps(self.header.parameters),
                parents=json.dumps([dataclasses.asdict(parent) for parent in self.header.parents]),
                versions=json.dumps(self.header.versions),
                command=self.header.command,
                created=self.header.created,
                sha256=digest,
            )
            for name, array in self.arrays().items():
                spec = self.columns()[name]
                text = spec["dtype"] == "str"
                data = file.create_dataset(
                    name,
                    data=array.astype(object) if text else array,
                    dtype=h5py.string_dtype() if text else spec["dtype"],
                    compression="gzip" if array.size > 1024 else None,
                )
                data.attrs["axes"] = " ".join(spec["axes"])
                data.attrs["holds"] = spec["holds"]
        return digest

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check an artifact of this kind.

        Raises:
            InputError: no such file, or not a readable HDF5 file.
            ArtifactError: another kind, a newer schema, a missing dataset, broken content.
        """
        found = read(path)
        if not isinstance(found, cls):
            raise ArtifactError(
                f"{path}: is of kind {found.kind!r}, expected {cls.kind!r}. Check the options."
            )
        return found


@dataclass(frozen=True, eq=False)
class Lalm(Artifact):
    """N stochastic answers of an audio-language model about every clip (``query-lalm``)."""

    kind = "lalm"
    audio_sha256: np.ndarray = column("U", "str", "SHA-256 of the audio as sent")
    probs: np.ndarray = column(
        "U N K", "float32", "answered distributions, NaN where missing", distribution=True
    )
    status: np.ndarray = column("U N", "uint8", "outcome of every answer, codes in the parameters")
    order: np.ndarray = column("U N K", "uint8", "class indices in the order the prompt listed them")
    usage: np.ndarray = column(
        "U N V", "int32", "tokens: prompt, completion, total, audio, cached; -1 unknown"
    )
    raw: np.ndarray = column("B", "uint8", "raw answers as UTF-8, one after another")
    raw_end: np.ndarray = column("U N", "int64", "end of every answer in raw; it starts where the last ended")

    def raw_answer(self, utterance: int, sample: int) -> str:
        """Text of one raw answer, empty where there is none."""
        ends = self.raw_end.ravel()
        position = utterance * self.raw_end.shape[1] + sample
        start = int(ends[position - 1]) if position else 0
        return bytes(self.raw[start : int(ends[position])]).decode("utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class Source(Artifact):
    """M MC-dropout predictions of the source classifier for every clip (``sample-source``)."""

    kind = "source"
    probs: np.ndarray = column("U M K", "float32", "one distribution a dropout pass", distribution=True)
    point: np.ndarray = column("U K", "float32", "prediction without dropout", distribution=True)


@dataclass(frozen=True, eq=False)
class Fused(Artifact):
    """Fused labels with every teacher's share (``fuse``)."""

    kind = "fused"
    probs: np.ndarray = column("U K", "float32", "fused labels", distribution=True)
    weights: np.ndarray = column(
        "U T", "float32", "weight of every teacher, rows sum to 1", distribution=True
    )
    mean: np.ndarray = column(
        "U T K", "float32", "mean distribution a teacher, NaN if silent", distribution=True
    )
    mi: np.ndarray = column("U T", "float32", "mutual information in nats, NaN if the teacher is silent")


@dataclass(frozen=True, eq=False)
class Predictions(Artifact):
    """One distribution a clip, as ``train`` leaves beside the student."""

    kind = "predictions"
    probs: np.ndarray = column("U K", "float32", "predicted distributions", distribution=True)


@dataclass(frozen=True, eq=False)
class Evaluation(Artifact):
    """Predictions with true labels and the score (``evaluate``); metrics are in the parameters."""

    kind = "evaluation"
    probs: np.ndarray = column(
        "U K", "float32", "scored distributions, NaN: no prediction", distribution=True
    )
    truth: np.ndarray = column("U", "uint8", "true class index")
    confusion: np.ndarray = column("K P", "int64", "clips by true and predicted class, last column: none")


@dataclass(frozen=True, eq=False)
class Training(Artifact):
    """What happened in training, ``train.h5`` in a checkpoint; its utterances are those trained on."""

    kind = "training"
    columns_of_history: np.ndarray = column("C", "str", "names of the history's columns")
    history: np.ndarray = column("E C", "float64", "one row an epoch; NaN where not measured")


KINDS: dict[str, type[Artifact]] = {
    c.kind: c for c in (Lalm, Source, Fused, Predictions, Evaluation, Training)
}


def read(path: Path) -> Artifact:
    """Read and check an artifact of any kind.

    Raises:
        InputError: no such file, or not a readable HDF5 file.
        ArtifactError: unknown kind, newer schema, missing dataset, or content that breaks the schema.
    """
    import h5py

    if not path.is_file():
        raise InputError(f"{path}: no such file. Make it first or check the path.")
    try:
        with h5py.File(path, "r") as file:
            attrs: dict[str, Any] = dict(file.attrs)
            kind = attrs.get("kind")
            if kind not in KINDS or "schema_version" not in attrs:
                raise ArtifactError(f"{path}: is HDF5 but no mifuse artifact (kind {kind!r}).")
            if attrs["schema_version"] > SCHEMA_VERSION:
                raise ArtifactError(
                    f"{path}: has schema {attrs['schema_version']}, this mifuse reads up to {SCHEMA_VERSION}. "
                    "Upgrade mifuse."
                )
            arrays = {}
            for name, spec in KINDS[kind].columns().items():
                if name in file:
                    text = spec["dtype"] == "str"
                    values = file[name].asstr() if text else file[name]
                    arrays[name] = values[:].astype(spec["dtype"])
                elif spec["required"]:
                    raise ArtifactError(f"{path}: has no dataset {name!r}. Make it anew.")
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path}: is no readable HDF5 file ({error}); it may be truncated. Make it anew."
        ) from None
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: is damaged or no mifuse artifact ({error}). Make it anew.") from None
    try:
        header = Header(
            classes=tuple(map(str, attrs["classes"])),
            seed=int(attrs["seed"]),
            config=json.loads(attrs["config"]),
            parameters=json.loads(attrs["parameters"]),
            parents=tuple(Parent(**parent) for parent in json.loads(attrs["parents"])),
            versions=json.loads(attrs["versions"]),
            command=attrs["command"],
            created=attrs["created"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: root attributes are damaged ({error!r}). Make it anew.") from None
    artifact = KINDS[kind](header=header, **arrays).check(str(path))
    if artifact.digest() != attrs.get("sha256"):
        raise ArtifactError(f"{path}: content does not match its recorded hash; it was edited. Make it anew.")
    return artifact


def check_same_clips(first: Artifact, first_name: str, second: Artifact, second_name: str) -> None:
    """Refuse to join two artifacts over other classes, another class order or another set of clips.

    Raises:
        ArtifactError: naming what differs.
    """
    if first.header.classes != second.header.classes:
        raise ArtifactError(
            f"{first_name}: classes are {', '.join(first.header.classes)} but {second_name} has "
            f"{', '.join(second.header.classes)}. Make one of them anew with the other's --classes."
        )
    check_same_utterances(first.utt_id, first_name, second.utt_id, second_name)


def check_same_utterances(first: np.ndarray, first_name: str, second: np.ndarray, second_name: str) -> None:
    """Refuse two different sets of utterance ids.

    Raises:
        ArtifactError: with how many clips stand on one side only, and the first of them.
    """
    for a, a_name, b, b_name in (
        (first, first_name, second, second_name),
        (second, second_name, first, first_name),
    ):
        only = sorted(set(a.tolist()) - set(b.tolist()))
        if only:
            raise ArtifactError(
                f"{a_name} has {len(only)} clips that {b_name} has not, first {only[0]!r}. "
                "Make both from the same manifest."
            )


def _check_distributions(array: np.ndarray, where: str) -> None:
    missing = np.isnan(array).all(axis=-1)
    rows = array[~missing]
    if np.isnan(rows).any() or not np.isfinite(rows).all():
        raise ArtifactError(f"{where}: probabilities hold NaN or infinity in part of a row. Make it anew.")
    if (rows < 0).any() or (np.abs(rows.sum(axis=-1) - 1) > 1e-3).any():
        raise ArtifactError(f"{where}: probabilities are negative or do not sum to 1. Make it anew.")
