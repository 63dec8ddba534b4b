"""Emotion classes: the canonical order and the check of a class list."""

from __future__ import annotations

import shlex
import unicodedata

from mifuse_cli.errors import InputError, UsageError, did_you_mean

CLASSES = ("angry", "happy", "neutral", "sad")


def parse_classes(text: str) -> tuple[str, ...]:
    """Class names in order from a comma-separated list.

    Raises:
        UsageError: fewer than two names, an empty name or a repeated one.
    """
    classes = tuple(composed(name.strip()) for name in text.split(","))
    if len(classes) < 2 or "" in classes or len(set(classes)) != len(classes):
        raise UsageError(f"--classes {text!r}: expected two or more different names separated by commas")
    return classes


def composed(name: str) -> str:
    """A name with its accents composed (NFC), in which form names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def class_index(label: str, classes: tuple[str, ...], where: str) -> int:
    """Position of ``label`` in ``classes``; ``where`` names the row for the error message.

    Raises:
        InputError: the label is not one of the classes.
    """
    if label in classes:
        return classes.index(label)
    if not label:
        raise InputError(
            f"{where}: has no label, expected one of {', '.join(classes)}. Add it, or remove the row."
        )
    hint = did_you_mean(label, classes, "; did you mean {!r}?") or "."
    raise InputError(
        f"{where}: unknown label {label!r}, expected one of {', '.join(classes)}{hint} "
        "Remove the row, rename the label, or give the source model other --classes; mifuse prepare generic TABLE OUT "
        f"--merge {shlex.quote(label)}=CLASS writes a table with labels renamed."
    )
