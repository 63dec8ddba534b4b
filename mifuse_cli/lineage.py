"""Lineage: content hashes of inputs, and checks for changed parents and for outputs that are still current."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mifuse_cli import artifacts, manifest
from mifuse_cli.artifacts import Artifact, Header, Parent, Reader
from mifuse_cli.audio import file_sha256
from mifuse_cli.config import StepConfig, as_dict, settings
from mifuse_cli.errors import ArtifactError, InputError, MifuseError
from mifuse_cli.manifest import Clip
from mifuse_cli.provenance import text_digest, without_secrets

COMPARED = ("lalm", "source", "fused", "model", "predictions")
"""Roles of parents that are artifacts or checkpoints, whose content hash can be recomputed."""

_MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.bin")


def digest(path: Path) -> str:
    """Content hash of an artifact, or of a model directory (its configuration and weights).

    That of an artifact is the one recorded in it, which its header and the hashes of its datasets have to agree with;
    each dataset is compared with its hash whenever a step reads it.

    Raises:
        InputError: there is nothing at ``path``, or no model in the directory.
        ArtifactError: a file that is no artifact.
    """
    if not path.is_dir():
        state = path.stat() if path.is_file() else None
        return _artifact_digest(path, *((state.st_mtime_ns, state.st_size, state.st_ino) if state else ()))
    files = sorted(file for pattern in _MODEL_FILES for file in path.rglob(pattern))
    if not files:
        raise InputError(f"{path}: holds no model (config.json and *.safetensors). Check the path.")
    lines = [f"{file.relative_to(path).as_posix()} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@lru_cache(maxsize=64)
def _artifact_digest(path: Path, *state: int) -> str:
    """Content hash of an artifact, taken once while the file's time, size and inode stay as they are."""
    with artifacts.reading(path) as found:
        return found.sha256


def parent(role: str, path: Path, out: Path) -> Parent:
    """The input at ``path`` as a parent of the output ``out``."""
    return Parent(role, relative(path, out), digest(path))


def relative(path: Path, out: Path) -> str:
    """``path`` as seen from the directory that holds the output ``out``."""
    return os.path.relpath(path, out.parent)


def place_of(parent: Parent, artifact: Path) -> Path:
    """Where the parent of an artifact is, as seen from here; the converse of `relative`, also beyond links."""
    return Path(os.path.normpath(os.path.abspath(artifact.parent / parent.path)))


def clips_parent(clips: Sequence[Clip], path: Path, out: Path) -> Parent:
    """The audio read from ``path`` (a manifest or a directory) as a parent."""
    return Parent("clips", relative(path, out), manifest.digest(clips))


def speakers_parent(clips: Sequence[Clip], path: Path, out: Path) -> Parent:
    """The speakers of the clips read from ``path`` as a parent, for steps whose result depends on them."""
    text = " ".join(f"{clip.utt_id}={clip.speaker}" for clip in clips)
    return Parent("speakers", relative(path, out), text_digest(text))


def check_same_audio(
    first: Artifact | Reader, first_name: str, clips: Parent | None, clips_name: str
) -> None:
    """Refuse an artifact that was made from other audio than that of the parent ``clips``.

    Raises:
        ArtifactError: naming both.
    """
    heard = first.header.parent("clips")
    if heard and clips and heard.sha256 != clips.sha256:
        raise ArtifactError(
            f"{first_name}: was made from other audio than {clips_name}: the ids are the same, the files are not. "
            "Make it anew from the clips as they are now."
        )


def header(
    config: StepConfig, classes: tuple[str, ...], parents: Sequence[Parent], **parameters: Any
) -> Header:
    """Root attributes of an artifact that this configuration makes."""
    return Header(
        classes=classes,
        seed=config.seed,
        config={**_public(as_dict(config)), "settings": _public(settings(config))},
        parameters=parameters,
        parents=tuple(parents),
    )


def _public(values: dict[str, Any]) -> dict[str, Any]:
    return {key: without_secrets(v) if isinstance(v, str) else v for key, v in values.items()}


def refuse_overwrite(config: StepConfig, out: Path) -> None:
    """Stop early where the output exists and neither --force nor --update was given.

    A directory that is no checkpoint is never replaced.

    Raises:
        InputError: it exists.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "train.h5").is_file():
        raise InputError(
            f"{out}: is a directory, but not a checkpoint. Choose another --out; "
            "neither --force nor --update replaces it."
        )
    if out.exists() and not config.force and not config.update:
        raise InputError(
            f"{out}: exists already. Choose another --out, or pass --force to overwrite it "
            "(--update to do so only if its settings or inputs changed)."
        )


def is_current(config: StepConfig, out: Path, parents: Sequence[Parent]) -> bool:
    """Whether --update is given and ``out`` is complete and was made with these settings and inputs."""
    if not config.update or config.force:
        return False
    try:
        made = artifacts.read(out / "train.h5" if out.is_dir() else out)
        if out.is_dir() and digest(out) != made.header.parameters["model_sha256"]:
            return False
    except (MifuseError, KeyError):
        return False
    same_settings = made.header.config.get("settings") == _public(settings(config))
    # In order, since a role may be repeated: fuse takes several LALMs, and their order is that of its arrays.
    return same_settings and [(p.role, p.sha256) for p in made.header.parents] == [
        (p.role, p.sha256) for p in parents
    ]


def check_parents(artifact: Artifact | Reader, path: Path) -> None:
    """Refuse an artifact whose parents, where they are still in place, have changed since it was made.

    Raises:
        ArtifactError: naming the changed parent and the command that makes the artifact anew.
    """
    _check_parents(artifact.header, path)


def _check_parents(header: Header, path: Path) -> None:
    for one in header.parents:
        place = place_of(one, path)
        if one.role not in COMPARED or not place.exists():
            continue
        if digest(place) != one.sha256:
            raise ArtifactError(
                f"{path}: is stale: its {one.role} {place} has changed since. Make it anew: {header.command}"
            )
        if place.suffix == ".h5":
            _check_parents(artifacts.read_header(place)[1], place)
