"""Predictions of a source classifier with dropout and without, from hidden states of its encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mifuse_cli.model.checkpoint import Checkpoint
from mifuse_cli.model.classifier import predict, sample
from mifuse_cli.model.prepare import frozen_classifier, standardised_inputs


def sampled(
    checkpoint: Checkpoint,
    hidden: np.ndarray,
    speakers: Sequence[str | None],
    *,
    normalize: str,
    calibrate: bool,
    passes: int,
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (U, M, K) of M dropout passes, and (U, K) without dropout.

    Args:
        checkpoint: the source classifier; ``calibrate`` changes it.
        hidden: hidden states (U, L, D) of its encoder, as `prepare.hidden_states` gives them.
        speakers: of every clip, None where unknown.
        normalize: one of `config.NORMALIZATIONS`.
        calibrate: whether logits are divided by the checkpoint's temperature.
        passes: M, at least 2.
        seed: of the dropout masks.
        device: where to compute.

    Raises:
        InputError: a model without dropout.
    """
    if calibrate:
        checkpoint.calibrate()
    inputs = standardised_inputs(checkpoint, hidden, speakers, normalize=normalize, device=device)
    model = frozen_classifier(checkpoint, device)
    return sample(model, inputs, passes, seed), predict(model, inputs)
