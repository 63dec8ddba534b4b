"""The teachers' distributions for the clips to adapt to, and the fused labels; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mifuse_cli import fusion


@dataclass(frozen=True)
class Teachers:
    """Distributions of T teachers for U clips, and the fused labels; the classifier is the last teacher.

    Attributes:
        probs: (U, K) fused labels.
        mean: (U, T, K) mean distributions, NaN where silent.
        mi: (U, T) mutual information in nats, NaN where silent.
        settings: of the fusion.
        passes: dropout passes of the classifier.
    """

    probs: np.ndarray
    mean: np.ndarray
    mi: np.ndarray
    settings: fusion.FusionSettings
    passes: int

    @property
    def answers(self) -> np.ndarray:
        """Mean answers (U, K) of the audio-language models, NaN rows where there is none."""
        return fusion.fuse_answers(self.mean, self.mi, self.settings)[1]
