"""``mifuse train-source``: train the source classifier on labelled clips."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli import evaluation, lineage, provenance, splits
from mifuse_cli.artifacts import Parent, Training
from mifuse_cli.config import (
    NORMALIZATIONS,
    Progress,
    StepResult,
    TuningConfig,
    above_zero,
    at_least,
    between,
    one_of,
    option,
    tune_problems,
)
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.labels import CLASSES, parse_classes
from mifuse_cli.manifest import Clip, LabelledClip, read_labelled
from mifuse_cli.model import processes
from mifuse_cli.model.hub import LOGMEL, find_encoder
from mifuse_cli.model.shape import POOLINGS, PRECISIONS, Shape

if TYPE_CHECKING:
    import torch

    from mifuse_cli.model.classifier import Classifier, Features, Waveforms


@dataclass(frozen=True, kw_only=True)
class TrainSourceConfig(TuningConfig):
    """Train the source classifier on a labelled manifest."""

    manifest: Path = option(help="CSV of labelled source clips: file, emotion, and where known speaker.")
    encoder: str = option(
        help="Local directory or hub name of an audio model of transformers with hidden states, such as wav2vec2, "
        "HuBERT, WavLM or Whisper, or logmel."
    )
    out: Path = option(help="Checkpoint directory to write.")
    classes: str = option(",".join(CLASSES), "Emotion classes; all probabilities are in this order.")
    layers: str = option(
        "all",
        "Hidden layers that the head sees: all, middle (the single layer half-way up), or numbers and ranges such as "
        "0,2,4 or 0-6. Layers above the highest one in use are not computed.",
    )
    pooling: str = option(
        "mean",
        "What becomes of the frames of a layer: mean, mean+deviation, or attentive, a mean whose weights are learned, "
        "which needs --tune top-N or all.",
    )
    normalize: str = option(
        "source", "Statistics that standardise the head's input: source, target or speaker."
    )
    tune: str = option(
        "auto",
        "What to train: head, top-N (the head and the last N blocks of the encoder), or all; auto: all for logmel, "
        "else head.",
    )
    precision: str = option("fp32", "Precision of the encoder, here and in every later step: fp32 or bf16.")
    hidden: int = option(128, "Units of the head's hidden layer.")
    dropout: float = option(0.3, "Dropout in the head; MC dropout needs more than 0.")
    epochs: int = option(30, "Largest number of epochs; the number with the lowest validation loss is used.")
    batch_size: int = option(32, "Clips a batch.")
    learning_rate: float = option(5e-4, "AdamW learning rate of the head.")
    encoder_learning_rate: float = option(
        0.0, "AdamW learning rate of the encoder if it is trained; 0: 2e-5, or 1e-3 for logmel."
    )
    weight_decay: float = option(0.01, "AdamW weight decay.")
    label_smoothing: float = option(
        0.1, "Label smoothing: share of each label that is spread evenly over all classes."
    )
    validation: float = option(
        0.2,
        "Share of clips, by whole speakers, held out to choose the number of epochs; 0: train for --epochs.",
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        try:
            parse_classes(self.classes)
        except UsageError as error:
            yield str(error)
        yield from one_of("--normalize", self.normalize, NORMALIZATIONS)
        yield from tune_problems(self.tune, ("auto",))
        yield from one_of("--precision", self.precision, PRECISIONS)
        yield from one_of("--pooling", self.pooling, POOLINGS)
        if self.pooling == "attentive" and self.tune in ("auto", "head") and self.encoder != LOGMEL:
            yield "--pooling attentive looks at frames, which are not kept of a frozen encoder: add --tune top-N or all"
        if self.pooling != "mean" and self.encoder == LOGMEL:
            yield "--pooling: logmel keeps the mean and deviation of its frames; leave the option out"
        for flag, number in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--hidden", self.hidden),
        ):
            yield from at_least(flag, number, 1)
        yield from between("--dropout", self.dropout, 0, 1)
        yield from between("--label-smoothing", self.label_smoothing, 0, 1)
        yield from between("--validation", self.validation, 0, 0.9)
        yield from above_zero("--learning-rate", self.learning_rate)
        yield from at_least("--encoder-learning-rate", self.encoder_learning_rate, 0)
        yield from at_least("--weight-decay", self.weight_decay, 0)
        if self.layers not in ("all", "middle") and not all(
            re.fullmatch(r"\s*\d+\s*(-\s*\d+\s*)?", part) for part in self.layers.split(",")
        ):
            yield f"--layers {self.layers!r}: expected all, middle, or numbers and ranges separated by commas"
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class TrainSourceResult(StepResult):
    """What was trained.

    Attributes:
        out: checkpoint directory.
        clips: number of clips in the final training.
        validation_clips, validation_speakers: how many of them were held out to choose the epochs.
        epochs: number of epochs, as chosen.
        validation_ua: unweighted accuracy on the held-out clips after that many epochs, in [0, 1]; NaN
            without any.
        temperature: fitted on the held-out clips.
    """

    clips: int
    validation_clips: int
    validation_speakers: int
    epochs: int
    validation_ua: float
    temperature: float


@processes.divided
def train_source(config: TrainSourceConfig, *, progress: Progress | None = None) -> TrainSourceResult:
    """Train the source classifier and save it as a checkpoint directory.

    Cross-entropy with label smoothing and class weights. A first training without the validation speakers
    finds the number of epochs with the lowest loss on them, and the temperature (Guo et al., ICML 2017); a
    second training of that length uses all clips.

    Raises:
        InputError: manifest, audio or encoder that cannot be used, or an output that exists.
        UsageError: layers that the encoder does not have.
    """
    lineage.refuse_overwrite(config, config.out, Training)
    classes = parse_classes(config.classes)
    labelled = read_labelled(config.manifest, classes)
    clips = [one.clip for one in labelled]
    encoder_dir = None if config.encoder == LOGMEL else find_encoder(config.encoder)
    labels = np.array([one.label for one in labelled])
    label_digest = provenance.text_digest(
        " ".join(f"{c.utt_id}={n}" for c, n in zip(clips, labels, strict=True))
    )
    history = config.out / "train.h5"
    parents = [
        lineage.clips_parent(clips, config.manifest, history),
        lineage.speakers_parent(clips, config.manifest, history),
        Parent("labels", lineage.relative(config.manifest, history), label_digest),
    ]
    if encoder_dir is not None:
        parents.append(lineage.parent("encoder", encoder_dir, history))
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, up_to_date=True)
    held_out = np.zeros(len(clips), dtype=bool)
    notes: tuple[str, ...] = ()
    if config.validation:
        if len(clips) < 2:
            raise InputError(
                "a single clip cannot be split into training and validation. Use --validation 0."
            )
        rng = provenance.rng(config.seed, "train-source", "validation")
        held_out, notes = splits.held_out_speakers([one.speaker for one in clips], config.validation, rng)

    def work() -> TrainSourceResult:
        return _train(config, classes, labelled, encoder_dir, held_out, parents, notes, progress)

    if _tune(config, encoder_dir) != "head":
        return work()
    processes.in_shares(lambda some: _features(config, some, encoder_dir, progress), clips)
    return processes.by_first(work)


def _train(
    config: TrainSourceConfig,
    classes: tuple[str, ...],
    labelled: list[LabelledClip],
    encoder_dir: Path | None,
    held_out: np.ndarray,
    parents: list[Parent],
    notes: tuple[str, ...],
    progress: Progress | None,
) -> TrainSourceResult:
    import torch

    from mifuse_cli.methods import loop
    from mifuse_cli.methods.supervised import Supervised, choose_epoch
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device

    device = find_device(config.device)
    model, inputs, shape = _model_and_inputs(config, classes, labelled, encoder_dir, device, progress)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.tensor([one.label for one in labelled])
    options = loop.LoopOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        encoder_learning_rate=config.encoder_learning_rate or (1e-3 if encoder_dir is None else 2e-5),
        weight_decay=config.weight_decay,
        ema=0.0,
        seed=config.seed,
    )

    def told(what: str) -> Callable[[loop.State], None]:
        return lambda state: progress(what, state.epoch, config.epochs) if progress else None

    epochs, temperature, history = config.epochs, 1.0, np.empty((0, 3))
    if held_out.any():
        validated = choose_epoch(
            model,
            inputs,
            labels,
            held_out,
            config.label_smoothing,
            options,
            accuracy=lambda truth, predicted: evaluation.accuracy(truth, predicted, len(classes)),
            after_epoch=told("validating"),
        )
        history, epochs = validated.history, validated.epoch
        temperature = likeliest_temperature(validated.logits, labels.numpy()[held_out])
        model.load_state_dict(start)
    method = Supervised(labels, len(classes), config.label_smoothing)
    loop.run(
        loop.start(model, method, options),
        inputs,
        method,
        dataclasses.replace(options, epochs=epochs),
        after_epoch=told("training"),
    )
    speakers = {one.clip.speaker for one, out in zip(labelled, held_out, strict=True) if out}
    header = lineage.header(
        config,
        classes,
        parents,
        epochs=epochs,
        temperature=temperature,
        validation_clips=int(held_out.sum()),
        validation_speakers=sorted(name for name in speakers if name),
    )
    training = Training(
        header=header,
        utt_id=np.array([one.clip.utt_id for one in labelled]),
        columns_of_history=np.array(["cross_entropy", "validation_cross_entropy", "validation_ua"]),
        history=history,
        audio_sha256=lineage.content([one.clip for one in labelled]),
    )
    shape = dataclasses.replace(shape, temperature=temperature)
    processes.by_first(
        lambda: checkpoint.save(
            config.out,
            shape,
            model,
            inputs.statistics,
            encoder_dir or Path(),
            training,
            replace=config.replaces,
        )
    )
    return _result(config.out, notes=notes)


def _tune(config: TrainSourceConfig, encoder_dir: Path | None) -> str:
    """What to train: head, top-N or all.

    Raises:
        UsageError: not all of an encoder without weights to start from.
    """
    if config.tune == "auto":
        return "all" if encoder_dir is None else "head"
    if encoder_dir is None and config.tune != "all":
        raise UsageError("--encoder logmel is trained from scratch: use --tune all")
    return config.tune


def _features(
    config: TrainSourceConfig, clips: Sequence[Clip], encoder_dir: Path | None, progress: Progress | None
) -> np.ndarray:
    """Features (U, L, D) of clips from the frozen encoder, up to the highest layer that the head sees."""
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.encoder import count_states
    from mifuse_cli.model.features import FrozenEncoder, pooled_features

    assert encoder_dir is not None
    states = max(pick_layers(config.layers, count_states(encoder_dir))) + 1
    return pooled_features(
        clips,
        FrozenEncoder(encoder_dir, config.precision, config.pooling, states, config.encoder),
        lineage.digest(encoder_dir),
        device=find_device(config.device),
        encoding=config.encoding,
        progress=progress,
    )


def _model_and_inputs(
    config: TrainSourceConfig,
    classes: tuple[str, ...],
    labelled: list[LabelledClip],
    encoder_dir: Path | None,
    device: torch.device,
    progress: Progress | None,
) -> tuple[Classifier, Features | Waveforms, Shape]:
    import torch

    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.classifier import Classifier, Features, Waveforms, seeded
    from mifuse_cli.model.encoder import LogMelEncoder, count_states, load_encoder
    from mifuse_cli.model.prepare import trainable_part
    from mifuse_cli.model.standard import fit_standard, statistics

    clips = [one.clip for one in labelled]
    tune, encoder = _tune(config, encoder_dir), None
    if tune == "head":
        assert encoder_dir is not None
        states = count_states(encoder_dir)
        layers = pick_layers(config.layers, states)
        found = _features(config, clips, encoder_dir, progress)
        width = found.shape[2]
    else:
        with seeded(config.seed, "train-source", "encoder"):
            whole = (
                LogMelEncoder()
                if encoder_dir is None
                else load_encoder(encoder_dir, config.precision, config.pooling)
            )
        whole.precision = config.precision
        states = whole.layers
        layers = pick_layers(config.layers, states)
        whole.stop_at(max(layers))
        encoder = trainable_part(
            whole, tune, device=device, gradient_checkpointing=config.gradient_checkpointing
        )
        width = encoder.width
    shape = Shape(
        classes=classes,
        layers=layers,
        width=width,
        hidden=config.hidden,
        dropout=config.dropout,
        normalize=config.normalize,
        statistics_of="source",
        tune=tune,
        encoder=config.encoder,
        temperature=1.0,
        precision=config.precision,
        pooling=config.pooling,
        states=states,
    )
    with seeded(config.seed, "train-source", "head"):
        model = Classifier(encoder, checkpoint.new_head(shape), layers).to(device)
    speakers = [clip.speaker for clip in clips]
    if encoder is not None:
        return model, Waveforms(clips, config.normalize, None, config.micro_batch_seconds), shape
    features = torch.from_numpy(found[:, list(layers)]).to(device)
    standard = fit_standard(config.normalize, features, stored=None, speakers=speakers)
    return model, Features(standard(features, torch.arange(len(clips))), statistics(features)), shape


def pick_layers(layers: str, count: int) -> tuple[int, ...]:
    """Positions among ``count`` hidden states that ``--layers`` names.

    Raises:
        UsageError: a position that the encoder does not have.
    """
    if layers == "all":
        return tuple(range(count))
    if layers == "middle":
        return (count // 2,)
    picked: tuple[int, ...] = ()
    for part in layers.split(","):
        first, _, last = part.partition("-")
        picked += tuple(range(int(first), int(last or first) + 1))
    if not picked:
        raise UsageError(f"--layers {layers}: names no layer; a range is written as 0-6")
    if max(picked) >= count:
        raise UsageError(f"--layers {layers}: the encoder has hidden layers 0 to {count - 1}")
    return picked


def likeliest_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature in [0.05, 20] with the lowest negative log-likelihood of labels (U,) given logits (U, K)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _result(out: Path, *, up_to_date: bool = False, notes: tuple[str, ...] = ()) -> TrainSourceResult:
    made = Training.load(out / "train.h5")
    parameters = made.header.parameters
    return TrainSourceResult(
        out=out,
        clips=len(made.utt_id),
        validation_clips=parameters["validation_clips"],
        validation_speakers=len(parameters["validation_speakers"]),
        epochs=parameters["epochs"],
        validation_ua=float(made.history[parameters["epochs"] - 1, 2]) if len(made.history) else float("nan"),
        temperature=parameters["temperature"],
        up_to_date=up_to_date,
        notes=notes,
    )
