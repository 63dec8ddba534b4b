"""Lineage: content hashes of inputs, and checks for changed parents and for outputs that are still current."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import artifacts, audio, manifest
from mifuse_cli.artifacts import Artifact, Header, Parent, Predictions, Reader, Training
from mifuse_cli.audio import file_sha256
from mifuse_cli.config import Config, StepConfig, as_dict, settings
from mifuse_cli.errors import ArtifactError, InputError, MifuseError, some
from mifuse_cli.files import check_file, remove_leftovers
from mifuse_cli.manifest import Clip, Clips
from mifuse_cli.provenance import text_digest, without_secrets

COMPARED = ("lalm", "source", "fused", "model", "predictions")
"""Roles of parents that are artifacts or checkpoints, whose content hash can be recomputed."""

_HISTORY = "train.h5"
_CHECKPOINT = (
    _HISTORY,
    "predictions.h5",
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "encoder",
)
"""What there is in the directory of a checkpoint."""

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
    lines = [f"{file.relative_to(path).as_posix()} {file_sha256(check_file(file))}" for file in files]
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


def state(artifact: Path, parent: Parent) -> str:
    """What has become of a parent of the artifact at a path: unchanged, changed, absent, or not compared.

    Raises:
        InputError: it is there and cannot be read.
    """
    if parent.role not in COMPARED:
        return "not compared"
    place = place_of(parent, artifact)
    if not place.exists():
        return "absent"
    try:
        return "unchanged" if digest(place) == parent.sha256 else "changed"
    except MifuseError as error:
        if isinstance(error.__context__, OSError):
            raise
        return "changed"


def clips_of(artifact: Artifact, path: Path) -> list[Clip] | None:
    """The clips that the artifact at ``path`` was made from, sorted by utterance id, audio or not.

    Predictions that record their files name them themselves, unless a manifest tells more of the same clips. None if
    the artifact names none, or if the manifest or directory that it names is not there any more.

    Raises:
        InputError: the manifest or the directory cannot be read.
    """
    named = artifact.header.parent("clips")
    place = place_of(named, path) if named else None
    by_itself = isinstance(artifact, Predictions) and artifact.file is not None
    in_windows = artifact.header.config.get("segments") is not None
    if place and by_itself and (in_windows or not place.is_file()):
        return _recorded_clips(artifact, place)
    if place is None or not place.exists():
        return None
    if place.is_dir():
        return sorted(Clips(None, place, need_audio=False), key=lambda clip: clip.utt_id)
    return manifest.read_clips(place, need_audio=False)


def _recorded_clips(made: Artifact, place: Path) -> list[Clip]:
    """The clips that predictions record, whose files are named as seen from where ``predict`` ran.

    Args:
        made: the predictions.
        place: where the manifest or the directory is now that they were made from, for files that were named one by
            one the working directory.
    """
    given = made.header.config
    base, now = given.get("wav_dir") or "", place
    if given.get("manifest"):
        base, now = os.path.dirname(given["manifest"]), place.parent

    def found(file: str) -> Path:
        # Both as seen from one directory, which need not be the present one.
        below = file if os.path.isabs(file) else os.path.relpath(now / file, now / base)
        return Path(os.path.normpath(now / below))

    assert isinstance(made, Predictions) and made.file is not None
    starts = np.zeros(len(made.utt_id)) if made.start is None else made.start
    ends = np.full(len(made.utt_id), np.nan) if made.end is None else made.end
    rows = zip(made.utt_id.tolist(), made.file.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [
        Clip(utt_id, found(file), start=start, end=None if np.isnan(end) else end)
        for utt_id, file, start, end in rows
    ]


def speakers_parent(clips: Sequence[Clip], path: Path, out: Path) -> Parent:
    """The speakers of the clips read from ``path`` as a parent, for steps whose result depends on them."""
    text = " ".join(f"{clip.utt_id}={clip.speaker}" for clip in clips)
    return Parent("speakers", relative(path, out), text_digest(text))


def heard_in(training: Training, clips: Sequence[Clip]) -> np.ndarray:
    """Which clips (U,) bool a model was trained on, see `heard_of`."""
    return heard_of(training, np.array([clip.utt_id for clip in clips]), content(clips))


def heard_of(training: Training, utt_id: np.ndarray, audio_sha256: np.ndarray) -> np.ndarray:
    """Which clips (U,) bool a model was trained on: by their audio; by their ids in models of before it was noted.

    Args:
        training: of the model.
        utt_id: (U,) ids of the clips.
        audio_sha256: (U,) as `content` gives them.
    """
    if training.audio_sha256 is None:
        return np.isin(utt_id, training.utt_id)
    return np.isin(audio_sha256, training.audio_sha256)


def content(clips: Sequence[Clip]) -> np.ndarray:
    """Hex SHA-256 (U,) str that stand for the audio of clips, see `audio.key`."""
    return np.array([audio.key(*clip.excerpt) for clip in clips])


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


def refuse_overwrite(config: StepConfig, out: Path, kind: type[Artifact]) -> None:
    """Stop early where the output must not be written: it exists and neither --force nor --update was given, or
    it is something else than what this step makes, or an input.

    Args:
        config: of the step.
        out: what it will write.
        kind: of artifact; `Training` for a checkpoint directory.

    Raises:
        InputError: naming what is there.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        refuse_other(out, kind)
        if not config.force and not config.update:
            raise InputError(
                f"{out}: exists already. Choose another --out, or pass --force to overwrite it "
                "(--update to do so only if its settings or inputs changed)."
            )
    refuse_inputs(config, out)


