"""``mifuse train``: train the student on fused labels, or by another method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import artifacts, lineage, provenance
from mifuse_cli.artifacts import Fused, Parent, Predictions, Training
from mifuse_cli.config import (
    Progress,
    StepResult,
    TuningConfig,
    above_zero,
    normalize_problems,
    option,
    options_of,
    settings,
    target_problems,
    tune_problems,
)
from mifuse_cli.errors import ArtifactError
from mifuse_cli.files import remove_leftovers
from mifuse_cli.fusion import FusionSettings, one_sided
from mifuse_cli.manifest import Clip, clips_of
from mifuse_cli.methods.adaptation import (
    STUDENTS,
    WITH_LABELS,
    WITHOUT_LALM,
    AdaptationConfig,
    Options,
    adapt,
    has_linear_part,
    refresh_of,
    student_problems,
)
from mifuse_cli.methods.teachers import Teachers
from mifuse_cli.model import processes
from mifuse_cli.model.shape import Shape, read_shape
from mifuse_cli.truth import labels_parent, read_labels


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AdaptationConfig, TuningConfig):
    """Train a student on unlabelled clips, with fused labels or by another method, starting from the source
    model.
    """

    fused: Path | None = option(
        None,
        f"Artifact of fuse; all methods but {', '.join(name for name in WITHOUT_LALM if name in STUDENTS)} need it.",
    )
    model: Path = option(
        help="Checkpoint directory of the source classifier, the one whose samples were fused."
    )
    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.")
    out: Path = option(help="Checkpoint directory to write.")
    method: str = option(
        "mifuse",
        "mifuse: learn the labels of --fused, see --refresh; lalm-sfuda: learn the LALMs' mean answers alone; "
        f"further: {', '.join(STUDENTS[2:])}.",
    )
    labels: Path | None = option(
        None, "CSV of the clips with their emotions, for --method oracle alone: an upper bound, not a result."
    )
    normalize: str = option(
        "",
        "Without --fused: statistics that standardise the input, source, target or speaker; default: the model's.",
    )
    tune: str = option(
        "head", "What to train: head, top-N (the head and the last N blocks of the encoder), or all."
    )
    encoder_learning_rate: float = option(2e-5, "AdamW learning rate of the encoder where it is trained.")

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        yield from student_problems(self.method, self.tune)
        if self.fused is None and self.method not in WITHOUT_LALM:
            yield f"--fused: --method {self.method} learns from a LALM, give the artifact of fuse"
        if (self.labels is None) == (self.method == "oracle"):
            yield "--labels: --method oracle needs them, and no other method may see them"
        yield from normalize_problems(self.normalize)
        if self.normalize and self.fused:
            yield "--normalize: it is given by the fused labels; leave it out"
        yield from tune_problems(self.tune)
        if self.diversity_prior == "labels" and self.method not in WITH_LABELS:
            yield f"--diversity-prior labels: --method {self.method} has no labels to take a marginal from"
        if self.refresh is not None and self.method != "mifuse":
            yield f"--refresh {self.refresh}: --method {self.method} has no fused labels; leave it out"
        yield from above_zero("--encoder-learning-rate", self.encoder_learning_rate)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class TrainResult(StepResult):
    """What was trained.

    Attributes:
        out: checkpoint directory of the student, with its ``predictions.h5`` on the target clips.
        method: as configured.
        labels: how the labels of ``mifuse`` were made and whether they are fused anew in training, else
            "".
        clips, epochs: number of clips and of epochs.
        losses: mean of every loss term in the last epoch.
        marginal: mean predicted probability by class.
        gold: clips whose true class the labels were made with.
        resumed_from: epoch that an interrupted run had reached, 0 if there was none.
    """

    method: str
    labels: str
    clips: int
    epochs: int
    losses: dict[str, float]
    marginal: dict[str, float]
    gold: int = 0
    resumed_from: int = 0


@processes.divided
def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train the student; an interrupted run of the same configuration is continued.

    Raises:
        InputError: input that cannot be read, or an output that exists.
        ArtifactError: fused labels of other clips or classes, of another source model, or with changed
            parents.
        UsageError: ``refresh`` with labels that cannot be renewed.
    """
    lineage.refuse_overwrite(config, config.out, Training)
    clips, where = clips_of(config.manifest, config.wav_dir)
    shape, history = read_shape(config.model), config.out / "train.h5"
    model, heard = lineage.parent("model", config.model, history), lineage.clips_parent(clips, where, history)
    fused = (
        None
        if config.fused is None
        else _fused(config.fused, config.model, shape, clips, where, model, heard)
    )
    teachers = None if fused is None else teachers_of(fused)
    options = options_of(config, Options)
    if config.method == "mifuse" and teachers is not None:
        options = replace(options, refresh=refresh_of(options, teachers))
    truth = None if config.labels is None else read_labels(config.labels, shape.classes, clips)
    parents = [
        *([] if config.fused is None else [lineage.parent("fused", config.fused, history)]),
        model,
        heard,
        lineage.speakers_parent(clips, where, history),
        *([] if config.labels is None else [labels_parent(config.labels, clips, truth, history)]),
    ]
    if lineage.is_current(config, config.out, parents):
        _forget(_partial(config.out))
        return _result(config.out, up_to_date=True)

    def work() -> TrainResult:
        return _train(config, clips, options, fused, teachers, truth, parents, progress)

    if config.tune != "head":
        return work()

    from mifuse_cli.methods.structure import states_in_use
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import hidden_states

    def encode(some: Sequence[Clip]) -> np.ndarray:
        return hidden_states(
            checkpoint.load(config.model),
            some,
            states=states_in_use(shape, cross_fit=has_linear_part(config.method, teachers)),
            device=find_device(config.device),
            encoding=config.encoding,
            progress=progress,
        )

    processes.in_shares(encode, clips)
    return processes.by_first(work)


