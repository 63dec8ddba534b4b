"""The student of cross-fit labels: the source classifier, and a linear part over the layers that made the labels.

Its logits are the mean of those of two models: the source classifier's head, trained on the labels as that of any other
student, and a ridge regression of the labels on all layers, see `model.linear`. The head knows the source; the
regression can represent what a single layer cannot, and is right where the source is wrong.

Ours, for clips of other speakers than those adapted to, where several are predicted together: `centred` moves their
features by a constant, so that their mean is that of the classes which the student predicts for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import UsageError
from mifuse_cli.manifest import Clip
from mifuse_cli.methods.structure import states_in_use, structure_layers
from mifuse_cli.model.checkpoint import Checkpoint, new_head
from mifuse_cli.model.classifier import Classifier, Features, Head, Waveforms
from mifuse_cli.model.linear import LinearPart
from mifuse_cli.model.prepare import (
    effective_mode,
    frozen_classifier,
    hidden_states,
    standardised_inputs,
    trainable_part,
)
from mifuse_cli.model.standard import Statistics, statistics

_UNSEEN = -30.0
"""Weight, before the softmax, of a layer that the trained head does not see; with it the share is 1e-13."""
_TIMES = 2
_CLIPS = 20
"""The mean of U clips is believed by U / (U + 20): that of few says more of their emotions than of their speakers."""


def with_linear_part(source: Checkpoint, hidden: np.ndarray) -> Checkpoint:
    """The source classifier with a linear part, not fitted yet, over its own layers and those of `structure_layers`.

    Args:
        source: stays as it is.
        hidden: (U, L, D) hidden states of the clips to adapt to, from the first on, not standardised; the source has no
            statistics of the layers that its head does not see.
    """
    shape = source.shape
    layers = tuple(sorted({*shape.layers, *structure_layers(shape.states or hidden.shape[1])}))
    at = [layers.index(layer) for layer in shape.layers]
    wide = replace(shape, layers=layers, linear=True)
    weights = source.head.state_dict()
    mix = torch.full((len(layers),), _UNSEEN).index_copy(0, torch.tensor(at), weights["mix"])
    head = new_head(wide)
    head.load_state_dict({**head.state_dict(), **weights, "mix": mix})
    seen = statistics(torch.from_numpy(hidden[:, list(layers)]))
    mean, std = seen.mean, seen.std
    mean[at], std[at] = source.statistics.mean, source.statistics.std
    return Checkpoint(wide, head.eval(), Statistics(mean, std), source.encoder_dir)


def untrained_student(
    source: Checkpoint,
    clips: Sequence[Clip],
    *,
    tune: str,
    micro_batch_s: float,
    gradient_checkpointing: bool,
    normalize: str,
    linear: bool,
    device: torch.device,
    encoding: Encoding,
    progress: Progress | None,
) -> tuple[Checkpoint, Classifier, Features | Waveforms]:
    """What the training of a student by any method starts from.

    Args:
        source: the source model.
        clips: to adapt to.
        tune: ``head``, ``top-N`` or ``all``.
        micro_batch_s: of `Waveforms`, if the encoder is trained.
        gradient_checkpointing: of `trainable_part`, likewise.
        normalize: how the head's input is standardised.
        linear: whether the student has a linear part, as it has where the encoder is frozen.
        device: where to compute.
        encoding: by what, and where it is kept.
        progress: called as clips are encoded.

    Returns:
        the source model, with a linear part if the student has one; a classifier of its weights; and its inputs.
    """
    if tune != "head":
        encoder = trainable_part(
            source.encoder(max(source.shape.layers) + 1).load(device),
            tune,
            device=device,
            gradient_checkpointing=gradient_checkpointing,
        )
        mode = effective_mode(normalize, source.shape.statistics_of)
        student = Classifier(encoder, source.head, source.shape.layers).to(device)
        return source, student, Waveforms(clips, mode, source.statistics, micro_batch_s)
    states = states_in_use(source.shape, cross_fit=linear)
    hidden = hidden_states(source, clips, states=states, device=device, encoding=encoding, progress=progress)
    if linear:
        source = with_linear_part(source, hidden)
    speakers = [clip.speaker for clip in clips]
    inputs = standardised_inputs(source, hidden, speakers, normalize=normalize, device=device)
    return source, frozen_classifier(source, device), inputs


@torch.no_grad()
def join(classifier: Classifier) -> None:
    """Make the sum of the logits of trained head and linear part their mean."""
    head = classifier.head
    assert head.linear is not None
    for trained in (head.out.weight, head.out.bias):
        trained.div_(2)
    head.linear.halve()


@torch.no_grad()
def centred(classifier: Classifier, inputs: Features) -> Features:
    """Features less the constant of `centring`; as given where the student has no linear part."""
    head, values = classifier.head, inputs.values
    if head.linear is None:
        return inputs
    moved = centring(
        head.linear, len(values), values.mean(dim=0), lambda by: head(values - by).softmax(dim=-1).mean(dim=0)
    )
    return Features(values - moved, inputs.statistics)


def centring(linear: LinearPart, clips: int, mean: Tensor, predicted: Callable[[Tensor], Tensor]) -> Tensor:
    """Constant (L, D) by which the mean of U clips is off that of clips with the classes predicted for them.

    The classes are predicted anew from the features moved, twice.

    Args:
        linear: part of the student, which holds the mean features of the classes.
        clips: U.
        mean: (L, D) of their standardised features.
        predicted: mean (K,) of the predictions for the features less a constant (L, D).
    """
    share = clips / (clips + _CLIPS)
    moved = torch.zeros_like(mean)
    for _ in range(_TIMES):
        moved = share * linear.unexplained(mean[None], predicted(moved)[None])
    return moved


def check_centring(head: Head, model: Path) -> None:
    """Refuse ``--centre`` for a model that knows no mean features of the classes.

    Raises:
        UsageError: it is no student of cross-fit labels.
    """
    if head.linear is None:
        raise UsageError(
            f"--centre: {model} holds no mean features of the classes, which only students of cross-fit labels "
            "do. Leave it out."
        )
