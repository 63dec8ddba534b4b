"""``mifuse merge``: one artifact of the parts that ``--shard`` made of it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mifuse_cli import artifacts, lalm, lineage, manifest, provenance
from mifuse_cli.answer_counts import AnswerCounts
from mifuse_cli.artifacts import Artifact, Header, Lalm, Parent, Source, Training
from mifuse_cli.config import Progress, StepConfig, StepResult, option, shard_problems
from mifuse_cli.errors import ArtifactError, InputError, MifuseError, some
from mifuse_cli.files import check_place, remove_leftovers
from mifuse_cli.manifest import Clip

_Kind = TypeVar("_Kind", Lalm, Source)
_NAMED = 10
"""Missing parts that are named."""
_OF_A_PART = ("summary", "complete", "answered_by", "flags", "probe", "seen_in_training")
"""Parameters that tell of the clips of a part, and may differ from part to part."""
_OF_ANSWERS = ("audio_sha256", "probs", "status", "order", "usage")
"""Datasets of answers, but for their texts."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(StepConfig):
    """Join the parts that query-lalm or sample-source made with --shard to what they make without.

    Answers of an audio-language model are joined with their journals: query-lalm with the same options and without
    --shard goes on from there, and asks nothing that was answered in any part.
    """

    parts: tuple[Path, ...] = option(help="Artifacts of all parts.", positional=True)
    out: Path = option(help="Artifact to write.", endings=(".h5", ".hdf5"))
    partial: bool = option(
        False, "Join the parts that are given, though others of the whole are missing.", settles=False
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if not self.parts:
            yield "expected the artifacts of the parts"
        for path in dict.fromkeys(self.parts):
            if self.parts.count(path) > 1:
                yield f"{path}: given {self.parts.count(path)} times, expected once"


@dataclass(frozen=True, kw_only=True)
class MergeResult(StepResult):
    """What was joined.

    Attributes:
        out: the artifact.
        kind: "lalm" or "source".
        parts: their number.
        clips: number of clips in all.
        repeated: how many of them are in several parts.
        summary: counts, tokens and cost of the answers of query-lalm; empty for sample-source.
    """

    kind: str
    parts: int
    clips: int
    repeated: int
    summary: dict[str, Any] = field(default_factory=dict)


def merge(config: MergeConfig, *, progress: Progress | None = None) -> MergeResult:
    """Join artifacts of the same kind and settings, whose clips differ or are the same in all respects.

    The parts stay. Of sample-source, hidden states are joined, and the predictions are drawn anew from them with the
    same seed, since the statistics of the target and the order of the draws are those of all clips.

    Raises:
        InputError: a part that is missing, unless ``partial``; a part, its journal or the source model cannot be
            read; a journal in use; an output that exists.
        ArtifactError: parts of other kinds or settings, or that contradict each other; no such parts; a part that is
            not what its journal holds; a source model that has changed.
    """
    told = [artifacts.read_header(path) for path in config.parts]
    kind = _kind(config.parts, [name for name, _ in told])
    lineage.refuse_overwrite(config, config.out, kind)
    check_place(config.out)
    missing = _missing([header for _, header in told])
    if missing and not config.partial:
        raise InputError(
            f"{_missing_text(missing)}. Pass --partial to join the parts that there are, or make "
            f"{_how_to_make(missing[0], config.parts[0], told[0][1])}"
        )
    made = [artifacts.read(path) for path in config.parts]
    digests = [one.digest() for one in made]
    if config.update and not config.force and (found := _current(config.out, digests)):
        remove_leftovers(config.out)
        lalm.Journal.tidy(lalm.journal_path(config.out))
        return replace(_result(config, found, made), up_to_date=True)
    for path, one in zip(config.parts[1:], made[1:], strict=True):
        _check_same_settings(one, path, made[0], config.parts[0])
    if kind is Lalm:
        whole: Artifact = _merged_answers(config, [one for one in made if isinstance(one, Lalm)], digests)
    else:
        whole = _merged_samples(config, [one for one in made if isinstance(one, Source)], digests)
    whole.save(config.out, replace=config.replaces)
    return _result(config, whole, made)


def _current(out: Path, digests: Sequence[str]) -> Artifact | None:
    """The artifact that is there, if it was made of these parts."""
    try:
        found = artifacts.read(out)
    except MifuseError:
        return None
    return found if found.header.config.get("parts") == list(digests) else None


def _result(config: MergeConfig, whole: Artifact, made: Sequence[Artifact]) -> MergeResult:
    return MergeResult(
        out=config.out,
        kind=whole.kind,
        parts=len(made),
        clips=len(whole.utt_id),
        repeated=sum(
            number > 1 for number in Counter(i for one in made for i in one.utt_id.tolist()).values()
        ),
        summary=whole.header.parameters.get("summary", {}),
        notes=(_missing_text(missing),) if (missing := _missing([one.header for one in made])) else (),
    )


# Which parts there are


def _shards(header: Header) -> list[str]:
    """The parts of the whole that an artifact holds: one, or those that it was merged from.

    Raises:
        ArtifactError: it records what is no part.
    """
    if faults := [fault for shard in header.shards for fault in shard_problems(shard)]:
        raise ArtifactError(f"an artifact was made with {faults[0]}. Make it anew.")
    return header.shards


def _missing(headers: Iterable[Header]) -> list[str]:
    """The first parts, a few more than are named, that artifacts with these headers lack to be whole."""
    shards = {shard for header in headers for shard in _shards(header)}
    wholes = sorted({int(shard.partition("/")[2]) for shard in shards})
    numbered = (f"{number}/{of}" for of in wholes for number in range(1, of + 1))
    return list(islice((one for one in numbered if one not in shards), _NAMED + 1))


def _missing_text(missing: Sequence[str]) -> str:
    """That parts are missing."""
    return f"not among the parts: {', '.join(missing[:_NAMED])}{', ...' if missing[_NAMED:] else ''}"


def _how_to_make(shard: str, path: Path, header: Header) -> str:
    """Which part to make, with its command."""
    try:
        command = shlex.split(header.command)
    except ValueError:  # of an older mifuse, which quoted nothing
        command = []
    command, found = _replaced(command, ("--shard",), shard)
    command, _ = _replaced(command, ("--out", "-o"), "FILE")
    if not found:
        return f"{shard} as {path} was made, with --shard {shard}."
    return f"{shard} first: {shlex.join(command)}"


def _replaced(command: Sequence[str], flags: Sequence[str], value: str) -> tuple[list[str], bool]:
    """The words of a command with another value of an option, and whether it has the option."""
    words, found = list(command), False
    for at, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag not in flags or (not equals and at + 1 == len(words)):
            continue
        found = True
        if equals:
            words[at] = f"{flag}={value}"
        else:
            words[at + 1] = value
    return words, found


# What parts have to have in common


def _kind(paths: Sequence[Path], kinds: Sequence[str]) -> type[Artifact]:
    """The kind of all parts.

    Raises:
        ArtifactError: they are not of one, or of one that has no parts.
    """
    if len(set(kinds)) > 1 or kinds[0] not in (Lalm.kind, Source.kind):
        found = [f"{path} is {artifacts.made_by(kind)}" for path, kind in zip(paths, kinds, strict=True)]
        raise ArtifactError(
            f"expected parts that were all made by query-lalm, or all by sample-source, with --shard; {some(found)}."
        )
    return artifacts.KINDS[kinds[0]]


def _check_same_settings(one: Artifact, path: Path, first: Artifact, first_path: Path) -> None:
    def told(made: Artifact) -> dict[str, Any]:
        header, lengths = made.header, made.sizes()
        return {
            "classes": header.classes,
            "seed": header.seed,
            "datasets": sorted(made.arrays()),
            **{f"length {axis}": lengths[axis] for axis in "NMLDX" if axis in lengths},
            **header.config.get("settings", {}),
            **{name: value for name, value in header.parameters.items() if name not in _OF_A_PART},
            **{p.role: p.sha256 for p in header.parents if p.role not in ("clips", "context", "speakers")},
        }

    here, there = told(one), told(first)
    if differ := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        raise ArtifactError(
            f"{path}: was not made as {first_path} was: {', '.join(differ)} differ. Only parts of one whole can be "
            "merged: make it anew with the same options, all but --shard and --out."
        )


def _joined(paths: Sequence[Path], made: Sequence[Artifact]) -> tuple[np.ndarray, np.ndarray]:
    """Ids (U,) of the clips of all parts, sorted, and positions (U,) of their first rows in the parts laid end to end.

    Raises:
        ArtifactError: a clip is in two parts that do not say the same of it.
    """
    every = np.concatenate([one.utt_id for one in made])
    ids, first, of = np.unique(every, return_index=True, return_inverse=True)
    starts = np.cumsum([0, *(len(one.utt_id) for one in made)])

    def place(row: int) -> tuple[int, int]:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return part, row - int(starts[part])

    for row in np.flatnonzero(first[of] != np.arange(len(every))):
        (one, at), (other, there) = place(int(row)), place(int(first[of[row]]))
        if not _same(made[one], at, made[other], there):
            raise ArtifactError(
                f"{paths[one]}: holds the clip {every[row]!r}, and {paths[other]} holds it with other content. Parts "
                "are made of one list of clips, as --shard I/N with the same N and every I once; leave one of the two "
                "out, or make both anew."
            )
    return ids, first


def _same(one: Artifact, at: int, other: Artifact, there: int) -> bool:
    """Whether two artifacts hold the same of a clip, which stands at these positions."""
    if isinstance(one, Lalm) and isinstance(other, Lalm):
        rows = all(
            np.array_equal(getattr(one, name)[at], getattr(other, name)[there], equal_nan=name == "probs")
            for name in _OF_ANSWERS
        )
        samples = range(one.status.shape[1])
        return rows and all(one.raw_answer(at, n) == other.raw_answer(there, n) for n in samples)
    assert isinstance(one, Source) and isinstance(other, Source)
    # Hidden states depend a little on which clips shared a batch; the file is what they are made of.
    return all(
        np.array_equal(_there(one, name)[at], _there(other, name)[there])
        for name in ("audio_sha256", "speaker")
    )


def _there(source: Source, name: str) -> np.ndarray:
    array = getattr(source, name)
    assert array is not None
    return array


def _rows(made: Sequence[_Kind], name: str, rows: np.ndarray) -> np.ndarray:
    """Some rows of a dataset of all parts laid end to end."""
    arrays: list[np.ndarray] = [getattr(one, name) for one in made]
    found = np.empty((len(rows), *arrays[0].shape[1:]), dtype=np.result_type(*arrays))
    start = 0
    for array in arrays:
        here = (rows >= start) & (rows < start + len(array))
        found[here] = array[rows[here] - start]
        start += len(array)
    return found


def _header(
    config: MergeConfig,
    made: Sequence[Artifact],
    parents: Sequence[Parent],
    digests: Sequence[str],
    **parameters: Any,
) -> Header:
    """Header of the whole, as the step of the parts would write it, with what it was merged from."""
    first = made[0].header
    shards = sorted({shard for one in made for shard in _shards(one.header)})
    return Header(
        classes=first.classes,
        seed=first.seed,
        config={
            **first.config,
            "shard": "",
            "out": str(config.out),
            "parts": list(digests),
            "shards": shards,
        },
        parameters={**first.parameters, **parameters},
        parents=tuple(parents),
    )


# Answers of query-lalm


def _merged_answers(config: MergeConfig, made: Sequence[Lalm], digests: Sequence[str]) -> Lalm:
    ids, rows = _joined(config.parts, made)
    with ExitStack() as held:
        # Before anything is written, all journals are there, free, and what the artifacts were made of.
        for path, one in zip(config.parts, made, strict=True):
            _check_journal(path, one)
        journal = held.enter_context(lalm.Journal(lalm.journal_path(config.out)))
        run = journal.new_run()
        for path in config.parts:
            _take_in(journal, path, run)
        journal.mark_twins(run)
        digest = {
            "clips": manifest.digest_of(journal.pairs("file_sha256")),
            "context": manifest.digest_of(journal.pairs("context")),
        }
        accounts = journal.accounts()
    first = made[0].header
    answers = AnswerCounts()
    arrays: dict[str, Any] = {name: _rows(made, name, rows) for name in _OF_ANSWERS}
    answers.add(arrays["probs"], arrays["status"], arrays["usage"])
    summaries = [one.header.parameters["summary"] for one in made]
    summary = answers.summary(
        arrays["status"].shape[1],
        accounts,
        priced=all(one["spent_usd"] is not None for one in summaries),
        codes=first.parameters["status_codes"],
        usage=first.parameters["usage_columns"],
    )
    counts = {
        name: dict(
            sorted(sum((Counter(one.header.parameters[name]) for one in made), Counter[str]()).items())
        )
        for name in ("answered_by", "flags")
    }
    parents = [
        Parent(one.role, _moved(one, config.parts[0], config.out), digest.get(one.role, one.sha256))
        for one in first.parents
    ]
    raw, raw_end = _raw(made, rows)
    return Lalm(
        header=_header(
            config, made, parents, digests, summary=summary, complete=summary["complete"], **counts
        ),
        utt_id=ids,
        raw=raw,
        raw_end=raw_end,
        **arrays,
    )


def _check_journal(path: Path, made: Lalm) -> None:
    file = lalm.journal_path(path)
    if not file.is_file():
        raise InputError(
            f"{file}: no such file. It holds the answers that were paid for: put it beside {path.name}, where "
            "query-lalm left it."
        )
    with lalm.Journal(file) as journal:
        heard = made.header.parent("clips")
        if heard is None or manifest.digest_of(journal.pairs("file_sha256")) != heard.sha256:
            raise ArtifactError(
                f"{path}: was made of other clips than those in {file.name}: its run was not finished, or one of the "
                f"two is of another run. Make it anew: {made.header.command}"
            )


def _take_in(journal: lalm.Journal, path: Path, run: int) -> None:
    if lalm.journal_path(path).resolve() == journal.path.resolve():
        for block in list(journal.clips()):
            journal.add_clips(run, block)
        return
    with lalm.Journal(lalm.journal_path(path)) as part:
        part.settle_unread()
        lalm.take_in(journal, part)
        for block in part.clips():
            journal.add_clips(run, block)


def _raw(made: Sequence[Lalm], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts of the answers of some rows of all parts laid end to end, and their ends (U, N)."""
    starts, ends, before = [], [], 0
    for one in made:
        flat = one.raw_end.ravel() + before
        starts.append(np.concatenate([[before], flat[:-1]]).reshape(one.raw_end.shape)[:, 0])
        ends.append(flat.reshape(one.raw_end.shape))
        before += len(one.raw)
    first, last = np.concatenate(starts)[rows], np.concatenate(ends)[rows]
    raw = np.concatenate([one.raw for one in made])
    pieces = [raw[start:end] for start, end in zip(first.tolist(), last[:, -1].tolist(), strict=True)]
    moved = np.cumsum([0, *map(len, pieces[:-1])]) - first
    return np.concatenate(pieces), last + moved[:, None]


def _moved(parent: Parent, part: Path, out: Path) -> str:
    """Path of a parent of a part, as seen from the directory of ``out``."""
    return lineage.relative(lineage.place_of(parent, part), out)


# Predictions of sample-source


def _merged_samples(config: MergeConfig, made: Sequence[Source], digests: Sequence[str]) -> Source:
    for path, one in zip(config.parts, made, strict=True):
        if one.audio_sha256 is None or one.hidden is None or one.speaker is None:
            raise ArtifactError(f"{path}: is no part. Make parts with sample-source --shard I/N.")
    lineage.check_parents(made[0], config.parts[0])  # the model of one is that of all
    ids, rows = _joined(config.parts, made)
    first = made[0].header
    model = first.parent("model")
    assert model is not None
    place = lineage.place_of(model, config.parts[0])
    if not place.is_dir():
        raise InputError(
            f"{place}: no such directory. It is the source model of the parts, from which predictions are drawn; "
            "put it back where it was."
        )

    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.sampling import sampled

    speakers = [name or None for name in _rows(made, "speaker", rows).tolist()]
    hidden = _rows(made, "hidden", rows)
    probs, point = sampled(
        checkpoint.load(place),
        hidden,
        speakers,
        normalize=first.parameters["normalize"],
        calibrate=first.parameters["calibrate"],
        passes=made[0].probs.shape[1],
        seed=provenance.named_seed(first.seed, "sample-source"),
        device=find_device(config.device),
    )
    heard = _rows(made, "audio_sha256", rows)
    clips = [Clip(one, place, speaker) for one, speaker in zip(ids.tolist(), speakers, strict=True)]
    digest = {
        "clips": manifest.digest_of(zip(ids.tolist(), heard.tolist(), strict=True)),
        "speakers": lineage.speakers_parent(clips, place, config.out).sha256,
    }
    trained = Training.load(place / "train.h5")
    return Source(
        header=_header(
            config,
            made,
            [
                Parent(one.role, _moved(one, config.parts[0], config.out), digest.get(one.role, one.sha256))
                for one in first.parents
            ],
            digests,
            seen_in_training=float(lineage.heard_of(trained, ids, heard).mean()),
        ),
        utt_id=ids,
        probs=probs,
        point=point,
        hidden=hidden,
        speaker=_rows(made, "speaker", rows),
        voice=None if made[0].voice is None else _rows(made, "voice", rows),
        gold=made[0].gold,
    )
