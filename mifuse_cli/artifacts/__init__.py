"""Every HDF5 artifact: its schema, and how it is checked, saved and loaded.

A kind of artifact is a frozen dataclass whose array fields are made with `column`: the axes (U clips,
N or M samples, T teachers, K classes, E epochs), the type, and what it holds. Root attributes are those of
`Header`. Writing, at once or in blocks (`writing`), uses a temporary name and renames, so a file under its
final name is complete. Reading is of the whole, or of what is asked for (`reading`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from mifuse_cli.artifacts.examination import examine, trust
from mifuse_cli.artifacts.reader import Column, Reader, anew, damage_named
from mifuse_cli.artifacts.recognition import (
    CHECKPOINT,
    check_artifact,
    how_to_make,
    is_checkpoint,
    is_export,
    made_by,
    what,
)
from mifuse_cli.artifacts.schema import (
    SCHEMA_VERSION,
    DatasetHash,
    Header,
    Parent,
    as_stored,
    check_arrays,
    column,
    content_hash,
    unsorted,
)
from mifuse_cli.artifacts.writer import Output, Writer
from mifuse_cli.errors import ArtifactError, some
from mifuse_cli.files import atomic_file

if TYPE_CHECKING:
    import h5py

__all__ = [
    "CHECKPOINT",
    "KINDS",
    "SCHEMA_VERSION",
    "Artifact",
    "Column",
    "Compared",
    "Evaluation",
    "Fused",
    "Header",
    "Lalm",
    "Parent",
    "Predictions",
    "Reader",
    "Source",
    "Target",
    "Training",
    "Writer",
    "check_same_clips",
    "check_same_utterances",
    "column",
    "is_checkpoint",
    "is_export",
    "made_by",
    "positions",
    "read",
    "read_header",
    "reading",
    "to_merge",
    "united",
    "what",
    "writing",
]


_GOLD = "ids of clips whose true class was given; left out of scores (absent if there are none)"


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
        shapes, hashes = {}, {}
        for name, values in self.arrays().items():
            array, total = as_stored(np.asarray(values), self.columns()[name]["dtype"]), DatasetHash()
            total.update(array)
            shapes[name], hashes[name] = array.shape, total.hexdigest()
        return content_hash(self.kind, self.header, shapes, hashes)

    def check(self, where: str) -> Self:
        """This artifact, if its arrays conform to the schema.

        Raises:
            ArtifactError: a shape, an order or a probability that violates it; ``where`` names the file.
        """
        check_arrays(self.columns(), self.arrays(), self.header.classes, where)
        if len(self.utt_id) == 0:
            raise unsorted(where)
        return self

    def save(self, path: Path, *, replace: bool = True) -> str:
        """Check, then write to ``path`` atomically; returns the content hash.

        Raises:
            ArtifactError: the arrays violate the schema (nothing is written).
            InputError: it cannot be written; or there is something by then, unless it is to ``replace`` it.
        """
        with writing(path, type(self), self.header.classes, replace=replace) as writer:
            writer.append(**self.arrays())
            return writer.finish(self.header)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check an artifact of this kind.

        Raises:
            InputError: no such file, or not a readable HDF5 file.
            ArtifactError: another kind, a newer schema, a missing dataset, broken content.
        """
        with reading(path, cls) as found:
            return cls(header=found.header, **{name: found.read(name) for name in found.names})


@dataclass(frozen=True, eq=False)
class Lalm(Artifact):
    """N stochastic answers of an audio-language model about every clip (``query-lalm``)."""

    kind = "lalm"
    audio_sha256: np.ndarray = column("U", "str", "SHA-256 of the audio as 16-bit WAV")
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
    probs: np.ndarray = column(
        "U M K", "float32", "one distribution for every dropout pass", distribution=True, finite=True
    )
    point: np.ndarray = column("U K", "float32", "prediction without dropout", distribution=True, finite=True)
    hidden: np.ndarray | None = column(
        "U L D",
        "float32",
        "hidden states of the encoder, from the first to the highest in use",
        finite=True,
        optional=True,
    )
    speaker: np.ndarray | None = column("U", "str", "speaker, empty where unknown", optional=True)
    voice: np.ndarray | None = column(
        "U X",
        "float32",
        "vector of length 1 of a speaker encoder, alike for clips of one voice",
        finite=True,
        optional=True,
    )
    audio_sha256: np.ndarray | None = column(
        "U",
        "str",
        "SHA-256 of the audio file, or of that and the bounds of the clip; in a part of the clips alone (--shard)",
        optional=True,
    )
    gold: np.ndarray | None = column("G", "str", _GOLD, optional=True)


