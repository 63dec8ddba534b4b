"""``mifuse train``: train the student on fused labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli import artifacts, lineage, provenance
from mifuse_cli.artifacts import Fused, Parent, Predictions, Training
from mifuse_cli.config import (
    Progress,
    StepConfig,
    above_zero,
    at_least,
    between,
    one_of,
    option,
    target_problems,
    tune_problems,
)
from mifuse_cli.errors import ArtifactError
from mifuse_cli.manifest import Clip, clips_of
from mifuse_cli.model.shape import read_shape

if TYPE_CHECKING:
    from mifuse_cli.methods.loop import Method
    from mifuse_cli.model.checkpoint import Checkpoint
    from mifuse_cli.model.classifier import Classifier, Features, Waveforms

METHODS = ("mifuse", "lalm-sfuda")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig):
    """Train a student on fused labels of unlabelled clips, starting from the source model."""

    fused: Path = option(help="Artifact of fuse.")
    model: Path = option(
        help="Checkpoint directory of the source classifier that the fused labels came from."
    )
    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.")
    out: Path = option(help="Checkpoint directory to write.")
    method: str = option(
        "mifuse", "mifuse: fused labels, EMA teacher; lalm-sfuda: the LALMs' mean answers alone."
    )
    tune: str = option("head", "What to train: head, top-N blocks of the encoder too, or all.")
    epochs: int = option(30, "Epochs; the model after the last one is saved.")
    batch_size: int = option(64, "Clips a batch, at most.")
    learning_rate: float = option(5e-4, "AdamW learning rate of the head.")
    encoder_learning_rate: float = option(2e-5, "AdamW learning rate of the encoder where it is trained.")
    weight_decay: float = option(0.01, "AdamW weight decay.")
    diversity_weight: float = option(1.0, "Weight of the diversity loss; 0 leaves it out.")
    diversity_prior: str = option(
        "uniform", "Class marginal that the diversity loss pulls to: uniform, or that of the labels."
    )
    ema: float = option(0.99, "Momentum a step of the classifier teacher, which follows the student.")
    refresh: int = option(1, "Epochs between sampling the teacher and fusing anew; 0: never.")
    cache_dir: Path | None = option(
        None, "Directory of the feature cache; default: MIFUSE_CACHE_DIR or the user's cache.", settles=False
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        yield from one_of("--method", self.method, METHODS)
        yield from tune_problems(self.tune)
        yield from one_of("--diversity-prior", self.diversity_prior, ("uniform", "labels"))
        yield from at_least("--epochs", self.epochs, 1)
        yield from at_least("--batch-size", self.batch_size, 1)
        yield from at_least("--refresh", self.refresh, 0)
        yield from at_least("--diversity-weight", self.diversity_weight, 0)
        yield from above_zero("--learning-rate", self.learning_rate)
        yield from above_zero("--encoder-learning-rate", self.encoder_learning_rate)
        yield from at_least("--weight-decay", self.weight_decay, 0)
        yield from between("--ema", self.ema, 0, 1)


@dataclass(frozen=True)
class TrainResult:
    """What was trained.

    Attributes:
        out: checkpoint directory of the student, with its ``predictions.h5`` on the target clips.
        method: as configured.
        clips, epochs: how much it was trained on.
        losses: mean of every loss term in the last epoch.
        marginal: mean predicted probability by class.
        resumed_from: epoch that an interrupted run had reached, 0 if there was none.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    method: str
    clips: int
    epochs: int
    losses: dict[str, float]
    marginal: dict[str, float]
    resumed_from: int = 0
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train the student; an interrupted run of the same configuration is continued.

    Raises:
        InputError: input that cannot be read, or an output that exists.
        ArtifactError: fused labels of other clips or classes, of another source model, or with changed
            parents.
    """
    lineage.refuse_overwrite(config, config.out)
    fused = Fused.load(config.fused)
    lineage.check_parents(fused, config.fused)
    clips, where = clips_of(config.manifest, config.wav_dir)
    artifacts.check_same_utterances(
        fused.utt_id, str(config.fused), np.array([c.utt_id for c in clips]), str(where)
    )

    shape = read_shape(config.model)
    parents = [
        lineage.parent("fused", config.fused, config.out / "train.h5"),
        lineage.parent("model", config.model, config.out / "train.h5"),
        lineage.clips_parent(clips, where, config.out / "train.h5"),
        lineage.speakers_parent(clips, where, config.out / "train.h5"),
    ]
    lineage.check_same_audio(fused, str(config.fused), parents[2], str(where))
    if shape.classes != fused.header.classes:
        raise ArtifactError(
            f"{config.model}: classes are {', '.join(shape.classes)} but {config.fused} has "
            f"{', '.join(fused.header.classes)}. Use the source model that sample-source was given."
        )
    if fused.header.parameters["source_model_sha256"] != parents[1].sha256:
        raise ArtifactError(
            f"{config.fused}: its source teacher is another model than {config.model}. "
            "Give the model that sample-source was given, or sample and fuse anew."
        )
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, up_to_date=True)
    return _train(config, fused, clips, parents, progress)


def _train(
    config: TrainConfig,
    fused: Fused,
    clips: list[Clip],
    parents: list[Parent],
    progress: Progress | None,
) -> TrainResult:
    from dataclasses import replace

    from mifuse_cli.methods import loop, resume
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.classifier import predict
    from mifuse_cli.model.device import find_device

    device = find_device(config.device)
    source = checkpoint.load(config.model)
    normalize = fused.header.parameters["source_normalize"]
    if fused.header.parameters["source_calibrate"]:
        source.calibrate()
    model, inputs = _model_and_inputs(config, source, clips, normalize, device, progress)
    method = _method(config, fused)
    options = loop.LoopOptions(
        config.epochs,
        config.batch_size,
        config.learning_rate,
        config.encoder_learning_rate,
        config.weight_decay,
        config.ema,
        config.seed,
    )
    state = loop.start(model, method, options)
    partial = config.out.with_name(config.out.name + ".partial")
    identity = provenance.text_digest(
        repr((sorted(lineage.settings(config).items()), [(p.role, p.sha256) for p in parents]))
    )
    resumed_from = resume.restore(partial, identity, state, method)

    def keep(state: loop.State) -> None:
        resume.keep(partial, identity, state, method)
        if progress:
            progress("training", state.epoch, config.epochs)

    loop.run(state, inputs, method, options, after_epoch=keep)
    inputs.refresh(model)
    adapted = normalize == "target"
    shape = replace(
        source.shape,
        normalize=normalize,
        statistics_of="target" if adapted else source.shape.statistics_of,
        tune=config.tune,
        temperature=1.0,
    )
    header = lineage.header(
        config, shape.classes, parents, method=config.method, checkpoint="last", normalize=normalize
    )
    utt_id = np.array([clip.utt_id for clip in clips])
    history = Training(
        header=header,
        utt_id=utt_id,
        columns_of_history=np.array(method.terms),
        history=np.array(state.history),
    )
    statistics = inputs.statistics if adapted else source.statistics
    predictions = Predictions(header=header, utt_id=utt_id, probs=predict(model, inputs))
    checkpoint.save(config.out, shape, model, statistics, source.encoder_dir, history, predictions)
    resume.forget(partial)
    return _result(config.out, resumed_from=resumed_from)


def _model_and_inputs(
    config: TrainConfig,
    source: Checkpoint,
    clips: list[Clip],
    normalize: str,
    device,
    progress: Progress | None,
) -> tuple[Classifier, Features | Waveforms]:
    from mifuse_cli.model.classifier import Classifier, Waveforms
    from mifuse_cli.model.encoder import load_encoder
    from mifuse_cli.model.prepare import effective_mode, frozen_classifier, frozen_inputs, trainable_part

    if config.tune == "head":
        inputs = frozen_inputs(
            source, clips, normalize=normalize, device=device, cache=config.cache_dir, progress=progress
        )
        return frozen_classifier(source, device), inputs
    encoder = trainable_part(load_encoder(source.encoder_dir, source.shape.precision), config.tune)
    model = Classifier(encoder, source.head, source.shape.layers).to(device)
    mode = effective_mode(normalize, source.shape.statistics_of)
    return model, Waveforms(clips, device, mode, source.statistics)


def _method(config: TrainConfig, fused: Fused) -> Method:
    from mifuse_cli.methods.lalm_sfuda import LalmLabels, fused_answers
    from mifuse_cli.methods.mifuse import FusedLabels, FusedOptions

    how = fused.header.parameters
    if config.method == "lalm-sfuda":
        answers = fused_answers(
            fused.mean, fused.mi, weighting=how["weighting"], tau=how["tau"], pool=how["pool"]
        )
        return LalmLabels(answers, config.diversity_weight, config.diversity_prior)
    options = FusedOptions(
        weighting=how["weighting"],
        tau=how["tau"],
        pool=how["pool"],
        estimator=how["mi_estimator"],
        passes=how["source_samples"],
        refresh=config.refresh,
        diversity_weight=config.diversity_weight,
        diversity_prior=config.diversity_prior,
        seed=config.seed,
    )
    return FusedLabels(fused.probs, fused.mean, fused.mi, options)


def _result(out: Path, *, up_to_date: bool = False, resumed_from: int = 0) -> TrainResult:
    made, predictions = Training.load(out / "train.h5"), Predictions.load(out / "predictions.h5")
    notes = (f"continued after epoch {resumed_from} of an interrupted run",) if resumed_from else ()
    marginal = predictions.probs.mean(axis=0)
    return TrainResult(
        out=out,
        method=made.header.parameters["method"],
        clips=len(made.utt_id),
        epochs=len(made.history),
        losses=dict(zip(made.columns_of_history.tolist(), made.history[-1].tolist(), strict=True)),
        marginal=dict(zip(made.header.classes, map(float, marginal), strict=True)),
        resumed_from=resumed_from,
        up_to_date=up_to_date,
        notes=notes,
    )
