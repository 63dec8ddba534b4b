"""Inputs of a classifier: features of a frozen encoder, or audio for an encoder that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import UsageError
from mifuse_cli.manifest import Clip
from mifuse_cli.model.checkpoint import Checkpoint
from mifuse_cli.model.classifier import Classifier, Features
from mifuse_cli.model.encoder import Encoder
from mifuse_cli.model.features import pooled_features
from mifuse_cli.model.standard import fit_standard, statistics

_PADDING_ON_A_GPU = 0.6
"""Share of a micro-batch that may be padding: a GPU computes it sooner than it starts another micro-batch."""


def frozen_inputs(
    checkpoint: Checkpoint,
    clips: Sequence[Clip],
    *,
    normalize: str,
    device: torch.device,
    encoding: Encoding,
    progress: Progress | None,
) -> Features:
    """Standardised features of clips from a checkpoint's frozen encoder.

    Args:
        checkpoint: the model.
        clips: U clips.
        normalize: one of `config.NORMALIZATIONS`, or "" for the checkpoint's own.
        device: where to compute and hold them.
        encoding: by what, and where it is kept.
        progress: called as clips are encoded.
    """
    states = max(checkpoint.shape.layers) + 1
    hidden = hidden_states(
        checkpoint, clips, states=states, device=device, encoding=encoding, progress=progress
    )
    speakers = [clip.speaker for clip in clips]
    return standardised_inputs(checkpoint, hidden, speakers, normalize=normalize, device=device)


def standardised_inputs(
    checkpoint: Checkpoint,
    hidden: np.ndarray,
    speakers: Sequence[str | None],
    *,
    normalize: str,
    device: torch.device,
) -> Features:
    """The head's standardised input, as `frozen_inputs`, from `hidden_states` (U, L, D)."""
    shape = checkpoint.shape
    features = torch.from_numpy(selected(hidden, shape.layers)).to(device)
    mode = effective_mode(normalize or shape.normalize, shape.statistics_of)
    standard = fit_standard(mode, features, stored=checkpoint.statistics, speakers=speakers)
    return Features(standard(features, torch.arange(len(features))), statistics(features))


def selected(hidden: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Some layers of hidden states (U, L, D); all of them are not copied."""
    return hidden if list(layers) == list(range(hidden.shape[1])) else hidden[:, list(layers)]


def hidden_states(
    checkpoint: Checkpoint,
    clips: Sequence[Clip],
    *,
    states: int,
    device: torch.device,
    encoding: Encoding,
    progress: Progress | None,
) -> np.ndarray:
    """Features (U, L, D) of clips in the first L hidden states of a checkpoint's encoder, not standardised.

    Args:
        checkpoint: the model.
        clips: U clips.
        states: L; 0: all.
        device: where to compute them.
        encoding: by what, and where it is kept.
        progress: called as clips are encoded.
    """
    return pooled_features(
        clips,
        checkpoint.encoder(states),
        checkpoint.encoder_digest(),
        device=device,
        encoding=encoding,
        progress=progress,
    )


def effective_mode(mode: str, statistics_of: str) -> str:
    """The mode to use: in a model adapted to the target, the stored statistics are those of the target."""
    return "source" if mode == statistics_of == "target" else mode


def trainable_part(
    checkpoint_encoder: Encoder,
    tune: str,
    *,
    device: torch.device,
    gradient_checkpointing: bool = False,
) -> Encoder:
    """The encoder on a device, with gradients for the last N blocks that are run (``top-N``), or for ``all`` of it.

    Args:
        checkpoint_encoder: is changed.
        tune: see above.
        device: where to train it.
        gradient_checkpointing: whether activations within a block are computed again for its gradients instead of
            being held.

    Raises:
        UsageError: N is more than the encoder has.
    """
    blocks = checkpoint_encoder.blocks
    if tune != "all":
        count = int(tune.removeprefix("top-"))
        if count > len(blocks):
            raise UsageError(f"--tune {tune}: {len(blocks)} blocks of the encoder are run")
        checkpoint_encoder.requires_grad_(False)
        blocks = blocks[-count:]
        if checkpoint_encoder.query is not None:
            checkpoint_encoder.query.requires_grad_(True)
    (checkpoint_encoder if tune == "all" else blocks).requires_grad_(True)
    checkpoint_encoder.unused.requires_grad_(False)
    if gradient_checkpointing:
        for block in blocks:
            # Not that of transformers, which wants the whole block in training mode.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if checkpoint_encoder.padding and device.type == "cuda":
        checkpoint_encoder.padding = _PADDING_ON_A_GPU
    return checkpoint_encoder.to(device)


def frozen_classifier(checkpoint: Checkpoint, device: torch.device) -> Classifier:
    """The checkpoint's classifier over features of its frozen encoder."""
    return Classifier(None, checkpoint.head, checkpoint.shape.layers).to(device)
