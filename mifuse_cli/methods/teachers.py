"""The teachers' distributions for the clips to adapt to, and the fused labels; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mifuse_cli import fusion
from mifuse_cli.errors import InputError


@dataclass(frozen=True)
class Teachers:
    """Distributions of T teachers for U clips, and the fused labels; the classifier is the last teacher.

    Attributes:
        probs: (U, K) fused labels.
        mean: (U, T, K) mean distributions, NaN where silent.
        mi: (U, T) mutual information in nats, NaN where silent.
        settings: of the fusion.
        passes: dropout passes of the classifier.
        top_counts: (U, T, K) number of samples by most probable class; None in artifacts of earlier versions.
    """

    probs: np.ndarray
    mean: np.ndarray
    mi: np.ndarray
    settings: fusion.FusionSettings
    passes: int
    top_counts: np.ndarray | None = None

    @property
    def answers(self) -> np.ndarray:
        """Mean answers (U, K) of the audio-language models, NaN rows where there is none."""
        return fusion.fuse_answers(self.mean, self.mi, self.settings)[1]

    @property
    def votes(self) -> np.ndarray:
        """Number (U, K) of single answers by their most probable class, with the classifier's mean as one more.

        Raises:
            InputError: the numbers of answers are not known.
        """
        if self.top_counts is None:
            raise InputError(
                "the fused labels were made by an earlier version, which did not count answers by class. Fuse again."
            )
        classifier = fusion.top_counts(self.mean[:, -1:])
        return self.top_counts[:, :-1].sum(axis=1) + classifier