def _train(
    config: TrainConfig,
    clips: list[Clip],
    options: Options,
    fused: Fused | None,
    teachers: Teachers | None,
    truth: np.ndarray | None,
    parents: list[Parent],
    progress: Progress | None,
) -> TrainResult:
    from mifuse_cli.methods.student import untrained_student
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.classifier import predict
    from mifuse_cli.model.device import find_device

    device = find_device(config.device)
    source = checkpoint.load(config.model)
    normalize = config.normalize or source.shape.normalize
    if fused is not None:
        normalize = fused.header.parameters["source_normalize"]
        if fused.header.parameters["source_calibrate"]:
            source.calibrate()
    source, student, inputs = untrained_student(
        source,
        clips,
        tune=config.tune,
        micro_batch_s=config.micro_batch_seconds,
        gradient_checkpointing=config.gradient_checkpointing,
        normalize=normalize,
        linear=has_linear_part(config.method, teachers),
        device=device,
        encoding=config.encoding,
        progress=progress,
    )
    partial = _partial(config.out)
    identity = provenance.text_digest(
        repr((sorted(settings(config).items()), [(p.role, p.sha256) for p in parents]))
    )
    made = adapt(
        student,
        inputs,
        options,
        teachers=teachers,
        truth=truth,
        kept=(partial, identity),
        after_epoch=lambda epoch: progress("training", epoch, config.epochs) if progress else None,
    )
    adapted = normalize == "target"
    shape = replace(
        source.shape,
        normalize=normalize,
        statistics_of="target" if adapted else source.shape.statistics_of,
        tune=config.tune,
        temperature=1.0,
    )
    labels: dict[str, Any] = {}
    if config.method == "mifuse" and teachers is not None:
        labels = {"fusion": teachers.settings.parameters(), "refresh": options.refresh}
    # Other methods see nothing of the fused labels. What the model itself was trained with stays in it.
    given = fused.gold if fused is not None and config.method == "mifuse" else None
    before = Training.load(config.model / "train.h5")
    gold = artifacts.united(given, before.gold)
    header = lineage.header(
        config,
        shape.classes,
        parents,
        method=config.method,
        checkpoint="last",
        normalize=normalize,
        heard_before=int(lineage.heard_in(before, clips).sum()),
        **labels,
    )
    utt_id = np.array([clip.utt_id for clip in clips])
    training = Training(
        header=header,
        utt_id=utt_id,
        columns_of_history=np.array(made.terms),
        history=made.history,
        gold=gold,
        audio_sha256=lineage.content(clips),
    )
    statistics = inputs.statistics if adapted else source.statistics
    predictions = Predictions(header=header, utt_id=utt_id, probs=predict(student, inputs), gold=gold)

    def save() -> None:
        checkpoint.save(
            config.out,
            shape,
            student,
            statistics,
            source.encoder_dir,
            training,
            predictions,
            replace=config.replaces,
        )
        _forget(partial)

    processes.by_first(save)
    return _result(config.out, resumed_from=made.resumed_from)


