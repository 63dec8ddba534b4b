"""Fusion, adaptation of a head, and scores for a notebook: arrays in, frozen dataclasses out, no files.

Axes: U clips, N or M samples, T teachers, K classes, D features, L layers. Every function checks what it is given:
shapes, finite values, rows that sum to 1, class indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mifuse_cli import evaluation, fusion, provenance
from mifuse_cli.config import options_of
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.evaluation import Score
from mifuse_cli.fusion import Fusion, FusionSettings
from mifuse_cli.fusion.estimators import summed
from mifuse_cli.methods import adaptation
from mifuse_cli.methods.adaptation import STUDENTS, WITHOUT_STUDENT, AdaptationConfig, Options, adapt
from mifuse_cli.methods.teachers import Teachers

if TYPE_CHECKING:
    from mifuse_cli.fusion.cross_fit import Structure
    from mifuse_cli.model.classifier import Classifier, Features

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A classification head over features of clips: a hidden layer with dropout, then class logits.

    Features are standardised by their own mean and deviation over the clips that a function is given.

    Attributes:
        weights: tensors of `model.classifier.Head` by name.
        classes: K.
        dropout: probability of the dropout between hidden layer and logits.
        history: (E, C) mean of every loss term in every epoch; terms: their names.
    """

    weights: Mapping[str, np.ndarray]
    classes: int
    dropout: float
    history: np.ndarray = field(repr=False)
    terms: tuple[str, ...]

    def predict(self, features: ArrayLike) -> np.ndarray:
        """Probabilities (U, K) for features (U, D) or (U, L, D), without dropout."""
        from mifuse_cli.model.classifier import predict

        classifier, inputs = self._ready(features)
        return predict(classifier, inputs)

    def sample(self, features: ArrayLike, passes: int = 10, *, seed: int = 0) -> np.ndarray:
        """Probabilities (U, M, K) of M passes with dropout (MC dropout) for features (U, D) or (U, L, D).

        Raises:
            InputError: fewer than two passes, or a head without dropout.
        """
        from mifuse_cli.model.classifier import sample

        _at_least("passes", passes, 2)
        classifier, inputs = self._ready(features)
        return sample(classifier, inputs, passes, provenance.named_seed(seed, "sample-source"))

    def _ready(self, features: ArrayLike) -> tuple[Classifier, Features]:
        import torch

        inputs = _inputs(features)
        layers, width = inputs.values.shape[1:]
        expected = (len(self.weights["mix"]), len(self.weights["scale"]))
        if (layers, width) != expected:
            raise InputError(
                f"features: {layers} layers of {width} features, the head was trained on {expected[0]} of {expected[1]}"
            )
        hidden = len(self.weights["hidden.bias"])
        classifier = _classifier(layers, width, self.classes, hidden, self.dropout)
        classifier.head.load_state_dict({name: torch.tensor(one) for name, one in self.weights.items()})
        return classifier, inputs


