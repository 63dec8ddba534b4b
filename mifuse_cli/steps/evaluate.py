"""``mifuse evaluate``: score a model or stored predictions against labels."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import __version__, artifacts, evaluation, fusion, lineage, manifest, provenance
from mifuse_cli.artifacts import Evaluation, Fused, Header, Lalm, Parent, Predictions, Source, Training
from mifuse_cli.config import (
    EncodingConfig,
    Progress,
    at_least,
    normalize_problems,
    one_of,
    option,
)
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import refuse_existing
from mifuse_cli.fusion import FusionSettings
from mifuse_cli.manifest import Clip, Clips, read_labelled
from mifuse_cli.model.shape import read_shape
from mifuse_cli.reporting.drawing import PLOT_MARKS, PLOT_SUFFIXES, draw_evaluation
from mifuse_cli.reporting.tables import FORMS, score_table

_CLIPS_AT_A_TIME = 2**15
_log = logging.getLogger("mifuse")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EncodingConfig):
    """Score a model, or the distributions in any artifact, against the labels of a manifest."""

    model: Path | None = option(None, "Checkpoint directory to score.")
    predictions: Path | None = option(
        None, "Artifact to score instead of a model: from query-lalm, sample-source, fuse, train or predict."
    )
    manifest: Path = option(
        help="CSV of the clips with their labels in the column emotion; those without one are left out."
    )
    out: Path | None = option(
        None, "Artifact to write; default: none, the scores are only printed.", endings=(".h5", ".hdf5")
    )
    normalize: str = option(
        "",
        "Statistics that standardise the head's input: source, target or speaker; default: the checkpoint's.",
    )
    centre: bool = option(
        False,
        "For a student of cross-fit labels and clips of other speakers than those it was adapted to: move the head's "
        "input so that its mean over all clips of the manifest is that of the classes that are predicted.",
    )
    resamples: int = option(evaluation.RESAMPLES, "Bootstrap draws of the 95 % interval.")
    plot: Path | None = option(
        None, "Also draw confusion matrix and reliability diagram: FILE.png, FILE.svg or FILE.pdf."
    )
    format: str = option("text", f"How the scores are printed: text, {', '.join(FORMS)}.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if (self.model is None) == (self.predictions is None):
            yield "expected one of --model and --predictions" + (", not both" if self.model else "")
        if self.centre and self.model is None:
            yield "--centre: moves the input of a model, give --model"
        yield from at_least("--resamples", self.resamples, 100)
        yield from one_of("--format", self.format, ["text", *FORMS])
        if self.plot is not None and self.plot.suffix.lower() not in PLOT_SUFFIXES:
            yield f"--plot {self.plot}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}"
        yield from normalize_problems(self.normalize)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """The score; rates are in [0, 1].

    Attributes:
        out: the artifact, None if there is none.
        signature: the protocol in one line.
        classes: names in order.
        metrics: all fields of `evaluation.Score` except the confusion matrix.
        confusion: K rows of K + 1 counts, true by predicted class, last column: no prediction.
        estimate: ``wa`` and ``ua`` over all clips with their intervals, where the scored ones were chosen by pick;
            else empty.
        table: the scores in the form of --format, "" for text.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path | None
    signature: str
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    confusion: list[list[int]]
    estimate: dict[str, float]
    table: str
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> EvaluateResult:
    """Score predictions by unweighted accuracy with its interval, and by further metrics.

    Raises:
        InputError: input that cannot be read, labels that are missing or unknown, an output that exists.
        UsageError: ``centre`` with a model that is no student of cross-fit labels.
        ArtifactError: labelled clips without a prediction; no labelled clip but those given to fuse.
    """
    if config.out is not None:
        lineage.refuse_overwrite(config, config.out, Evaluation)
    if config.plot is not None:
        refuse_existing(config.plot, config.replaces, marks=PLOT_MARKS)
    system = config.model or config.predictions
    assert system is not None
    if config.model:
        read_shape(config.model)  # the first to say what is there instead of a model
    elif artifacts.is_checkpoint(system):
        raise InputError(
            f"{system}: is {artifacts.CHECKPOINT}, expected an artifact. Score it with --model "
            f"{shlex.quote(str(system))}, or what train has predicted with --predictions and the predictions.h5 in it."
        )
    made = _read(system / "train.h5" if config.model else system)
    if config.predictions:
        made.distributions(str(system))  # the first to say that there are none
    labelled = read_labelled(
        config.manifest, made.header.classes, need_audio=config.model is not None, some=True
    )
    if not labelled:
        raise InputError(f"{config.manifest}: the column 'emotion' is empty throughout. Label some clips.")
    if config.model and len(labelled) < (listed := len(Clips(config.manifest, None, need_audio=False))):
        _log.info("%d of %d clips have no label and are left out", listed - len(labelled), listed)
    ids = np.array([one.clip.utt_id for one in labelled])
    inclusion = _inclusion(config, [one.clip for one in labelled])
    text = " ".join(f"{one.clip.utt_id}={one.label}={one.clip.speaker}" for one in labelled)
    if inclusion is not None:
        text += f" picked with {inclusion.tolist()}"
    place = config.out or Path()  # from which paths of parents are written
    parents = [
        lineage.parent("model" if config.model else "predictions", system, place),
        Parent("labels", lineage.relative(config.manifest, place), provenance.text_digest(text)),
    ]
    clips = [one.clip for one in labelled]
    if config.model:
        parents.append(lineage.clips_parent(clips, config.manifest, place))
        parents.append(lineage.speakers_parent(clips, config.manifest, place))
    if config.out is not None and lineage.is_current(config, config.out, parents):
        current = Evaluation.load(config.out)
        # One of an earlier version lacks some metrics.
        if current.header.parameters["metrics"].keys() >= evaluation.METRICS.keys():
            return _result(config, current, up_to_date=True)
    if config.model:
        predicted = _predict(config, clips, progress)
        probs = predicted
    else:
        parts = artifacts.to_merge((str(system), made.header))
        labelled_at = artifacts.positions(ids, str(config.manifest), made.utt_id, str(system), parts)
        predicted = made.distributions(str(system))
        probs = predicted[labelled_at]
    truth = np.array([one.label for one in labelled])
    scored = ~np.isin(ids, made.gold)
    if not scored.any():
        raise ArtifactError(
            f"{config.manifest}: all of its clips had their true class given to fuse --gold, so that none is left to "
            "score. Give the labels of the other clips too."
        )
    ids, probs, truth = ids[scored], probs[scored], truth[scored]
    prior = None if len(ids) == len(predicted) else np.nanmean(predicted.astype(float), axis=0)
    clips = [clip for clip, kept in zip(clips, scored, strict=True) if kept]
    found = evaluation.score(
        truth,
        probs.astype(float),
        speakers=manifest.speakers_of(clips),
        prior=prior,
        resamples=config.resamples,
        rng=provenance.rng(config.seed, "evaluate"),
    )
    metrics = {key: value for key, value in asdict(found).items() if key != "confusion"}
    answered = ~np.isnan(probs).any(axis=1)
    clips_in, sure, right = evaluation.reliability(truth[answered], probs[answered].astype(float))
    artifact = Evaluation(
        header=lineage.header(
            config,
            made.header.classes,
            parents,
            metrics=metrics,
            signature=_signature(config, made, found, _seen(made, ids, clips)),
            gold=int((~scored).sum()),
            predicted=len(predicted),
            **({} if inclusion is None else {"estimate": _estimate(config, truth, probs, inclusion[scored])}),
        ),
        utt_id=ids,
        probs=probs.astype(np.float32),
        truth=truth.astype(np.uint8),
        confusion=found.confusion,
        reliability_clips=clips_in,
        reliability_confidence=sure,
        reliability_accuracy=right,
    )
    if config.out is not None:
        artifact.save(config.out, replace=config.replaces)
    return _result(config, artifact)