@dataclass(frozen=True, eq=False)
class Fused(Artifact):
    """Fused labels, and what every teacher contributed (``fuse``)."""

    kind = "fused"
    probs: np.ndarray = column("U K", "float32", "fused labels", distribution=True)
    weights: np.ndarray = column(
        "U T", "float32", "weight of every teacher, rows sum to 1; NaN without any", distribution=True
    )
    mean: np.ndarray = column(
        "U T K", "float32", "mean distribution of every teacher, NaN without an answer", distribution=True
    )
    mi: np.ndarray = column("U T", "float32", "mutual information in nats, NaN without an answer")
    top_counts: np.ndarray | None = column(
        "U T K",
        "float32",
        "number of every teacher's samples by most probable class; equal classes share a sample",
        optional=True,
    )
    views: np.ndarray | None = column(
        "U W K",
        "float32",
        "cross-fit: likelihood of every class by the LALMs' answers, and by source classifier and hidden states",
        distribution=True,
        optional=True,
    )
    exponents: np.ndarray | None = column(
        "U W",
        "float32",
        "cross-fit before version 2: exponent of every view in the fused label; it had three",
        optional=True,
    )
    recall: np.ndarray | None = column(
        "T K",
        "float32",
        "cross-fit: estimated recall of every class of every teacher; NaN if left out",
        optional=True,
    )
    prior: np.ndarray | None = column("K", "float32", "cross-fit: estimated class prior", optional=True)
    gold: np.ndarray | None = column("G", "str", _GOLD, optional=True)


@dataclass(frozen=True, eq=False)
class Predictions(Artifact):
    """One distribution a clip, as ``train`` leaves beside the student and ``predict`` makes."""

    kind = "predictions"
    probs: np.ndarray = column(
        "U K", "float32", "predicted distributions, NaN: the clip was skipped", distribution=True
    )
    file: np.ndarray | None = column("U", "str", "recording that the clip is of", optional=True)
    start: np.ndarray | None = column("U", "float64", "start of a window in seconds", optional=True)
    end: np.ndarray | None = column("U", "float64", "end of a window in seconds", optional=True)
    mi: np.ndarray | None = column(
        "U",
        "float32",
        "mutual information of dropout passes in nats, NaN: the clip was skipped",
        optional=True,
    )
    gold: np.ndarray | None = column("G", "str", _GOLD, optional=True)


@dataclass(frozen=True, eq=False)
class Evaluation(Artifact):
    """Predictions with true labels and the score (``evaluate``); metrics are in the parameters.

    ``ua`` is the unweighted accuracy of argmax p, ``ua_prior_corrected`` that of argmax p/prior, where the prior is the
    mean of ``probs``.
    """

    kind = "evaluation"
    probs: np.ndarray = column(
        "U K", "float32", "scored distributions, NaN: no prediction", distribution=True
    )
    truth: np.ndarray = column("U", "uint8", "true class index")
    confusion: np.ndarray = column("K P", "int64", "clips by true and predicted class, last column: none")
    reliability_clips: np.ndarray | None = column(
        "I", "int64", "number of clips in every bin of confidence, equal bins of [0, 1]", optional=True
    )
    reliability_confidence: np.ndarray | None = column(
        "I", "float64", "mean confidence in every bin, NaN if empty", optional=True
    )
    reliability_accuracy: np.ndarray | None = column(
        "I", "float64", "share of correct predictions in every bin, NaN if empty", optional=True
    )


@dataclass(frozen=True, eq=False)
class Compared(Artifact):
    """What R systems predict in one transfer with one seed (``compare``)."""

    kind = "compared"
    systems: np.ndarray = column("R", "str", "names of the systems")
    probs: np.ndarray = column(
        "R U K", "float32", "predicted distributions, NaN: no prediction", distribution=True
    )