def fuse_arrays(
    samples: Sequence[ArrayLike],
    *,
    settings: FusionSettings | None = None,
    features: ArrayLike | None = None,
    seed: int = 0,
) -> Fusion:
    """Fuse the samples of T teachers into one label a clip, as ``mifuse fuse`` does.

    Args:
        samples: (U, N, K) distributions of every teacher, NaN rows where missing, each with its own N; the source
            classifier is the last.
        settings: how; default: ``cross-fit`` if there are features, else ``mi``, the paper's weighting.
        features: (U, D) or (U, L, D) of the clips, for ``cross-fit``. Unlike the command, this function looks for no
            voices, since it does not know the classifier.
        seed: of random draws; without voices there are none, so that it makes no difference at present.

    Returns:
        labels ``probs`` (U, K), ``weights`` (U, T), ``mean`` (U, T, K) and mutual information ``mi`` (U, T) in nats;
        of ``cross-fit`` also the ``forecast`` of unweighted accuracies.

    Raises:
        InputError: samples or features with a wrong shape, rows that are no distributions, or a clip without any.
    """
    if settings is None:
        settings = FusionSettings(weighting="mi" if features is None else fusion.CROSS_FIT)
    _of_type("settings", settings, FusionSettings)
    if settings.is_weighted and features is not None:
        raise InputError(f"features: --weighting {settings.weighting} makes no use of them; leave them out")
    if not isinstance(samples, list | tuple) or len(samples) < 2:
        raise InputError("samples: expected a list of two arrays or more, one of each teacher")
    teachers = [_distributions(one, f"samples[{t}]", "U N K") for t, one in enumerate(samples)]
    for t, one in enumerate(teachers):
        if (len(one), one.shape[-1]) != (len(teachers[0]), teachers[0].shape[-1]):
            raise InputError(
                f"samples[{t}]: {len(one)} clips and {one.shape[-1]} classes, samples[0] has {len(teachers[0])} and "
                f"{teachers[0].shape[-1]}"
            )
        if np.isnan(one).all():
            raise InputError(f"samples[{t}]: holds no valid distribution at all")
    if np.isnan(teachers[-1]).any():
        raise InputError(
            f"samples[{len(teachers) - 1}]: the source classifier, the last teacher, has missing samples"
        )
    structure = None
    if not settings.is_weighted:
        if features is None:
            raise InputError("features: cross-fit needs them; or give other settings, such as weighting='mi'")
        structure = _structure(_features(features, len(teachers[0])), teachers[-1])
    random = partial(provenance.rng, seed)
    try:
        return fusion.fuse_samples(teachers, settings, structure=structure, random=random)
    except ValueError as error:
        raise InputError(f"samples: {error}") from None


def score_predictions(
    truth: ArrayLike,
    probs: ArrayLike,
    *,
    speakers: Sequence[str] | None = None,
    prior: ArrayLike | None = None,
    resamples: int = evaluation.RESAMPLES,
    seed: int = 0,
) -> Score:
    """Score predictions: unweighted accuracy of two decisions with 95 % intervals, weighted accuracy, macro F1, ECE,
    confusion.

    The decisions are the most probable class, argmax p, which all other scores are of, and the one that divides by the
    class prior, argmax p / prior.

    Args:
        truth: (U,) true class indices, 0 to K - 1.
        probs: (U, K) predicted distributions, NaN rows where there is none, which count as wrong.
        speakers: of every clip; the bootstrap then draws whole speakers, else clips.
        prior: (K,) mean predicted distribution over all clips that were predicted, where these are only a part of
            them; default: the mean over these.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        InputError: other shapes, rows that are no distributions, or class indices that are not among the K.
    """
    predicted = _distributions(probs, "probs", "U K")
    labels = _classes(truth, len(predicted), predicted.shape[1])
    _at_least("resamples", resamples, 1)
    if speakers is not None and len(speakers) != len(labels):
        raise InputError(f"speakers: of {len(speakers)} clips, expected {len(labels)}")
    if speakers is not None and not all(speakers):
        raise InputError("speakers: some are unknown; leave them out, so that clips are drawn")
    rng = provenance.rng(seed, "evaluate")
    names = None if speakers is None else list(map(str, speakers))
    pi = None if prior is None else _prior(prior, predicted.shape[1])
    return evaluation.score(labels, predicted, speakers=names, prior=pi, resamples=resamples, rng=rng)


