"""Time-averaged features of clips from a frozen encoder, computed once and cached.

The cache is named by the encoder's content hash, precision and pooling. A clip that it holds with more hidden states
than are wanted is not encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.manifest import Clip
from mifuse_cli.model.cache import cached
from mifuse_cli.model.encoder import Encoder, load_encoder
from mifuse_cli.model.hub import name_of

_CACHE_VERSION = 1


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder by its directory, for any process to load.

    Attributes:
        directory: of the encoder.
        precision: one of `shape.PRECISIONS`.
        pooling: over time, one of `shape.POOLINGS`.
        states: how many hidden states are wanted, from the first on; 0: all. Blocks above them are not run.
        called: what users call it.
    """

    directory: Path
    precision: str = "fp32"
    pooling: str = "mean"
    states: int = 0
    called: str = ""

    def load(self, device: torch.device) -> Encoder:
        """The encoder on a device.

        Raises:
            InputError: it cannot be loaded.
        """
        encoder = load_encoder(self.directory, self.precision, self.pooling).to(device)
        if self.states:
            encoder.stop_at(self.states - 1)
        if self.precision == "bf16" and device.type == "cuda":
            encoder.to_bfloat16()
        return encoder


def pooled_features(
    clips: Sequence[Clip],
    encoder: FrozenEncoder,
    encoder_digest: str,
    *,
    device: torch.device,
    encoding: Encoding = Encoding(),
    progress: Progress | None = None,
) -> np.ndarray:
    """Hidden states of every clip, averaged or otherwise pooled over time, (U, L, D) float32.

    The encoder is loaded only if some clip is not in the cache.

    Args:
        clips: U clips.
        encoder: which, and what of it.
        encoder_digest: its content hash.
        device: where to run it.
        encoding: by what, and where it is kept.
        progress: called as features are made.

    Raises:
        InputError: audio or encoder that cannot be read, or a cache that cannot be used.
    """
    kind = "" if encoder.precision == "fp32" else f"-{encoder.precision}"
    pooling = "" if encoder.pooling == "mean" else f", {encoder.pooling}"
    kind += "" if encoder.pooling == "mean" else f"-{encoder.pooling}"
    return cached(
        clips,
        f"features-v{_CACHE_VERSION}-{encoder_digest[:32]}{kind}",
        replace(encoder, directory=encoder.directory.absolute()),
        rows=encoder.states,
        called=f"{name_of(encoder.called or encoder.directory)}{pooling}",
        precision=encoder.precision,
        work="encoding",
        device=device,
        encoding=encoding,
        progress=progress,
    )