def teachers_of(fused: Fused) -> Teachers:
    """The teachers' distributions and labels in an artifact of fuse."""
    how = fused.header.parameters
    return Teachers(
        fused.probs,
        fused.mean,
        fused.mi,
        FusionSettings.of(how),
        passes=how["source_samples"],
        top_counts=fused.top_counts,
    )


def _fused(
    path: Path, model_path: Path, shape: Shape, clips: list[Clip], where: Path, model: Parent, heard: Parent
) -> Fused:
    """The fused labels, if they are of these clips and this model."""
    fused = Fused.load(path)
    lineage.check_parents(fused, path)
    ids = np.array([clip.utt_id for clip in clips])
    artifacts.check_same_utterances(fused.utt_id, str(path), ids, str(where))
    lineage.check_same_audio(fused, str(path), heard, str(where))
    if shape.classes != fused.header.classes:
        raise ArtifactError(
            f"{model_path}: classes are {', '.join(shape.classes)} but {path} has "
            f"{', '.join(fused.header.classes)}. Use the source model that sample-source was given."
        )
    if fused.header.parameters["source_model_sha256"] != model.sha256:
        raise ArtifactError(
            f"{path}: its source teacher is another model than {model_path}. "
            "Give the model that sample-source was given, or sample and fuse anew."
        )
    return fused


def _partial(out: Path) -> Path:
    """Where the state of a training is kept until it has made ``out``."""
    return out.with_name(f"{out.name}.partial")


def _forget(partial: Path) -> None:
    remove_leftovers(partial)
    partial.unlink(missing_ok=True)


def _result(out: Path, *, up_to_date: bool = False, resumed_from: int = 0) -> TrainResult:
    made, predictions = Training.load(out / "train.h5"), Predictions.load(out / "predictions.h5")
    parameters = made.header.parameters
    notes = (f"continued after epoch {resumed_from} of an interrupted run",) if resumed_from else ()
    if heard := parameters.get("heard_before", 0):
        notes = (
            *notes,
            f"{heard} of {len(made.utt_id)} clips were heard in training of the source model: unlike in use",
        )
    if parameters["method"] == "oracle":
        notes = (*notes, "oracle: trained on target labels, an upper bound and not a result of adaptation")
    notes = (*notes, *one_sided("student", predictions.probs, made.header.classes))
    labels = ""
    if "refresh" in parameters:
        every = parameters["refresh"]
        renewed = f"fused anew every {every} epochs" if every > 1 else "fused anew every epoch"
        labels = f"{parameters['fusion']['weighting']}, {renewed if every else 'as fuse made them'}"
    marginal = predictions.probs.mean(axis=0)
    return TrainResult(
        out=out,
        method=parameters["method"],
        labels=labels,
        clips=len(made.utt_id),
        epochs=len(made.history),
        losses=dict(zip(made.columns_of_history.tolist(), made.history[-1].tolist(), strict=True)),
        marginal=dict(zip(made.header.classes, map(float, marginal), strict=True)),
        gold=0 if made.gold is None else len(made.gold),
        resumed_from=resumed_from,
        up_to_date=up_to_date,
        notes=notes,
    )
