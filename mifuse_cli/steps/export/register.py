"""What is known of corpora and audio-language models: licences, and which corpora a model was trained on."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import yaml


def _register() -> Any:
    return yaml.safe_load((files(__package__) / "register.yaml").read_text(encoding="utf-8"))


def licence_of(corpus: str) -> tuple[str, str] | None:
    """Licence of a corpus and where it is stated; None if that is not registered."""
    known = {_plain(name): entry for name, entry in _register()["corpora"].items()}.get(_plain(corpus))
    return (known["licence"], known["source"]) if known else None


def trained_on(lalm: str, corpus: str) -> tuple[bool | None, str]:
    """Whether an audio-language model was trained on a corpus, and the source that says so.

    Args:
        lalm: name of the model, such as ``nvidia/audio-flamingo-2``.
        corpus: name of the corpus, such as ``msp-podcast``.

    Returns:
        True: its source lists the corpus; False: its source lists all training data, and not this corpus; None and ""
        for what is unknown.
    """
    name = _plain(lalm)
    for entry in _register()["lalms"]:
        if any(part in name for part in entry["names"]) and not any(
            part in name for part in entry.get("without", ())
        ):
            if _plain(corpus) in map(_plain, entry["trained_on"]):
                return True, entry["source"]
            return (False, entry["source"]) if entry["complete"] else (None, "")
    return None, ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