def train_head(
    features: ArrayLike,
    truth: ArrayLike,
    *,
    classes: int,
    hidden: int = 128,
    dropout: float = 0.3,
    epochs: int = 30,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> TrainedHead:
    """Train a head on labelled source clips, every class with the same total weight.

    Args:
        features: (U, D) or (U, L, D).
        truth: (U,) class indices.
        classes: K, which may be more than occur.
        hidden: units of the hidden layer.
        dropout: probability, above 0 if the head is to be sampled.
        epochs: of AdamW.
        learning_rate: of AdamW.
        seed: of weights, batches and dropout.

    Raises:
        InputError: other shapes, features that are not finite, or class indices that are not among the K.
        UsageError: a number that makes no sense.
    """
    from mifuse_cli.model.classifier import seeded

    options = _options(method="oracle", epochs=epochs, learning_rate=learning_rate, seed=seed)
    _at_least("hidden", hidden, 1)
    _at_least("classes", classes, 2)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout: {dropout}, expected 0 or more and below 1")

    inputs = _inputs(features)
    labels = _classes(truth, len(inputs), classes)
    with seeded(seed, "train-source", "head"):
        _, layers, width = inputs.values.shape
        classifier = _classifier(layers, width, classes, hidden, dropout)
    return _trained(classifier, inputs, options, dropout, truth=labels)


def adapt_head(
    head: TrainedHead,
    features: ArrayLike,
    fused: Fusion,
    *,
    method: str = "mifuse",
    refresh: int | None = None,
    passes: int = 10,
    epochs: int = 30,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> TrainedHead:
    """Adapt a source head to unlabelled clips, as ``mifuse train`` does; the head that is given stays as it is.

    Args:
        head: of `train_head`, whose samples were fused.
        features: (U, D) or (U, L, D) of the target clips.
        fused: of `fuse_arrays`, of the same clips.
        method: as of ``mifuse train --method``, but ``oracle``; for others see `predict_clips`.
        refresh: as of ``mifuse train --refresh``.
        passes: dropout passes of the teacher at a refresh.
        epochs: of AdamW.
        learning_rate: of AdamW.
        seed: of batches and dropout.

    Raises:
        InputError: features or labels of other clips, classes or widths, or an unknown method.
        UsageError: ``refresh`` with labels of ``cross-fit`` or another method, a number that makes no sense.
    """
    options = _options(method=method, epochs=epochs, learning_rate=learning_rate, refresh=refresh, seed=seed)
    _of_type("head", head, TrainedHead)
    _of_type("fused", fused, Fusion)
    _at_least("passes", passes, 2)
    if refresh is not None and method != "mifuse":
        raise UsageError(f"--refresh {refresh}: --method {method} has no fused labels; leave it out")
    _one_of("method", method, [name for name in STUDENTS if name != "oracle"])
    classifier, inputs = head._ready(features)
    teachers = _teachers(fused, passes, len(inputs), head.classes)
    return _trained(classifier, inputs, options, head.dropout, teachers=teachers)


def predict_clips(head: TrainedHead, features: ArrayLike, fused: Fusion, *, method: str) -> np.ndarray:
    """Predict unlabelled clips by a method that corrects predictions and trains no student, as ``compare`` does.

    Args:
        head: of `train_head`, whose samples were fused.
        features: (U, D) or (U, L, D) of the clips.
        fused: of `fuse_arrays`, of the same clips; of it, only the LALMs' answers are used, by ``lame`` nothing.
        method: ``lame``, ``lame+lalm`` or ``emo-tta``.

    Returns:
        Probabilities (U, K).

    Raises:
        InputError: features or answers of other clips, classes or widths, no answers at all, or an unknown method.
    """
    _of_type("head", head, TrainedHead)
    _of_type("fused", fused, Fusion)
    _one_of("method", method, WITHOUT_STUDENT)
    classifier, inputs = head._ready(features)
    teachers = _teachers(fused, 0, len(inputs), head.classes)
    return adaptation.predict_clips(classifier, inputs, method, teachers=teachers)


def _teachers(fused: Fusion, passes: int, clips: int, classes: int) -> Teachers:
    """What was fused, if it is of so many clips and classes."""
    if fused.probs.shape != (clips, classes):
        raise InputError(
            f"fused: labels of {fused.probs.shape[0]} clips and {fused.probs.shape[1]} classes, expected {clips} "
            f"and {classes}"
        )
    return Teachers(fused.probs, fused.mean, fused.mi, fused.settings, passes, fused.top_counts)


def _trained(
    classifier: Classifier, inputs: Features, options: Options, dropout: float, **learned: Any
) -> TrainedHead:
    made = adapt(classifier, inputs, options, **learned)
    weights = {name: one.detach().numpy().copy() for name, one in classifier.head.state_dict().items()}
    return TrainedHead(weights, classifier.head.out.out_features, dropout, made.history, made.terms)


def _options(method: str, **changes: Any) -> Options:
    """The defaults of ``mifuse train`` with changes, which are checked as there."""
    return options_of(AdaptationConfig(**changes), Options, method=method)


def _at_least(name: str, value: int, lowest: int) -> None:
    if not isinstance(value, int | np.integer) or value < lowest:
        raise InputError(f"{name}: {value!r}, expected a whole number, {lowest} or more")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r}: expected one of {', '.join(allowed)}")


def _of_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise InputError(f"{name}: is of type {type(value).__name__}, expected {wanted.__name__}")


def _classifier(layers: int, width: int, classes: int, hidden: int, dropout: float) -> Classifier:
    from mifuse_cli.model import classifier

    head = classifier.Head(layers, width, classes, hidden, dropout)
    return classifier.Classifier(None, head.eval(), range(layers))


def _inputs(features: ArrayLike) -> Features:
    """Features standardised over the clips."""
    import torch

    from mifuse_cli.model.classifier import Features
    from mifuse_cli.model.standard import fit_standard, statistics

    values = torch.from_numpy(_features(features))
    standard = fit_standard("target", values, stored=None, speakers=())
    return Features(standard(values, torch.arange(len(values))), statistics(values))


def _structure(features: np.ndarray, source: np.ndarray) -> Structure:
    """What cross-fit uses, without voices."""
    from mifuse_cli.fusion.cross_fit import Structure

    return Structure(source=source.mean(axis=1), hidden=features, head_input=features, classify=None)


def _features(features: ArrayLike, clips: int | None = None) -> np.ndarray:
    """Features (U, L, D) in float32."""
    found = _numbers(features, "features")
    if found.ndim == 2:
        found = found[:, None]
    if found.ndim != 3 or not found.size:
        raise InputError(f"features: of shape {found.shape}, expected (U, D) or (U, L, D)")
    if clips is not None and len(found) != clips:
        raise InputError(f"features: of {len(found)} clips, expected {clips}")
    if not np.isfinite(found).all():
        raise InputError("features: hold NaN or infinity")
    return np.ascontiguousarray(found, np.float32)


def _distributions(probs: ArrayLike, name: str, axes: str) -> np.ndarray:
    """Distributions along the last axis, or NaN rows, in float64."""
    found = _numbers(probs, name)
    if found.ndim != len(axes.split()) or not found.size or found.shape[-1] < 2:
        raise InputError(
            f"{name}: of shape {found.shape}, expected ({', '.join(axes.split())}) with 2 classes or more"
        )
    rows = found.reshape(-1, found.shape[-1])
    sums = summed(rows, -1)  # in which NaN and infinity show
    odd = np.flatnonzero(~(np.abs(sums - 1) <= _SUM_TOLERANCE))
    odd = odd[~np.isnan(rows[odd]).all(axis=1)]
    if not np.isfinite(rows[odd]).all():
        raise InputError(f"{name}: NaN or infinity in a part of a row; a missing row is all NaN")
    if (rows < 0).any():
        raise InputError(f"{name}: holds negative probabilities, the lowest {np.nanmin(rows):.4g}")
    if odd.size:
        worst = sums[odd[np.abs(sums[odd] - 1).argmax()]]
        raise InputError(
            f"{name}: rows do not sum to 1, one sums to {worst:.4g}; divide by the sums, or apply softmax"
        )
    return found


def _prior(prior: ArrayLike, classes: int) -> np.ndarray:
    """One distribution (K,) without NaN."""
    found = _numbers(prior, "prior")
    if found.shape != (classes,):
        raise InputError(f"prior: of shape {found.shape}, expected ({classes},)")
    if np.isnan(found).any():
        raise InputError("prior: holds NaN; leave clips without a prediction out of the mean")
    return _distributions(found[None], "prior", "1 K")[0]


def _classes(truth: ArrayLike, clips: int, classes: int) -> np.ndarray:
    """Class indices (U,)."""
    found = np.asarray(truth)
    if found.shape != (clips,):
        raise InputError(f"truth: of shape {found.shape}, expected ({clips},)")
    if not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"truth: of type {found.dtype}, expected class indices, whole numbers from 0 to {classes - 1}"
        )
    if found.min() < 0 or found.max() >= classes:
        raise InputError(
            f"truth: holds {found.min()} to {found.max()}, expected class indices from 0 to {classes - 1}"
        )
    return found.astype(np.int64)


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: is no array of numbers") from None
