"""Planning: the runs of a comparison, which of them exist already, and whether their inputs are compatible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mifuse_cli import artifacts, fusion, lineage, provenance, splits, truth
from mifuse_cli.artifacts import Compared, Lalm, Parent, Training
from mifuse_cli.config import options_of, words
from mifuse_cli.errors import ArtifactError, InputError, MifuseError
from mifuse_cli.manifest import Clip, columns_of, read_clips, speakers_of
from mifuse_cli.methods import adaptation
from mifuse_cli.model.hub import find_speaker_encoder
from mifuse_cli.model.shape import Shape, read_shape
from mifuse_cli.steps.compare.config import CompareConfig
from mifuse_cli.steps.compare.names import sources_and_targets
from mifuse_cli.steps.compare.systems import ORACLE, System, chosen

if TYPE_CHECKING:
    from mifuse_cli.steps.compare.running import Task

_SPEAKER_ENCODER = "speaker-encoder"
"""Role of a run's parent."""


@dataclass(frozen=True)
class TargetCorpus:
    """One corpus as a target.

    Attributes:
        name: of the corpus.
        clips: U clips, sorted by id.
        labels: manifest of their labels.
        lalm: artifact of the answers.
        answers: number of answers for every clip.
        unanswered: clips without a valid one among those that are used.
        parents: answers, clips, speakers and speaker encoder, of every run.
        speaker_encoder: its directory, None where there is none.
    """

    name: str
    clips: tuple[Clip, ...]
    labels: Path
    lalm: Path
    answers: int
    unanswered: int
    parents: tuple[Parent, ...]
    speaker_encoder: Path | None

    @property
    def speakers(self) -> list[str] | None:
        """Speaker of every clip, None where intervals cannot be over speakers, see `speakers_of`."""
        return speakers_of(self.clips)

    @property
    def units(self) -> list[str]:
        """What intervals are over, for every clip: its speaker, or its id where not all speakers are known."""
        return self.speakers or [clip.utt_id for clip in self.clips]


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        classes: K names in order.
        corpora: the targets, by name.
        transfers: pairs of names, source and target.
        seeds: of the source models and students.
        systems: rows, in the order of the table.
        truth: (U,) class indices by corpus.
        pool: (P,) positions of the clips by corpus that are not scored, since their true class may be given.
        normalize: how the head's input is standardised.
        tasks: by source, target and seed.
        notes: what the user should know.
    """

    classes: tuple[str, ...]
    corpora: dict[str, TargetCorpus]
    transfers: list[tuple[str, str]]
    seeds: list[int]
    systems: list[System]
    truth: dict[str, np.ndarray]
    pool: dict[str, np.ndarray]
    normalize: str
    tasks: dict[tuple[str, str, int], Task]
    notes: tuple[str, ...]


def plan(config: CompareConfig) -> Plan:
    """Read and check all inputs.

    Raises:
        InputError: a corpus, model or artifact that is missing or cannot be read, labels that are unknown, fewer
            answers than asked for.
        ArtifactError: models or answers over other classes or clips.
        DependencyError: the speaker encoder is not on the hub, or the hub cannot be reached.
    """
    sources, targets = sources_and_targets(config)
    seeds = [int(seed) for seed in words(config.seeds)]
    models = {(name, seed): config.models / name / f"seed{seed}" for name in sources for seed in seeds}
    shapes = {key: read_shape(path) for key, path in models.items()}
    first = next(iter(shapes.values()))
    for key, shape in shapes.items():
        if shape.classes != first.classes:
            raise ArtifactError(
                f"{models[key]}: classes are {', '.join(shape.classes)}, those of other models "
                f"{', '.join(first.classes)}. Train all with the same --classes."
            )
    normalize = config.normalize or _common_normalize(models, shapes)
    speaker_encoder = find_speaker_encoder(config.speaker_encoder) if config.speaker_encoder else None
    corpora = {name: _corpus(config, name, first.classes, speaker_encoder) for name in targets}
    _check_speakers(config, normalize, corpora)
    systems, notes = _systems(config, normalize, min(corpus.answers for corpus in corpora.values()))
    for name, corpus in corpora.items():
        if corpus.unanswered:
            notes.append(
                f"{name}: {corpus.unanswered} clips have no valid answer among the first {config.n_answers}"
            )
        if corpus.speakers is None:
            notes.append(f"{name}: intervals are over clips, since not all speakers are known")
    notes += _heard(models, corpora)
    known = {name: truth.read_labels(one.labels, first.classes, one.clips) for name, one in corpora.items()}
    pool = {name: _pool(config, labels) for name, labels in known.items()}
    digests = {key: lineage.digest(path) for key, path in models.items()}
    tasks = {
        (source, target, seed): _task(
            config,
            corpora[target],
            source,
            seed,
            digests[source, seed],
            systems,
            normalize,
            known[target],
            pool[target],
        )
        for source in sources
        for target in targets
        if source != target
        for seed in seeds
    }
    transfers = list(dict.fromkeys((source, target) for source, target, _ in tasks))
    return Plan(
        first.classes, corpora, transfers, seeds, systems, known, pool, normalize, tasks, tuple(notes)
    )


def _systems(config: CompareConfig, normalize: str, answers: int) -> tuple[list[System], list[str]]:
    """The systems that can be run with this number of answers a clip, and a note on each that cannot."""
    if answers < config.n_answers:
        raise InputError(
            f"{config.lalm}: has {answers} answers a clip, --n-answers {config.n_answers} are wanted. Ask for more "
            "with query-lalm --n-samples, or lower it."
        )
    systems, notes = [], []
    for one in chosen(words(config.systems)):
        if (one.answers or 0) > answers:
            notes.append(f"{one.name}: left out, {config.lalm} has {answers} answers a clip")
        elif one.fusion.calibrate_lalm == "self-agreement" and (one.answers or config.n_answers) < 2:
            notes.append(f"{one.name}: left out, one answer a clip cannot agree with others")
        elif one.shows == "labels" and not one.fusion.is_weighted and config.protocol == "inductive":
            notes.append(f"{one.name}: left out, there are no labels of clips that were not adapted to")
        elif one.gold and config.protocol != "few-gold":
            notes.append(
                f"{one.name}: left out, it is given true classes; compare it with --protocol few-gold"
            )
        elif one.shows == "predictions" and config.protocol == "inductive":
            notes.append(f"{one.name}: left out, it predicts only the clips that it is given")
        elif one.together and (config.protocol != "inductive" or normalize == "speaker"):
            notes.append(f"{one.name}: left out, the mean of these clips is subtracted already")
        elif one.answers != config.n_answers:  # With that number of answers it would be the system itself.
            systems.append(one)
    if not systems:
        raise InputError(f"--systems {config.systems}: none of them can be run here. {'; '.join(notes)}.")
    return systems, notes


def _heard(models: dict[tuple[str, int], Path], corpora: dict[str, TargetCorpus]) -> Iterator[str]:
    """A note on every source whose models were trained on clips of another target."""
    first = {source: path for (source, _), path in reversed(models.items())}
    for source, path in first.items():
        training = Training.load(path / "train.h5")
        for name, corpus in corpora.items():
            if name != source and (heard := int(lineage.heard_in(training, corpus.clips).sum())):
                yield (
                    f"{name}: {heard} of {len(corpus.clips)} clips were heard in training of the models of {source}, "
                    "so that this is no transfer to unheard audio"
                )


def _check_speakers(config: CompareConfig, normalize: str, corpora: dict[str, TargetCorpus]) -> None:
    """Refuse options that need speakers if speakers are not known or too few."""
    inductive = config.protocol == "inductive"
    for name, corpus in corpora.items():
        known = [clip.speaker for clip in corpus.clips if clip.speaker]
        if len(known) < len(corpus.clips) and (inductive or normalize == "speaker"):
            raise InputError(
                f"{name}: {len(corpus.clips) - len(known)} of {len(corpus.clips)} clips have no speaker, which "
                f"{'--protocol inductive' if inductive else '--normalize speaker'} needs. Fill the column 'speaker' "
                "of its manifest, or leave the corpus out with --names."
            )
        if inductive and len(set(known)) < config.folds:
            raise InputError(
                f"{name}: has {len(set(known))} speakers, fewer than --folds {config.folds}. Lower it."
            )


def _common_normalize(models: dict[Any, Path], shapes: dict[Any, Shape]) -> str:
    modes = {shape.normalize for shape in shapes.values()}
    if len(modes) > 1:
        raise InputError(
            f"{next(iter(models.values())).parent.parent}: models standardise by {' and by '.join(sorted(modes))}. "
            "Train all with the same --normalize, or give one for all here."
        )
    return modes.pop()


def _corpus(
    config: CompareConfig, name: str, classes: tuple[str, ...], speaker_encoder: Path | None
) -> TargetCorpus:
    directory = config.data / f"{name}-target"
    directory = directory if directory.is_dir() else config.data / name
    manifest = _first(directory, "file", "manifest.csv", "metadata.csv")
    labels = _first(directory, "emotion", "labels.csv", "metadata.csv", "manifest.csv")
    clips, lalm = read_clips(manifest), config.lalm / f"{name}.h5"
    answers = Lalm.load(lalm)
    if answers.header.classes != classes:
        raise ArtifactError(
            f"{lalm}: classes are {', '.join(answers.header.classes)}, those of the models {', '.join(classes)}. "
            "Make one of them anew with the other's --classes."
        )
    unanswered = np.isnan(answers.probs[:, : config.n_answers]).any(axis=-1).all(axis=1)
    if not answers.header.parameters.get("complete", True) or unanswered.all():
        raise ArtifactError(
            f"{lalm}: {'holds no valid answer' if unanswered.all() else 'some questions are unanswered'}, so that "
            f"the comparison would be incomplete. Run its command again: {answers.header.command}"
        )
    ids = np.array([clip.utt_id for clip in clips])
    parts = artifacts.to_merge((str(lalm), answers.header))
    artifacts.check_same_utterances(answers.utt_id, str(lalm), ids, str(manifest), parts)
    out = config.out / "runs" / name / name / "seed0.h5"  # as deep as those of the runs
    parents = [
        lineage.parent("lalm", lalm, out),
        lineage.clips_parent(clips, manifest, out),
        lineage.speakers_parent(clips, manifest, out),
    ]
    if speaker_encoder is not None:
        parents.append(lineage.parent(_SPEAKER_ENCODER, speaker_encoder, out))
    lineage.check_same_audio(answers, str(lalm), parents[1], str(manifest))
    return TargetCorpus(
        name=name,
        clips=tuple(clips),
        labels=labels,
        lalm=lalm,
        answers=answers.probs.shape[1],
        unanswered=int(unanswered.sum()),
        parents=tuple(parents),
        speaker_encoder=speaker_encoder,
    )


def _first(directory: Path, column: str, *names: str) -> Path:
    """The first manifest of the directory that has the column."""
    files = [directory / name for name in names if (directory / name).is_file()]
    for file in files:
        if column in columns_of(file):
            return file
    raise InputError(
        f"{directory}: has no manifest with a column {column!r} (looked for {', '.join(names)}). "
        "Make it with mifuse prepare."
    )


def _task(
    config: CompareConfig,
    target: TargetCorpus,
    source: str,
    seed: int,
    model_sha256: str,
    systems: Sequence[System],
    normalize: str,
    known: np.ndarray,
    pool: np.ndarray,
) -> Task:
    from mifuse_cli.steps.compare.running import Task

    model = config.models / source / f"seed{seed}"
    out = config.out / "runs" / source / target.name / f"seed{seed}.h5"
    parents = (Parent("model", lineage.relative(model, out), model_sha256), *target.parents)
    folds = config.folds if config.protocol == "inductive" else 0
    options = options_of(config, adaptation.Options, seed=seed)
    task = Task(
        out=out,
        header=lineage.header(
            config, read_shape(model).classes, parents, source=source, target=target.name, run_seed=seed
        ),
        systems=(),
        kept={},
        model=model,
        lalm=target.lalm,
        speaker_encoder=None,
        clips=target.clips,
        truth=None,
        gold=_gold(known, pool[:0]),
        pool=pool,
        normalize=normalize,
        answers=config.n_answers,
        passes=config.n_samples,
        folds=folds,
        options=options,
        device=config.device,
        encoding=config.encoding,
    )
    shared = [
        fusion.VERSION, adaptation.VERSION, normalize, config.n_answers, config.n_samples, folds, options,
        [(one.role, one.sha256) for one in parents if one.role != _SPEAKER_ENCODER],
    ]  # fmt: skip
    # Only cross-fit looks at voices: what other systems predict stays with any speaker encoder.
    voices = [one.sha256 for one in parents if one.role == _SPEAKER_ENCODER]

    def identity(system: System) -> str:
        given = known if system.name == ORACLE else _gold(known, pool[: system.gold])
        of_truth = (
            provenance.text_digest(repr(given.tolist())) if system.name == ORACLE or system.gold else ""
        )
        version = adaptation.METHODS[system.method]
        seen = shared if system.fusion.is_weighted else [*shared, *voices]
        return provenance.text_digest(repr((system, version, seen, of_truth)))

    named = {one.name for one in systems} if config.force else set()
    kept = {name: probs for name, probs in _kept(out, identity).items() if name not in named}
    todo = tuple(one for one in systems if one.name not in kept)
    identities = {name: identity(one) for name, one in _by_name(kept, systems).items()}
    header = replace(task.header, parameters={**task.header.parameters, "identities": identities})
    needs_truth = any(one.name == ORACLE for one in todo)
    looks_at_voices = any(not one.fusion.is_weighted for one in todo)
    return replace(
        task,
        header=header,
        systems=todo,
        kept=kept,
        truth=known if needs_truth else None,
        gold=_gold(known, pool[: max((one.gold for one in todo), default=0)]),
        speaker_encoder=target.speaker_encoder if looks_at_voices else None,
    )


def _pool(config: CompareConfig, known: np.ndarray) -> np.ndarray:
    """Positions (P,) of the clips that are not scored; the same for all seeds of the comparison."""
    if config.protocol != "few-gold":
        return np.zeros(0, dtype=int)
    return splits.gold_pool(len(known), provenance.rng(config.seed, "gold"))


def _gold(known: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Class indices (U,) at the positions that are given, -1 elsewhere."""
    gold = np.full(len(known), -1)
    gold[given] = known[given]
    return gold


def _by_name(kept: dict[str, np.ndarray], systems: Sequence[System]) -> dict[str, System]:
    return {one.name: one for one in (*chosen(kept), *systems)}


def _kept(file: Path, identity: Callable[[System], str]) -> dict[str, np.ndarray]:
    """Predictions in ``file`` that were made with the current settings and inputs."""
    if not file.is_file():
        return {}
    try:
        made = Compared.load(file)
        identities = made.header.parameters["identities"]
        known = {one.name: one for one in chosen(made.systems.tolist())}
    except (MifuseError, KeyError):
        return {}
    return {
        name: probs
        for name, probs in zip(made.systems.tolist(), made.probs, strict=True)
        if identities.get(name) == identity(known[name])
    }
