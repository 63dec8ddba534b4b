"""Adapting a classifier to unlabelled clips by any method: one function, called by ``train`` and ``compare``.

Importing this module loads no torch: the command line lists the names of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli.config import StepConfig, above_zero, at_least, between, one_of, option
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.methods.teachers import Teachers

if TYPE_CHECKING:
    from torch import Tensor

    from mifuse_cli.methods.loop import Method, State
    from mifuse_cli.model.classifier import Classifier, Features, Waveforms
    from mifuse_cli.model.linear import LinearPart

METHODS = {
    "mifuse": 2,
    "lalm-sfuda": 1,
    "shot": 1,
    "shot-im": 1,
    "shot+lalm": 1,
    "nrc": 1,
    "nrc+lalm": 1,
    "aad": 1,
    "aad+lalm": 1,
    "tent": 1,
    "t3a": 1,
    "t3a+lalm": 1,
    "lame": 1,
    "lame+lalm": 1,
    "dine": 1,
    "prode": 1,
    "duet": 1,
    "rcl": 1,
    "emo-tta": 1,
    "oracle": 1,
}
"""Names of the methods, each with its version: to be raised when the predictions of the method change, so
that ``compare`` does not keep older ones.
"""
VERSION = 1
"""Version of what all methods share, such as features, standardisation and the training loop; to be raised
likewise.
"""
WITHOUT_LALM = ("shot", "shot-im", "nrc", "aad", "tent", "t3a", "lame", "oracle")
"""Methods that do not use an audio-language model."""
WITHOUT_STUDENT = ("lame", "lame+lalm", "emo-tta")
"""Methods that predict the clips they are given, by `predict_clips`, and make no student by `adapt`."""
STUDENTS = tuple(name for name in METHODS if name not in WITHOUT_STUDENT)
"""Methods that make a student."""
WITHOUT_TRAINING = ("t3a", "t3a+lalm")
"""Methods that make a student in one pass over the clips, without gradients."""
WITH_LABELS = ("mifuse", "lalm-sfuda")
"""Methods with labels, whose class marginal can be the target of the diversity loss."""

_PANEL = "Training"


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig(StepConfig):
    """Base class of the configurations of steps that train students."""

    epochs: int = option(30, "Epochs; the model after the last one is saved.", panel=_PANEL)
    batch_size: int = option(64, "Largest number of clips in a batch.", panel=_PANEL)
    learning_rate: float = option(5e-4, "AdamW learning rate of the head.", panel=_PANEL)
    weight_decay: float = option(0.01, "AdamW weight decay.", panel=_PANEL)
    diversity_weight: float = option(
        1.0,
        "Weight of the diversity loss of mifuse, lalm-sfuda, shot and nrc; 0 leaves it out.",
        panel=_PANEL,
    )
    diversity_prior: str | None = option(
        None,
        f"Target of the diversity loss for the class marginal: uniform, or labels for the marginal of the labels of "
        f"{' or '.join(WITH_LABELS)}. Default: labels for those of cross-fit, whose marginal is the estimated class "
        "prior; else uniform.",
        panel=_PANEL,
    )
    refresh: int | None = option(
        None,
        "Of mifuse, the student of fused labels: epochs between two fusions, for each of which a classifier teacher, "
        "an exponential moving average (EMA) of the student, is sampled; 0: labels stay as they are. Default: 1 for "
        "labels of weighed teachers, as in the paper, 0 for those of cross-fit, which cannot be fused anew.",
        panel=_PANEL,
    )
    ema: float = option(
        0.99,
        "Momentum of that EMA teacher, applied after every step; used only with --refresh.",
        panel=_PANEL,
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from at_least("--epochs", self.epochs, 1)
        yield from at_least("--batch-size", self.batch_size, 1)
        if self.refresh is not None:
            yield from at_least("--refresh", self.refresh, 0)
        if self.diversity_prior is not None:
            yield from one_of("--diversity-prior", self.diversity_prior, ("uniform", "labels"))
        yield from at_least("--diversity-weight", self.diversity_weight, 0)
        yield from above_zero("--learning-rate", self.learning_rate)
        yield from at_least("--weight-decay", self.weight_decay, 0)
        yield from between("--ema", self.ema, 0, 1)
        yield from super().problems()


def student_problems(method: str, tune: str) -> Iterable[str]:
    """Problem sentences about ``--method`` and ``--tune`` of a step that makes a student."""
    if method in WITHOUT_STUDENT:
        yield (
            f"--method {method}: predicts the clips that it is given and makes no student to save; score it with "
            f"mifuse compare --systems {method}, or call predict_clips from Python"
        )
    else:
        yield from one_of("--method", method, STUDENTS)
    if method == "tent" and tune != "head":
        yield f"--tune {tune}: --method tent trains only the scale and shift of the head's input"
    if method in WITHOUT_TRAINING and tune != "head":
        yield f"--tune {tune}: --method {method} replaces only the weights of the classifier layer"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the adaptation; the fields are those of the same names in `AdaptationConfig` and ``mifuse
    train``.
    """

    method: str = "mifuse"
    epochs: int
    batch_size: int
    learning_rate: float
    encoder_learning_rate: float = 0.0
    weight_decay: float
    diversity_weight: float
    diversity_prior: str | None
    refresh: int | None
    ema: float
    seed: int


