"""Finding the files of a model by its name, without importing torch, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from mifuse_cli import artifacts
from mifuse_cli.errors import DependencyError, InputError, did_you_mean
from mifuse_cli.files import nearest

LOGMEL = "logmel"
"""Name of the encoder that has no files: it is trained from scratch."""


def find_encoder(name: str) -> Path:
    """Local directory of an encoder given as a directory or a hub name (downloaded if it is not cached).

    Raises:
        InputError: a path that is no directory, a directory of mifuse's own, or a name that is nearly `LOGMEL`.
        DependencyError: no such directory, and the hub has no such model or cannot be reached.
    """
    # No model of the hub without an owner is called nearly so.
    if "/" not in name and not Path(name).exists() and (hint := did_you_mean(name, [LOGMEL])):
        raise InputError(f"--encoder {name}: no such encoder{hint}. Give a local directory, or a hub name.")
    return _find("--encoder", name, f"a hub name, or {LOGMEL!r}")


def find_speaker_encoder(name: str) -> Path:
    """Local directory of a speaker encoder, as `find_encoder`."""
    return _find("--speaker-encoder", name, "or a hub name")


def name_of(given: str | Path) -> str:
    """A model in short: its hub name, also of a directory in the hub's cache, else the last part of its path."""
    parts = Path(given).parts
    cached = [part for part in parts if part.startswith("models--")]
    if cached:
        return cached[-1].removeprefix("models--").replace("--", "/")
    return Path(given).resolve().name if Path(given).is_absolute() or parts[0] in (".", "..") else str(given)


def _find(flag: str, name: str, others: str) -> Path:
    path = Path(name)
    expected = f"Expected the directory of an encoder in transformers format, {others}."
    if artifacts.is_checkpoint(path):
        raise InputError(
            f"{flag} {name}: is {artifacts.CHECKPOINT} of mifuse, not an encoder. {expected} That of the checkpoint "
            f"is {path / 'encoder'}."
        )
    if artifacts.is_export(path) or (path.exists() and not path.is_dir()):
        raise InputError(f"{flag} {name}: is {artifacts.what(path)}. {expected}")
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"{flag} {name}: no such directory{nearest(path)}. Give a local directory, {others}."
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"]))
        if not any(found.glob("*.safetensors")):
            # Only to be converted, as `loading.read_config` will say.
            snapshot_download(name, allow_patterns=["pytorch_model*.bin"])
        return found
    except Exception as error:  # the hub client raises a dozen unrelated types; the text says which
        raise DependencyError(
            f"{flag} {name!r}: is neither a local directory nor available from the model hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}){nearest(path)}. "
            f"Give a local directory in transformers format, {others}."
        ) from None
