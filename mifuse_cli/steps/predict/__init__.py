"""``mifuse predict``: the emotions of recordings by a model, whole or in windows."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import audio, evaluation, lineage, manifest, provenance
from mifuse_cli.artifacts import Header, Parent, Predictions, Training
from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError
from mifuse_cli.files import check_place
from mifuse_cli.model.shape import read_shape
from mifuse_cli.steps.predict.config import PredictConfig, PredictResult
from mifuse_cli.steps.predict.kept import Kept, alone, kept_in, key_of
from mifuse_cli.steps.predict.output import Prediction, format_of, is_output, write
from mifuse_cli.steps.predict.parts import Part, parts_of

__all__ = ["PredictConfig", "PredictResult", "predict"]

_OF_THE_MODEL = ("method", "fusion", "refresh", "checkpoint")
"""Parameters of a student that are copied to the artifact of its predictions."""
_NAMED = 10


def predict(config: PredictConfig, *, progress: Progress | None = None) -> PredictResult:
    """Predict clips; those that cannot be read are skipped, and an interrupted run is continued.

    Raises:
        InputError: a model or manifest that cannot be read, no clip that can be predicted, clips without a speaker
            where each speaker's statistics are wanted, an output that exists.
        ArtifactError: the model is no mifuse checkpoint; an interrupted run left predictions of another model.
        UsageError: ``centre`` with a model that is no student of cross-fit labels.
    """
    if config.out is not None:
        check_place(config.out)
    shape = read_shape(config.model)
    kind = "" if config.out is None else format_of(config.out, config.format)
    if config.out is not None:
        _refuse_overwrite(config, config.out, kind, shape.classes)
    parts = parts_of(config)
    parents = []
    if config.out is not None and kind == "h5":
        parts.sort(key=lambda part: part.utt_id)
        parents = _parents(config, parts, config.out)
        if lineage.is_current(config, config.out, parents):
            return _up_to_date(config, config.out, shape.classes)

    from mifuse_cli.methods.student import check_centring
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import effective_mode
    from mifuse_cli.model.standard import check_speakers
    from mifuse_cli.steps.predict.predicting import How, encode, predictions

    device, loaded = find_device(config.device), checkpoint.load(config.model)
    normalize = config.normalize or shape.normalize
    how = How(effective_mode(normalize, shape.statistics_of), config.centre, config.n_samples, config.seed)
    if how.centre:
        check_centring(loaded.head, config.model)
    if how.mode == "speaker":
        check_speakers([part.speaker for part in parts])
    identity = {
        "model": lineage.digest(config.model),
        "settings": [how.mode, how.centre, how.passes, how.seed],
    }
    with _kept(config.out, identity) as kept:
        continued = len(kept.keys() & {key_of(part) for part in parts})
        encode(parts, kept, loaded, how, device=device, workers=config.workers, progress=progress)
        if not kept.keys():
            raise InputError(_none_predicted(parts, kept))

        def found() -> Iterator[tuple[Part, np.ndarray | str]]:
            return predictions(parts, kept, loaded, how, device)

        prior = _prior(config, found)
        seen = _Counted(_decided(found(), shape.classes, prior))
        if config.out is None:
            told = tuple(row.as_dict(shape.classes, config.decision) for row in seen)
            return _result(config, shape.classes, seen, prior, told=told)
        history = Training.load(config.model / "train.h5")
        write(
            config.out,
            kind,
            seen,
            shape.classes,
            config.decision,
            mi=config.n_samples > 0,
            bounded=any(part.excerpt.end is not None for part in parts),
            header=_header(config, shape.classes, parents, parts, history, normalize, prior),
            gold=history.gold,
        )
    return _result(config, shape.classes, seen, prior, continued=continued)


def _refuse_overwrite(config: PredictConfig, out: Path, kind: str, classes: tuple[str, ...]) -> None:
    """As `lineage.refuse_overwrite`, for text too."""
    if kind == "h5":
        lineage.refuse_overwrite(config, out, Predictions)
        return
    lineage.refuse_inputs(config, out)
    if not os.path.lexists(out):
        return
    if not is_output(out, kind, classes):
        raise InputError(
            f"{out}: exists, and was not written by mifuse predict in this format for these classes. Choose another "
            "--out, or move that away; neither --force nor --update replaces it."
        )
    if not config.replaces:
        raise InputError(f"{out}: exists already. Choose another --out, or pass --force to overwrite it.")


class _Counted:
    """Predictions, counted as they are taken."""

    def __init__(self, rows: Iterable[Prediction]) -> None:
        self._rows = rows
        self.by_label: Counter[str] = Counter()
        self.recordings: set[Path] = set()
        self.reasons: dict[str, str] = {}
        self.skipped = 0

    def __iter__(self) -> Iterator[Prediction]:
        for row in self._rows:
            if row.skipped:
                self.skipped += 1
                if len(self.reasons) < _NAMED:
                    self.reasons[row.utt_id] = row.skipped
            else:
                self.by_label[row.label] += 1
                self.recordings.add(row.excerpt.path)
            yield row


@contextmanager
def _kept(out: Path | None, identity: dict[str, Any]) -> Iterator[Kept]:
    """What was made, beside the output; deleted at the end, or if there is nothing in it."""
    if out is None:
        with tempfile.TemporaryDirectory() as directory, kept_in(Path(directory) / "part", identity) as kept:
            yield kept
        return
    file, done = out.with_name(out.name + ".part"), False
    with alone(file):
        try:
            with kept_in(file, identity) as kept:
                try:
                    yield kept
                    done = True
                finally:
                    done = done or not kept.keys()
        finally:
            if done:
                file.unlink(missing_ok=True)


def _decided(
    found: Iterable[tuple[Part, np.ndarray | str]], classes: tuple[str, ...], prior: np.ndarray | None
) -> Iterator[Prediction]:
    for part, values in found:
        if isinstance(values, str):
            yield Prediction(part.utt_id, part.excerpt, None, "", None, values)
            continue
        probs, mi = values[: len(classes)], float(values[-1])
        index = (
            evaluation.predicted_classes(probs)
            if prior is None
            else evaluation.prior_corrected_classes(probs[None], prior)[0]
        )
        yield Prediction(
            part.utt_id, part.excerpt, probs, classes[int(index)], None if np.isnan(mi) else mi, ""
        )


def _prior(config: PredictConfig, found: Any) -> np.ndarray | None:
    """What prior-corrected decisions divide by, (K,): of a student the mean of its predictions for the target that it
    was adapted to, else of those at hand; None for plain decisions.
    """
    if config.decision == "plain":
        return None
    target = config.model / "predictions.h5"
    if target.is_file():
        return evaluation.predicted_prior(Predictions.load(target).probs.astype(float))
    clips, total = 0, np.zeros(1)
    for _, values in found():
        if not isinstance(values, str):
            clips, total = clips + 1, total + values[:-1].astype(float)
    return total / clips


def _none_predicted(parts: Sequence[Part], kept: Kept) -> str:
    return f"none of {len(parts)} clips can be predicted, the first because of this: {kept.values(parts[0])}"


def _parents(config: PredictConfig, parts: Sequence[Part], out: Path) -> list[Parent]:
    """Model and audio, as far as it can be read, as parents."""
    hashes: dict[Path, str] = {}
    for path in {part.excerpt.path for part in parts}:
        try:
            hashes[path] = audio.file_sha256(path)
        except InputError:  # told when it is decoded
            hashes[path] = ""
    heard = manifest.digest_of((part.utt_id, hashes[part.excerpt.path]) for part in parts)
    where = config.manifest or config.wav_dir or Path()
    speakers = provenance.text_digest(" ".join(f"{part.utt_id}={part.speaker}" for part in parts))
    return [
        lineage.parent("model", config.model, out),
        Parent("clips", lineage.relative(where, out), heard),
        Parent("speakers", lineage.relative(where, out), speakers),
    ]


def _header(
    config: PredictConfig,
    classes: tuple[str, ...],
    parents: Sequence[Parent],
    parts: Sequence[Part],
    history: Training,
    normalize: str,
    prior: np.ndarray | None,
) -> Header:
    trained = set(history.utt_id.tolist())
    of_model = history.header.parameters
    return lineage.header(
        config,
        classes,
        parents,
        normalize=normalize,
        centre=config.centre,
        decision=config.decision,
        **({} if prior is None else {"prior": prior.tolist()}),
        seen_in_training=sum(part.utt_id in trained for part in parts) / len(parts),
        **{name: of_model[name] for name in _OF_THE_MODEL if name in of_model},
    )


def _up_to_date(config: PredictConfig, out: Path, classes: tuple[str, ...]) -> PredictResult:
    """The result of a run that made the artifact as it is."""
    made = Predictions.load(out)
    assert made.file is not None
    given = made.header.parameters.get("prior")
    prior = None if given is None else np.array(given)
    mi = np.full(1, np.nan)
    rows = (
        (
            Part(utt_id, audio.Excerpt(Path(file))),
            "see the run that made it" if np.isnan(probs).any() else np.concatenate([probs, mi]),
        )
        for utt_id, file, probs in zip(made.utt_id.tolist(), made.file.tolist(), made.probs, strict=True)
    )
    seen = _Counted(_decided(rows, classes, prior))
    for _ in seen:
        pass
    return _result(config, classes, seen, prior, up_to_date=True)


def _result(
    config: PredictConfig,
    classes: tuple[str, ...],
    seen: _Counted,
    prior: np.ndarray | None,
    *,
    told: tuple[dict[str, Any], ...] = (),
    continued: int = 0,
    up_to_date: bool = False,
) -> PredictResult:
    clips = seen.by_label.total()
    notes = []
    if seen.skipped:
        name, reason = next(iter(seen.reasons.items()))
        notes.append(f"{seen.skipped} of {clips + seen.skipped} clips are skipped, such as {name}: {reason}")
    if prior is not None and not (config.model / "predictions.h5").is_file():
        notes.append(
            f"the prior of the decision is the mean prediction for these {clips} clips; a student has that of the "
            "target that it was adapted to"
        )
    return PredictResult(
        out=config.out,
        clips=clips,
        recordings=len(seen.recordings),
        continued=continued,
        skipped=seen.skipped,
        reasons=seen.reasons,
        classes=classes,
        decision=config.decision,
        prior={} if prior is None else dict(zip(classes, map(float, prior), strict=True)),
        predicted={name: seen.by_label[name] for name in classes},
        predictions=told,
        up_to_date=up_to_date,
        notes=tuple(notes),
    )