@dataclass(frozen=True, eq=False)
class Target(Artifact):
    """True classes and speakers of a target, by which ``compare`` scored; ``compare-worlds`` reads them."""

    kind = "target"
    truth: np.ndarray = column("U", "uint8", "true class index")
    speaker: np.ndarray | None = column("U", "str", "speaker; absent where not all are known", optional=True)


@dataclass(frozen=True, eq=False)
class Training(Artifact):
    """History of a training, ``train.h5`` in a checkpoint; its utterances are those trained on."""

    kind = "training"
    columns_of_history: np.ndarray = column("C", "str", "names of the history's columns")
    history: np.ndarray = column("E C", "float64", "one row for every epoch; NaN where not measured")
    audio_sha256: np.ndarray | None = column(
        "U",
        "str",
        "SHA-256 of the audio file, or of that and the bounds of the clip; tells what was heard in training",
        optional=True,
    )
    gold: np.ndarray | None = column("G", "str", _GOLD, optional=True)


KINDS: dict[str, type[Artifact]] = {
    c.kind: c for c in (Lalm, Source, Fused, Predictions, Evaluation, Compared, Target, Training)
}


@contextmanager
def writing(
    path: Path, kind: type[Artifact], classes: tuple[str, ...], *, replace: bool = True
) -> Iterator[Writer]:
    """Write an artifact block by block; it is moved to ``path`` when the with-block succeeds.

    `Writer.finish` has to be called before that. Otherwise, as after an exception, ``path`` is
    left as it was.

    Args:
        path: the artifact to write.
        kind: one of `KINDS`.
        classes: class names; the header has to have the same.
        replace: whether a file that is there by then may be replaced.

    Raises:
        InputError: it cannot be written: the directory is read-only, the disk is full, ...
        RuntimeError: the block ended without `Writer.finish`.
    """
    import h5py

    with atomic_file(path, replace=replace) as temporary, Output(temporary) as output:
        with h5py.File(output, "w") as file:
            writer = Writer(file, output, kind.kind, kind.columns(), classes, str(path))
            yield writer
        output.check()
        if not writer.finished:
            raise RuntimeError(f"{path}: the writer was left without finish()")
    trust(path)


@contextmanager
def reading(path: Path, kind: type[Artifact] | None = None) -> Iterator[Reader]:
    """Read an artifact dataset by dataset, or a part of one at a time; the file stays open within the with-block.

    Args:
        path: the artifact.
        kind: that it has to be of, one of `KINDS`; None: any.

    Raises:
        InputError: no such file, or not a readable HDF5 file.
        ArtifactError: another or an unknown kind, a newer schema, or a missing dataset.
    """
    with _opened(path, whole=True, wanted="" if kind is None else kind.kind) as file:
        with damage_named(path):
            name, header = _header(file, path)
            if kind is not None and name != kind.kind:
                raise ArtifactError(
                    f"{path}: is of kind {name!r}, expected {kind.kind!r}: it is {made_by(name)}."
                    f"{how_to_make(kind.kind, path)}"
                )
            columns = KINDS[name].columns()
            for dataset, spec in columns.items():
                if spec["required"] and dataset not in file:
                    raise ArtifactError(f"{path}: has no dataset {dataset!r}. {anew(path)}")
        yield Reader(file, path, name, header, columns)


def read(path: Path) -> Artifact:
    """Read and check an artifact of any kind.

    Raises:
        InputError: no such file, or not a readable HDF5 file.
        ArtifactError: unknown kind, newer schema, missing dataset, or content that violates the schema.
    """
    with reading(path) as found:
        arrays = {name: found.read(name) for name in found.names}
        return KINDS[found.kind](header=found.header, **arrays)


def read_header(path: Path) -> tuple[str, Header]:
    """Kind and header of an artifact; its datasets are neither read nor checked.

    Raises:
        InputError: no such file, or not a readable HDF5 file.
        ArtifactError: unknown kind, newer schema or damaged attributes.
    """
    with _opened(path, whole=False) as file, damage_named(path):
        return _header(file, path)


def _texts(kind: Any) -> dict[str, bool]:
    """Whether every dataset of a kind of artifact holds text; none for what is no kind."""
    columns = KINDS[kind].columns() if isinstance(kind, str) and kind in KINDS else {}
    return {name: spec["dtype"] == "str" for name, spec in columns.items()}