@dataclass(frozen=True)
class Student:
    """Result of `adapt`, which trains the classifier in place.

    Attributes:
        terms: names of the loss terms.
        history: (E, C) mean of every term in every epoch.
        resumed_from: last epoch of an interrupted run that was continued, 0 if there was none.
    """

    terms: tuple[str, ...]
    history: np.ndarray
    resumed_from: int


def adapt(
    classifier: Classifier,
    inputs: Features | Waveforms,
    options: Options,
    *,
    teachers: Teachers | None = None,
    truth: np.ndarray | None = None,
    kept: tuple[Path, str] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> Student:
    """Train the classifier on the clips.

    A linear part of the head is fitted to the labels of cross-fit, and joined with the head once that is trained.
    Methods of `WITHOUT_TRAINING` make one pass, whatever the options of training are: their history has one row.

    Args:
        classifier: the source model; trained in place.
        inputs: U clips.
        options: how; a method that is not of `WITHOUT_STUDENT`.
        teachers: what it learns from; may be None for methods of `WITHOUT_LALM`.
        truth: (U,) class indices for the oracle, None for all others.
        kept: file for the state after every epoch, and the hash that a saved state must match to be
            resumed.
        after_epoch: called with the number of every epoch that ended.

    Raises:
        UsageError: ``refresh`` above 0 with labels that cannot be fused anew; a student of cross-fit labels, whose
            head has a linear part, as source model of another method.
        MifuseError: the loss is NaN or infinite.
    """
    linear = _linear_part(classifier, options.method, teachers)
    if options.method in WITHOUT_TRAINING:
        from mifuse_cli.methods import t3a

        entropy = t3a.adjust(classifier.head, *_units_and_probs(classifier, inputs, options.method, teachers))
        return Student(("entropy",), np.array([[entropy]]), 0)
    import torch

    from mifuse_cli.methods import loop, resume, student
    from mifuse_cli.model import processes

    method = _method(options, teachers, truth, classifier.head.out.out_features)
    names = loop.LoopOptions.__dataclass_fields__
    how = loop.LoopOptions(**{name: getattr(options, name) for name in names})
    if linear is not None:
        assert teachers is not None
        linear.fit(inputs.everything(classifier), torch.from_numpy(teachers.probs))
    state = loop.start(classifier, method, how)
    resumed_from = resume.restore(*kept, state, method) if kept else 0

    def after(state: State) -> None:
        if kept:
            processes.by_first(lambda: resume.keep(*kept, state, method))
        if after_epoch:
            after_epoch(state.epoch)

    loop.run(state, inputs, method, how, after_epoch=after)
    if linear is not None:
        student.join(classifier)
    inputs.refresh(classifier)
    return Student(method.terms, np.array(state.history), resumed_from)


def has_linear_part(method: str, teachers: Teachers | None) -> bool:
    """Whether the method's student has a linear part: that of cross-fit labels."""
    return method == "mifuse" and teachers is not None and not teachers.settings.is_weighted


def _linear_part(classifier: Classifier, method: str, teachers: Teachers | None) -> LinearPart | None:
    """The linear part of the classifier's head, if it has one and the method fits it.

    Raises:
        UsageError: it has one, and the method does not.
    """
    linear = classifier.head.linear
    if linear is not None and not (classifier.encoder is None and has_linear_part(method, teachers)):
        raise UsageError(
            f"--method {method}: the model is a student of cross-fit labels, which only --method mifuse with such "
            "labels and --tune head can adapt further. Give the source model."
        )
    return linear


def predict_clips(
    classifier: Classifier,
    inputs: Features | Waveforms,
    method: str,
    *,
    teachers: Teachers | None = None,
) -> np.ndarray:
    """Predictions (U, K) of the clips by a method of `WITHOUT_STUDENT`.

    Args:
        classifier: the source model; stays as it is.
        inputs: U clips.
        method: its name.
        teachers: whose answers it uses; may be None for methods of `WITHOUT_LALM`.
    """
    _linear_part(classifier, method, teachers)
    units, probs = _units_and_probs(classifier, inputs, method, teachers)
    if method == "emo-tta":
        from mifuse_cli.methods.emo_tta import emo_tta

        return emo_tta(units.cpu().numpy(), _answers(method, teachers))
    from mifuse_cli.methods.lame import lame

    return lame(units, probs).cpu().numpy()


def _units_and_probs(
    classifier: Classifier, inputs: Features | Waveforms, method: str, teachers: Teachers | None
) -> tuple[Tensor, Tensor]:
    """Hidden units (U, H) and predictions (U, K) without dropout; with ``+lalm``, their mean with the answers."""
    from mifuse_cli.methods.bank import predicted
    from mifuse_cli.methods.with_lalm import mean_with_lalm
    from mifuse_cli.model.classifier import units

    hidden = units(classifier, inputs)
    probs = predicted(classifier.head, hidden)
    return hidden, mean_with_lalm(probs, _answers(method, teachers)) if method.endswith("+lalm") else probs


def _answers(method: str, teachers: Teachers | None) -> np.ndarray:
    """Mean answers (U, K) of the audio-language models, NaN rows where there is none.

    Raises:
        InputError: there are none at all.
    """
    assert teachers is not None
    answers = teachers.answers
    if np.isnan(answers).any(axis=1).all():
        raise InputError(
            f"--method {method}: learns from answers of a LALM, but the fused labels hold none for any of "
            f"{len(answers)} clips. Fuse again, not --without lalm, or use a method without a LALM, such as shot."
        )
    return answers


def _method(options: Options, teachers: Teachers | None, truth: np.ndarray | None, classes: int) -> Method:
    import torch

    from mifuse_cli.methods.aad import Aad
    from mifuse_cli.methods.dine import Dine
    from mifuse_cli.methods.duet import Duet
    from mifuse_cli.methods.lalm_sfuda import LalmLabels
    from mifuse_cli.methods.mifuse import FusedLabels
    from mifuse_cli.methods.nrc import Nrc
    from mifuse_cli.methods.oracle import Oracle
    from mifuse_cli.methods.prode import Prode
    from mifuse_cli.methods.rcl import Rcl
    from mifuse_cli.methods.shot import Shot
    from mifuse_cli.methods.tent import Tent
    from mifuse_cli.methods.with_lalm import WithLalm

    weight = options.diversity_weight
    if options.method == "oracle":
        assert truth is not None
        return Oracle(torch.from_numpy(truth), classes)
    own: dict[str, Callable[[], Method]] = {
        "shot": lambda: Shot(diversity_weight=weight),
        "shot-im": lambda: Shot(beta=0.0, diversity_weight=weight),
        "nrc": lambda: Nrc(diversity_weight=weight),
        "aad": lambda: Aad(epochs=options.epochs),
        "tent": Tent,
    }
    if options.method in own:
        return own[options.method]()
    assert teachers is not None
    if options.method == "mifuse":
        return FusedLabels(
            teachers,
            refresh=refresh_of(options, teachers),
            diversity_weight=weight,
            diversity_prior=options.diversity_prior
            or ("uniform" if teachers.settings.is_weighted else "labels"),
            seed=options.seed,
        )
    answers = _answers(options.method, teachers)
    if options.method == "lalm-sfuda":
        return LalmLabels(answers, weight, options.diversity_prior or "uniform")
    if options.method == "dine":
        return Dine(answers, epochs=options.epochs)
    if options.method == "prode":
        return Prode(answers)
    if options.method == "duet":
        return Duet(answers, epochs=options.epochs)
    if options.method == "rcl":
        return Rcl(teachers.votes, epochs=options.epochs)
    name, _, _ = options.method.partition("+lalm")
    return WithLalm(own[name](), labels=torch.from_numpy(answers.astype(np.float32)))


def refresh_of(options: Options, teachers: Teachers) -> int:
    """Epochs between two fusions of ``mifuse``, 0 for none.

    Raises:
        UsageError: ``refresh`` above 0 with labels that cannot be fused anew.
    """
    if options.refresh is None:
        return 1 if teachers.settings.is_weighted else 0
    if options.refresh and not teachers.settings.is_weighted:
        raise UsageError(
            f"--refresh {options.refresh}: labels of fuse --weighting {teachers.settings.weighting} are not renewed in "
            "training. Leave it out, or fuse with another --weighting, such as mi."
        )
    return options.refresh
