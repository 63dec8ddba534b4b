"""True classes of given clips: of all of them for scoring and for the oracle, of a few for the few-gold protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mifuse_cli import artifacts, lineage, provenance
from mifuse_cli.artifacts import Parent
from mifuse_cli.errors import ArtifactError, InputError
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


def read_gold(path: Path, classes: tuple[str, ...], utt_id: np.ndarray, where: str) -> np.ndarray:
    """Class indices (U,) of the few clips whose true class is known, -1 for all others.

    Args:
        path: CSV of these clips, or of more with an empty ``emotion``.
        classes: K names in order.
        utt_id: (U,) ids of all clips.
        where: what they are read from, for the error message.

    Raises:
        InputError: labels that cannot be read or are unknown, or none at all.
        ArtifactError: they are of other clips.
    """
    labelled = read_labelled(path, classes, need_audio=False, some=True)
    if not labelled:
        raise InputError(
            f"{path}: the column 'emotion' is empty throughout. Label some clips, or leave --gold out."
        )
    position = {name: number for number, name in enumerate(utt_id.tolist())}
    other = [one.clip.utt_id for one in labelled if one.clip.utt_id not in position]
    if other:
        raise ArtifactError(
            f"{path}: {len(other)} of {len(labelled)} labelled clips, such as {other[0]!r}, are not among the "
            f"{len(utt_id)} clips of {where}. Expected the same utt_id, or name of the file."
        )
    gold = np.full(len(utt_id), -1)
    for one in labelled:
        gold[position[one.clip.utt_id]] = one.label
    return gold


def labels_parent(path: Path, clips: Sequence[Clip], truth: np.ndarray | None, out: Path) -> Parent:
    """The labels as a parent of the output ``out``."""
    assert truth is not None
    text = " ".join(f"{clip.utt_id}={label}" for clip, label in zip(clips, truth, strict=True))
    return Parent("labels", lineage.relative(path, out), provenance.text_digest(text))


def gold_parent(path: Path, utt_id: np.ndarray, gold: np.ndarray, out: Path) -> Parent:
    """The few known classes as a parent of the output ``out``."""
    text = " ".join(f"{name}={label}" for name, label in zip(utt_id, gold, strict=True) if label >= 0)
    return Parent("gold", lineage.relative(path, out), provenance.text_digest(text))
