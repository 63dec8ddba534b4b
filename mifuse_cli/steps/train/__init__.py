"""``mifuse train``: train the student on fused labels, or by another method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli import artifacts, lineage, provenance
from mifuse_cli.artifacts import Fused, Parent, Predictions, Training
from mifuse_cli.config import Progress
from mifuse_cli.errors import ArtifactError
from mifuse_cli.manifest import Clip, clips_of
from mifuse_cli.model.shape import Shape, read_shape
from mifuse_cli.steps.train.config import TrainConfig, TrainResult
from mifuse_cli.truth import labels_parent, read_labels

__all__ = ["TrainConfig", "TrainResult", "train"]

if TYPE_CHECKING:
    from mifuse_cli.model.checkpoint import Checkpoint
    from mifuse_cli.model.classifier import Classifier, Features, Waveforms


def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train the student; an interrupted run of the same configuration is continued.

    Raises:
        InputError: input that cannot be read, or an output that exists.
        ArtifactError: fused labels of other clips or classes, of another source model, or with changed
            parents.
    """
    lineage.refuse_overwrite(config, config.out)
    clips, where = clips_of(config.manifest, config.wav_dir)
    shape, history = read_shape(config.model), config.out / "train.h5"
    model, heard = lineage.parent("model", config.model, history), lineage.clips_parent(clips, where, history)
    fused = (
        None
        if config.fused is None
        else _fused(config.fused, config.model, shape, clips, where, model, heard)
    )
    truth = None if config.labels is None else read_labels(config.labels, shape.classes, clips)
    parents = [
        *([] if config.fused is None else [lineage.parent("fused", config.fused, history)]),
        model,
        heard,
        lineage.speakers_parent(clips, where, history),
        *([] if config.labels is None else [labels_parent(config.labels, clips, truth, history)]),
    ]
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, up_to_date=True)
    return _train(config, fused, truth, clips, parents, progress)


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


def _train(
    config: TrainConfig,
    fused: Fused | None,
    truth: np.ndarray | None,
    clips: list[Clip],
    parents: list[Parent],
    progress: Progress | None,
) -> TrainResult:
    from dataclasses import replace

    from mifuse_cli.methods import loop, resume
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.classifier import predict
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import all_layers
    from mifuse_cli.steps.train.methods import make

    device = find_device(config.device)
    source = checkpoint.load(config.model)
    normalize = config.normalize or source.shape.normalize
    if fused is not None:
        normalize = fused.header.parameters["source_normalize"]
        if fused.header.parameters["source_calibrate"]:
            source.calibrate()
    model, inputs = _model_and_inputs(config, source, clips, normalize, device, progress)

    def features() -> np.ndarray:
        return all_layers(source, clips, device=device, cache=config.cache_dir, progress=progress)

    method = make(config, fused, clips, features, truth, source.shape)
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
        config,
        shape.classes,
        parents,
        method=config.method,
        checkpoint="last",
        normalize=normalize,
        **({"recipe": config.recipe} if config.method == "mifuse" else {}),
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


def _result(out: Path, *, up_to_date: bool = False, resumed_from: int = 0) -> TrainResult:
    made, predictions = Training.load(out / "train.h5"), Predictions.load(out / "predictions.h5")
    notes = (f"continued after epoch {resumed_from} of an interrupted run",) if resumed_from else ()
    if made.header.parameters["method"] == "oracle":
        notes = (*notes, "oracle: trained on target labels, an upper bound and not a result of adaptation")
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