def refuse_other(out: Path, kind: type[Artifact]) -> None:
    """Refuse to replace what is no artifact of this kind that mifuse made.

    Raises:
        InputError: naming what was found.
    """
    never = "Choose another --out, or move that away; neither --force nor --update replaces it."
    is_checkpoint = kind is Training
    what = "a checkpoint" if is_checkpoint else f"an artifact of kind {kind.kind!r}"
    if is_checkpoint != out.is_dir() or (is_checkpoint and not (out / _HISTORY).exists()):
        found = "is a directory" if out.is_dir() else "is a file" if out.exists() else "is a link to nothing"
        raise InputError(f"{out}: {found}, but not {what}. {never}")
    try:
        found, _ = artifacts.read_header(out / _HISTORY if is_checkpoint else out)
    except MifuseError as error:
        raise InputError(f"{out}: exists, and is not {what} ({error}) {never}") from None
    if found != kind.kind:
        raise InputError(f"{out}: is of kind {found!r}, and not {what}. {never}")
    if is_checkpoint and (others := sorted(one.name for one in out.iterdir() if not _of_checkpoint(one))):
        raise InputError(
            f"{out}: holds more than a checkpoint, which would be lost: {some(others)}. Move that away, or choose "
            "another --out."
        )


def _of_checkpoint(file: Path) -> bool:
    return file.name in _CHECKPOINT or file.name.startswith(".")


def refuse_inputs(config: Config, out: Path) -> None:
    """Refuse an output that is an input of the same step, or holds one.

    Raises:
        InputError: naming the option.
    """
    place = out.resolve()
    for name, given in as_dict(config).items():
        for value in given if isinstance(given, list) else [given]:
            if name == "out" or not isinstance(value, str) or not value or "\0" in value:
                continue
            path = Path(value)
            if os.path.exists(path) and path.resolve().is_relative_to(place):
                raise InputError(
                    f"{out}: is to be written, but --{name.replace('_', '-')} {value} is read from there. Choose "
                    "another --out."
                )


def is_current(config: StepConfig, out: Path, parents: Sequence[Parent]) -> bool:
    """Whether --update is given and ``out`` is complete and was made with these settings and inputs.

    If so nothing is written, and what a process that was killed right after it had made ``out`` left is removed here.
    """
    if not config.update or config.force:
        return False
    try:
        made = artifacts.read(out / _HISTORY if out.is_dir() else out)
        if out.is_dir() and digest(out) != made.header.parameters["model_sha256"]:
            return False
    except (MifuseError, KeyError):
        return False
    if made.header.config.get("settings") != _public(settings(config)):
        return False
    # In order, since a role may be repeated: fuse takes several LALMs, and their order is that of its arrays.
    if [(p.role, p.sha256) for p in made.header.parents] != [(p.role, p.sha256) for p in parents]:
        return False
    remove_leftovers(out)
    return True


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
