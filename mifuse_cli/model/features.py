"""Time-averaged features of clips from a frozen encoder, computed once and cached.

The cache is named by the encoder's content hash and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mifuse_cli.config import Progress
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.manifest import Clip
from mifuse_cli.model.cache import cached
from mifuse_cli.model.encoder import Encoder, load_encoder

_CACHE_VERSION = 1


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder by its directory and precision, for any process to load."""

    directory: Path
    precision: str

    def load(self, device: torch.device) -> Encoder:
        """The encoder on a device.

        Raises:
            InputError: it cannot be loaded.
        """
        return load_encoder(self.directory, self.precision).to(device)


def pooled_features(
    clips: Sequence[Clip],
    encoder_dir: Path,
    encoder_digest: str,
    *,
    precision: str = "fp32",
    device: torch.device,
    encoding: Encoding = Encoding(),
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean over time of every hidden layer of every clip, (U, L, D) float32.

    The encoder is loaded only if some clip is not in the cache.

    Args:
        clips: U clips.
        encoder_dir: local directory of the encoder.
        encoder_digest: its content hash.
        precision: of the encoder, one of `shape.PRECISIONS`.
        device: where to run it.
        encoding: by what, and where it is kept.
        progress: called as features are made.

    Raises:
        InputError: audio or encoder that cannot be read, or a cache that cannot be used.
    """
    kind = "" if precision == "fp32" else f"-{precision}"
    return cached(
        clips,
        f"features-v{_CACHE_VERSION}-{encoder_digest[:32]}{kind}",
        FrozenEncoder(encoder_dir.absolute(), precision),
        work="encoding",
        device=device,
        encoding=encoding,
        progress=progress,
    )
