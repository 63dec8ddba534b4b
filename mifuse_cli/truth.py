"""True classes of given clips, for scoring and for the oracle, the only method that may use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mifuse_cli import artifacts, lineage, provenance
from mifuse_cli.artifacts import Parent
from mifuse_cli.manifest import Clip, read_labelled


def read_labels(path: Path, classes: tuple[str, ...], clips: Sequence[Clip]) -> np.ndarray:
    """Class indices (U,) of the clips.

    Raises:
        InputError: labels that cannot be read or are unknown.
        ArtifactError: they are of other clips.
    """
    labelled = read_labelled(path, classes, need_audio=False)
    ids = np.array([one.clip.utt_id for one in labelled])
    artifacts.check_same_utterances(ids, str(path), np.array([clip.utt_id for clip in clips]), "the clips")
    return np.array([one.label for one in labelled])


def labels_parent(path: Path, clips: Sequence[Clip], truth: np.ndarray | None, out: Path) -> Parent:
    """The labels as a parent of the output ``out``."""
    assert truth is not None
    text = " ".join(f"{clip.utt_id}={label}" for clip, label in zip(clips, truth, strict=True))
    return Parent("labels", lineage.relative(path, out), provenance.text_digest(text))
