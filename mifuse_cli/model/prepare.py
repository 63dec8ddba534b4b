"""Inputs of a classifier: features of a frozen encoder, or audio for an encoder that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mifuse_cli.config import Progress
from mifuse_cli.errors import UsageError
from mifuse_cli.manifest import Clip
from mifuse_cli.model.checkpoint import Checkpoint
from mifuse_cli.model.classifier import Classifier, Features
from mifuse_cli.model.encoder import Encoder
from mifuse_cli.model.features import pooled_features
from mifuse_cli.model.standard import fit_standard, statistics


def frozen_inputs(
    checkpoint: Checkpoint,
    clips: Sequence[Clip],
    *,
    normalize: str,
    device: torch.device,
    cache: Path | None,
    workers: int,
    progress: Progress | None,
) -> Features:
    """Standardised features of clips from a checkpoint's frozen encoder.

    Args:
        checkpoint: the model.
        clips: U clips.
        normalize: one of `config.NORMALIZATIONS`, or "" for the checkpoint's own.
        device: where to compute and hold them.
        cache: directory of the feature cache, None for the default.
        workers: processes that read and encode; 0: one for each free core.
        progress: called as clips are encoded.
    """
    hidden = all_layers(checkpoint, clips, device=device, cache=cache, workers=workers, progress=progress)
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
    """The head's standardised input, as `frozen_inputs`, from hidden states (U, L, D) of `all_layers`."""
    shape = checkpoint.shape
    features = torch.from_numpy(selected(hidden, shape.layers)).to(device)
    mode = effective_mode(normalize or shape.normalize, shape.statistics_of)
    standard = fit_standard(mode, features, stored=checkpoint.statistics, speakers=speakers)
    return Features(standard(features, torch.arange(len(features))), statistics(features))


def selected(hidden: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Some layers of hidden states (U, L, D); all of them are not copied."""
    return hidden if list(layers) == list(range(hidden.shape[1])) else hidden[:, list(layers)]


def all_layers(
    checkpoint: Checkpoint,
    clips: Sequence[Clip],
    *,
    device: torch.device,
    cache: Path | None,
    workers: int,
    progress: Progress | None,
) -> np.ndarray:
    """Features (U, L, D) of clips in every hidden state of a checkpoint's encoder, not standardised."""
    return pooled_features(
        clips,
        checkpoint.encoder_dir,
        checkpoint.encoder_digest(),
        precision=checkpoint.shape.precision,
        device=device,
        cache=cache,
        workers=workers,
        progress=progress,
    )


def effective_mode(mode: str, statistics_of: str) -> str:
    """The mode to use: in a model adapted to the target, the stored statistics are those of the target."""
    return "source" if mode == statistics_of == "target" else mode


def trainable_part(checkpoint_encoder: Encoder, tune: str) -> Encoder:
    """The encoder with gradients for its last N blocks (``top-N``) or all of it (``all``).

    Raises:
        UsageError: N is more than the encoder has.
    """
    if tune == "all":
        return checkpoint_encoder.requires_grad_(True)
    count = int(tune.removeprefix("top-"))
    if count > len(checkpoint_encoder.blocks):
        raise UsageError(f"--tune {tune}: the encoder has {len(checkpoint_encoder.blocks)} blocks")
    checkpoint_encoder.requires_grad_(False)
    for block in checkpoint_encoder.blocks[-count:]:
        block.requires_grad_(True)
    return checkpoint_encoder


def frozen_classifier(checkpoint: Checkpoint, device: torch.device) -> Classifier:
    """The checkpoint's classifier over features of its frozen encoder."""
    return Classifier(None, checkpoint.head, checkpoint.shape.layers).to(device)