@dataclass(frozen=True)
class _Made:
    """What is scored.

    Attributes:
        kind, header: of its artifact.
        utt_id: (U,) ids of its clips.
        gold: (G,) ids of those whose true class it was made with.
        probs: (U, K) its distributions, NaN where there is none; None if it holds none.
        samples: answers a clip, of a LALM.
        training: of a model.
    """

    kind: str
    header: Header
    utt_id: np.ndarray
    gold: np.ndarray
    probs: np.ndarray | None
    samples: int = 0
    training: Training | None = None

    def distributions(self, where: str) -> np.ndarray:
        """The distributions (U, K).

        Raises:
            ArtifactError: the artifact holds no predictions.
        """
        if self.probs is None:
            scores = (
                f" The scores in it: mifuse show {shlex.quote(where)}" if self.kind == Evaluation.kind else ""
            )
            raise ArtifactError(
                f"{where}: is {artifacts.made_by(self.kind)}. Expected predictions to score: an artifact of "
                f"query-lalm, sample-source, fuse or predict, or the predictions.h5 of train.{scores}"
            )
        return self.probs


def _read(path: Path) -> _Made:
    """What is scored of an artifact of any kind, of which no more is read."""
    with artifacts.reading(path) as found:
        gold = found.read("gold") if "gold" in found else np.zeros(0, dtype=str)
        about = (found.kind, found.header, found.utt_id, gold)
        match found.kind:
            case Lalm.kind:
                probs = found.column("probs")
                starts = range(0, len(probs), _CLIPS_AT_A_TIME)
                parts = (probs[start : start + _CLIPS_AT_A_TIME].astype(float) for start in starts)
                mean = np.concatenate([fusion.mean_and_mi(part)[0] for part in parts])
                return _Made(*about, mean, probs.shape[1])
            case Source.kind:
                return _Made(*about, found.read("point"))
            case Fused.kind | Predictions.kind:
                return _Made(*about, found.read("probs"))
            case Training.kind:
                return _Made(*about, None, training=Training.load(path))
        return _Made(*about, None)


