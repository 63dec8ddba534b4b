"""The one training loop: batches, optimiser, EMA teacher, epochs, and state to resume from.

A method (one file beside this one) gives the targets at the start of an epoch and the loss terms of a batch.
All random draws of an epoch depend only on the seed and the number of the epoch, so that (on the CPU) a
resumed run is identical to an uninterrupted one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mifuse_cli import provenance
from mifuse_cli.errors import MifuseError
from mifuse_cli.model import launcher, processes
from mifuse_cli.model.classifier import Classifier, Features, Head, Waveforms, dropout_active, seeded


@dataclass(frozen=True)
class Batch:
    """B clips as the student, with dropout, sees them.

    Attributes:
        index: (B,) their positions.
        features: (B, L, D) standardised.
        units: (B, H) hidden units, before dropout.
        logits: (B, K).
        head: the student's, for methods that apply it to further features.
    """

    index: Tensor
    features: Tensor
    units: Tensor
    logits: Tensor
    head: Head

    @property
    def probs(self) -> Tensor:
        """Probabilities (B, K)."""
        return self.logits.softmax(dim=-1)


class Method(ABC):
    """What a training method supplies: targets at the start of an epoch, and the loss of a batch.

    Attributes:
        terms: names of its loss terms.
        teacher: whether it needs an EMA teacher.
        fresh: whether the student's head starts from random weights instead of the source model's.
        rates: factors of the learning rate, by name of a parameter or submodule of the head.
        targets: tensors that last over epochs and are saved for resuming.
    """

    terms: tuple[str, ...] = ()
    teacher = False
    fresh = False
    rates: Mapping[str, float] = {"mix": 1.0, "hidden": 1.0, "out": 1.0, "scale": 0.0, "shift": 0.0}

    def __init__(self) -> None:
        self.targets: dict[str, Tensor] = {}

    def begin_epoch(  # noqa: B027 - many methods have nothing to renew
        self, epoch: int, model: Classifier, inputs: Features | Waveforms
    ) -> None:
        """Update the targets; ``model`` is the EMA teacher if the method has one, else the student."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms, by name."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train; epochs are counted from 1."""

    epochs: int
    batch_size: int
    learning_rate: float
    encoder_learning_rate: float
    weight_decay: float
    ema: float
    seed: int


@dataclass
class State:
    """State of a training run between two epochs.

    Attributes:
        epoch: last finished epoch, 0 before the first.
        student, teacher: classifiers; the teacher is None for methods without one.
        optimizer: of the student's parameters.
        history: a row an epoch, one value for each of the method's terms.
    """

    epoch: int
    student: Classifier
    teacher: Classifier | None
    optimizer: torch.optim.Optimizer
    history: list[list[float]] = field(default_factory=list)


def start(student: Classifier, method: Method, options: LoopOptions) -> State:
    """State before the first epoch; the teacher starts as a copy of the student."""
    if method.fresh:
        with seeded(options.seed, "fresh head"):
            student.head.reset()
    rates = {name: method.rates[name.partition(".")[0]] for name, _ in student.head.named_parameters()}
    groups = [
        {"params": [p for name, p in student.head.named_parameters() if rates[name] == rate],
         "lr": rate * options.learning_rate}
        for rate in sorted(set(rates.values()) - {0.0})
    ]  # fmt: skip
    encoder = [p for p in student.encoder.parameters() if p.requires_grad] if student.encoder else []
    if student.encoder is not None and (query := student.encoder.query) is not None:
        encoder = [p for p in encoder if p is not query]
        groups.append({"params": [query], "lr": options.learning_rate})  # as new as the head
    if encoder:
        groups.append({"params": encoder, "lr": options.encoder_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
    teacher = copy.deepcopy(student).requires_grad_(False) if method.teacher else None
    return State(0, student, teacher, optimizer)


def run(
    state: State,
    inputs: Features | Waveforms,
    method: Method,
    options: LoopOptions,
    *,
    index: np.ndarray | None = None,
    after_epoch: Callable[[State], None] | None = None,
) -> State:
    """Train from ``state`` to the last epoch.

    Args:
        state: from `start`, or as it was after an earlier epoch.
        inputs: U clips.
        method: targets and loss.
        options: how.
        index: positions of the clips to train on, all if None.
        after_epoch: called with the state after every epoch.

    Raises:
        MifuseError: the loss, or a weight after an epoch, is NaN or infinite.
    """
    index = np.arange(len(inputs)) if index is None else index
    while state.epoch < options.epochs:
        epoch = state.epoch + 1
        inputs.refresh(state.student)
        method.begin_epoch(epoch, state.teacher or state.student, inputs)
        order = provenance.rng(options.seed, "batches", epoch).permutation(index)
        # Equal batches: a small last one would make the batch marginal of the diversity loss meaningless.
        batches = np.array_split(order, -(-len(order) // options.batch_size))
        sums = np.zeros(len(method.terms))
        with seeded(options.seed, "dropout", epoch), dropout_active(state.student):
            for batch in batches:
                terms = _step(state, inputs, method, torch.from_numpy(batch), options.ema)
                sums += np.array([terms[name] for name in method.terms]) * len(batch)
        if not all(torch.isfinite(one).all() for one in state.student.parameters()):
            raise MifuseError(f"weights became NaN or infinite in epoch {epoch}; try a lower --learning-rate")
        state.epoch = epoch
        state.history.append((sums / len(order)).tolist())
        if after_epoch:
            after_epoch(state)
    return state


def _step(
    state: State, inputs: Features | Waveforms, method: Method, batch: Tensor, ema: float
) -> dict[str, float]:
    student = state.student
    features = inputs.batch(student, batch)
    units = student.head.units(features)
    terms = method.loss(Batch(batch, features, units, student.head.classify(units), student.head))
    loss = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        raise MifuseError(
            f"the loss became {loss.item()} in epoch {state.epoch + 1}; try a lower --learning-rate"
        )
    state.optimizer.zero_grad()
    loss.backward()
    if student.encoder is not None:
        _add_gradients(student)
    state.optimizer.step()
    if state.teacher is not None:
        follow(state.teacher, state.student, ema)
    return {name: value.item() for name, value in terms.items()}


def _add_gradients(student: Classifier) -> None:
    """Give all processes the same gradients: of the encoder the sum of theirs, of the head those of the first.

    Every process has the gradients of its clips for the encoder, and those of the whole batch for the head.
    """
    if launcher.number():
        for parameter in student.head.parameters():
            parameter.grad = None
    processes.add_gradients([one for one in student.parameters() if one.requires_grad])


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Exponential moving average: teacher <- m teacher + (1 - m) student; buffers are copied."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1 - momentum)
    for kept, new in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(new)