@contextmanager
def _opened(path: Path, *, whole: bool, wanted: str = "") -> Iterator[h5py.File]:
    """An artifact that was found safe to read.

    Args:
        path: the file.
        whole: whether its datasets will be read, or only its attributes.
        wanted: the kind that it has to be of; "": any.
    """
    import h5py

    with damage_named(path):
        check_artifact(path, wanted)
        examine(path, _texts if whole else None)
        # Files get their name when they are complete and are not changed after: to read them takes no lock, which
        # network file systems may not have.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


def _header(file: h5py.File, path: Path) -> tuple[str, Header]:
    attributes: dict[str, Any] = dict(file.attrs)
    kind, version = attributes.get("kind"), attributes.get("schema_version")
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(version, int | np.integer):
        raise ArtifactError(f"{path}: is HDF5 but no mifuse artifact (kind {kind!r}).")
    if attributes["schema_version"] > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: has schema {attributes['schema_version']}, this mifuse reads up to {SCHEMA_VERSION}. "
            "Upgrade mifuse."
        )
    return kind, Header.of(attributes, path)


def check_same_clips(
    first: Artifact | Reader, first_name: str, second: Artifact | Reader, second_name: str
) -> None:
    """Refuse to join two artifacts over other classes, another class order or another set of clips.

    Raises:
        ArtifactError: naming what differs.
    """
    if first.header.classes != second.header.classes:
        raise ArtifactError(
            f"{first_name}: classes are {', '.join(first.header.classes)} but {second_name} has "
            f"{', '.join(second.header.classes)}. Make one of them anew with the other's --classes."
        )
    names = second.utt_id  # Read before its hash is asked for, which would read it once more.
    if (
        isinstance(first, Reader)
        and isinstance(second, Reader)
        and first.content("utt_id") == second.content("utt_id")
    ):
        return
    parts = to_merge((first_name, first.header), (second_name, second.header))
    check_same_utterances(first.utt_id, first_name, names, second_name, parts)


def to_merge(*named: tuple[str, Header]) -> str:
    """A sentence on those of some artifacts, by name and header, that lack other parts of their clips; "" if none."""
    parts = []
    for name, header in named:
        whole = {shard.partition("/")[2] for shard in header.shards}
        if any(of != "1" and len(set(header.shards)) < int(of) for of in whole if of.isdecimal()):
            parts.append(f"{name} holds part {some(header.shards)} of its clips alone")
    return f"{'; '.join(parts)}: join it with the others by mifuse merge." if parts else ""


def united(*gold: np.ndarray | None) -> np.ndarray | None:
    """Ids (G,) of all clips whose true class was given, sorted; None if there are none."""
    known = [ids for ids in gold if ids is not None]
    return np.unique(np.concatenate(known)) if known else None


def positions(
    wanted: np.ndarray, wanted_name: str, utt_id: np.ndarray, name: str, advice: str = ""
) -> np.ndarray:
    """Positions (W,) of wanted utterance ids (W,) among the ids (U,) of an artifact, which are sorted.

    Raises:
        ArtifactError: with the number of ids that are not among them, and the first.
    """
    at = np.minimum(np.searchsorted(utt_id, wanted), max(len(utt_id) - 1, 0))
    absent = wanted[utt_id[at] != wanted] if len(utt_id) else wanted
    if len(absent):
        raise ArtifactError(
            f"{wanted_name} has {len(absent)} clips that {name} has not, first {str(absent[0])!r}. "
            f"{advice or f'Give clips of the {len(utt_id)} that are in it.'}"
        )
    return at


def check_same_utterances(
    first: np.ndarray, first_name: str, second: np.ndarray, second_name: str, advice: str = ""
) -> None:
    """Refuse two different sets of utterance ids.

    Raises:
        ArtifactError: with the number of clips that only one side has, and the first of them.
    """
    if np.array_equal(first, second):
        return
    for a, a_name, b, b_name in (
        (first, first_name, second, second_name),
        (second, second_name, first, first_name),
    ):
        only = sorted(set(a.tolist()) - set(b.tolist()))
        if only:
            raise ArtifactError(
                f"{a_name} has {len(only)} clips that {b_name} has not, first {only[0]!r}. "
                f"{advice or 'Make both from the same manifest.'}"
            )
