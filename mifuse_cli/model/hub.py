"""Finding the files of a model by its name, without importing torch, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from mifuse_cli.errors import DependencyError, InputError
from mifuse_cli.files import nearest

LOGMEL = "logmel"
"""Name of the encoder that has no files: it is trained from scratch."""


def find_encoder(name: str) -> Path:
    """Local directory of an encoder given as a directory or a hub name (downloaded if it is not cached).

    Raises:
        InputError: a path that is no directory.
        DependencyError: no such directory, and the hub has no such model or cannot be reached.
    """
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
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"{flag} {name}: no such directory{nearest(Path(name))}. Give a local directory, {others}."
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
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            f"Give a local directory in transformers format, {others}."
        ) from None