def _predict(config: EvaluateConfig, clips: list[Clip], progress: Progress | None) -> np.ndarray:
    from mifuse_cli.methods.student import centred, check_centring
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.classifier import predict
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import frozen_classifier, frozen_inputs

    assert config.model is not None
    device = find_device(config.device)
    loaded = checkpoint.load(config.model)
    inputs = frozen_inputs(
        loaded,
        clips,
        normalize=config.normalize,
        device=device,
        encoding=config.encoding,
        progress=progress,
    )
    model = frozen_classifier(loaded, device)
    if not config.centre:
        return predict(model, inputs)
    check_centring(loaded.head, config.model)
    return predict(model, centred(model, inputs))


def _seen(made: _Made, ids: np.ndarray, clips: list[Clip]) -> float:
    """Share of the scored clips that the model was trained on; of predictions, of those that they are of."""
    if made.training is not None:
        return float(lineage.heard_in(made.training, clips).mean())
    return float(made.header.parameters.get("seen_in_training", np.isin(ids, made.utt_id).mean()))


def _signature(config: EvaluateConfig, made: _Made, found: evaluation.Score, seen: float) -> str:
    parameters = made.header.parameters
    of_source = made.kind in ("training", "source", "predictions")
    system = parameters.get("method") or ("source-only" if of_source else made.kind)
    parts: dict[str, object] = {"system": system}
    if "method" in parameters:
        parts["protocol"] = {1.0: "transductive", 0.0: "inductive"}.get(seen, "mixed")
        if len(made.gold):
            parts["protocol"] = f"few-gold:{len(made.gold)}+{parts['protocol']}"
        parts["checkpoint"] = parameters["checkpoint"]
        # Students of a "recipe" were trained before labels were made by fuse alone.
        if "fusion" in parameters:
            parts |= FusionSettings.of(parameters["fusion"]).described()
        parts |= {name: parameters[name] for name in ("recipe", "refresh") if name in parameters}
    elif made.kind == Training.kind or "seen_in_training" in parameters:
        parts["protocol"] = "unseen" if seen == 0 else "seen-in-training"
        parts["checkpoint"] = "source-validation"
    if normalize := config.normalize or parameters.get("normalize") or made.header.config.get("normalize"):
        parts["norm"] = normalize
    if config.centre or parameters.get("centre"):
        parts["centred"] = "these-clips"
    if made.kind == Lalm.kind:
        parts |= {"lalm": parameters["model"], "samples": made.samples}
    if made.kind == Fused.kind:
        if len(made.gold):
            parts["protocol"] = f"few-gold:{len(made.gold)}"
        parts |= FusionSettings.of({**made.header.config, **parameters}).described()
    return evaluation.signature(
        **parts,
        decision=list(evaluation.DECISIONS),
        classes=list(made.header.classes),
        n=found.n,
        missing=f"{found.missing}(wrong)",
        ci=f"95%/{found.interval}/{config.resamples}",
        seed=made.header.seed,
        v=__version__,
    )


