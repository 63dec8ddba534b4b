"""Preparing the hidden states of unlabelled clips for `fusion.cross_fit`.

Our choices, made on whisper-tiny with four classes: the regression uses the hidden states from a quarter to
three quarters of the encoder's depth (1 to 3 of whisper-tiny's 0 to 4), and pseudo-speakers are found in the
lowest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from mifuse_cli import provenance
from mifuse_cli.fusion.cross_fit import Structure
from mifuse_cli.model.classifier import Classifier, Features, sample
from mifuse_cli.model.prepare import selected
from mifuse_cli.model.shape import Shape
from mifuse_cli.model.standard import statistics


def structure_layers(states: int) -> range:
    """Hidden states from a quarter to three quarters of the depth of an encoder that has this many of them.

    The first state is the input of the first block, so the depth is one less.
    """
    depth = states - 1
    return range(depth // 4, depth - depth // 4 + 1)


def states_in_use(shape: Shape, *, cross_fit: bool = True) -> int:
    """How many hidden states, from the first on, the head looks at and, if wanted, cross-fit; 0: not known, so all."""
    if not cross_fit:
        return max(shape.layers) + 1
    return max(*shape.layers, *structure_layers(shape.states)) + 1 if shape.states else 0


def structure_of(
    hidden: np.ndarray,
    classifier: Classifier,
    inputs: Features,
    *,
    states: int,
    speakers: Sequence[str] | None,
    passes: int,
    seed: int,
    voice: np.ndarray | None = None,
) -> Structure:
    """The structure of U clips.

    Args:
        hidden: (U, L, D) the encoder's hidden states from the first on, averaged over time, not standardised.
        classifier: the source classifier, over features of its frozen encoder.
        inputs: the same clips as the classifier sees them.
        states: how many hidden states the encoder has; 0: L.
        speakers: speaker of every clip if the classifier's input is standardised by speaker, which then are the voices;
            else None.
        passes: dropout passes of the classifier.
        seed: of the passes.
        voice: (U, V) vectors of a speaker encoder, if there is one.
    """
    layers = structure_layers(states or hidden.shape[1])
    return Structure(
        source=_mean_of_passes(classifier, inputs, passes, seed, "own"),
        hidden=hidden[:, layers.start : layers.stop],
        head_input=selected(hidden, classifier.layers),
        classify=partial(_classify, classifier, passes, seed),
        speakers=None if speakers is None else np.unique(np.array(speakers), return_inverse=True)[1],
        voice=voice,
    )


def _classify(
    classifier: Classifier, passes: int, seed: int, standardised: np.ndarray, number: int
) -> np.ndarray:
    """Mean prediction (U, K) over dropout passes of standardised head inputs (U, L, D)."""
    values = torch.from_numpy(standardised)
    inputs = Features(values.to(classifier.head.out.weight.device), statistics(values))
    return _mean_of_passes(classifier, inputs, passes, seed, number)


def _mean_of_passes(
    classifier: Classifier, inputs: Features, passes: int, seed: int, use: str | int
) -> np.ndarray:
    named = provenance.named_seed(seed, "source classifier", use)
    return sample(classifier, inputs, passes, named).astype(np.float64).mean(axis=1)