def _inclusion(config: EvaluateConfig, clips: Sequence[Clip]) -> np.ndarray | None:
    """Probability (U,) with which each of the clips was picked; None unless the manifest tells it of all.

    Raises:
        InputError: it is no number above 0 and at most 1.
    """
    told = [clip.extra.get("inclusion", "").strip() for clip in clips]
    if not all(told):
        return None
    found = np.zeros(len(told))
    for number, (clip, text) in enumerate(zip(clips, told, strict=True)):
        try:
            found[number] = float(text)
        except ValueError:
            found[number] = np.nan
        if not 0 < found[number] <= 1:
            raise InputError(
                f"{config.manifest}, {clip.utt_id}: inclusion {text!r} is no probability above 0, as mifuse pick "
                "writes it. Correct it, or take the column out."
            )
    return found


def _estimate(
    config: EvaluateConfig, truth: np.ndarray, probs: np.ndarray, inclusion: np.ndarray
) -> dict[str, float]:
    return evaluation.estimated_accuracy(
        truth,
        probs.astype(float),
        inclusion,
        resamples=config.resamples,
        rng=provenance.rng(config.seed, "estimate"),
    )


def _result(config: EvaluateConfig, artifact: Evaluation, *, up_to_date: bool = False) -> EvaluateResult:
    if config.plot is not None:
        draw_evaluation(config.plot, artifact)
    parameters = artifact.header.parameters
    missing = parameters["metrics"]["missing"]
    notes = (f"{missing} clips have no prediction and count as wrong",) if missing else ()
    gold = parameters.get("gold", 0)
    if gold:
        notes = (*notes, f"{gold} clips whose true class was given to fuse --gold are left out")
    scored, predicted = len(artifact.utt_id), parameters.get("predicted", 0)
    if scored + gold < predicted:
        notes = (*notes, f"{scored} of {predicted} predictions are scored, those with a label")
    notes = (*notes, *fusion.one_sided("predictions", artifact.probs, artifact.header.classes))
    if scored == 1:
        notes = (*notes, "one clip: there is nothing to draw an interval from")
    of_class = zip(artifact.header.classes, artifact.confusion.sum(axis=1).tolist(), strict=True)
    if "estimate" in parameters:
        notes = (
            *notes,
            "clips were picked with unequal probabilities: the scores are of these clips, the estimates of all",
        )
    absent = [name for name, clips in of_class if not clips]
    if absent:
        notes = (
            *notes,
            f"no clip is {' or '.join(absent)}: UA and macro F1 are means over the other classes",
        )
    return EvaluateResult(
        out=config.out,
        signature=parameters["signature"],
        classes=artifact.header.classes,
        metrics=parameters["metrics"],
        confusion=artifact.confusion.tolist(),
        estimate=parameters.get("estimate", {}),
        table="" if config.format == "text" else score_table(artifact, config.format),
        up_to_date=up_to_date,
        notes=notes,
    )
