"""Errors that end a command, each with the exit code that the shell sees.

    MifuseError            1   a bug in mifuse
    ├── UsageError         2   options that make no sense
    ├── InputError         3   input missing, unreadable or invalid; output exists already
    ├── ArtifactError      4   artifact of another kind, schema, class order, clip set or parent
    ├── RemoteError        5   the remote service failed; answers so far are in the journal
    └── DependencyError    6   a package, model or GPU is missing

A message says what was found, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_NAMED = 10
_SENTENCES = 50


class MifuseError(Exception):
    """Parent of every error that mifuse raises on purpose."""

    exit_code = 1


class UsageError(MifuseError):
    """Options or configuration values that are invalid or contradict each other."""

    exit_code = 2


class InputError(MifuseError):
    """Input data that is missing, unreadable or invalid, or an output that must not be overwritten."""

    exit_code = 3


class ArtifactError(MifuseError):
    """An artifact with another kind, schema, class order or clip set than needed, or a changed parent."""

    exit_code = 4


class RemoteError(MifuseError):
    """The remote service failed for good; what it answered so far is kept in the journal."""

    exit_code = 5


class DependencyError(MifuseError):
    """A Python package, a model or a GPU that the command needs is not there."""

    exit_code = 6


def some(values: Iterable[object]) -> str:
    """The first ten values for a message, and how many more there are."""
    listed = [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values
    ]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def listed(sentences: Sequence[str]) -> str:
    """Faults for a message: all of them, but no more than fifty."""
    more = len(sentences) - _SENTENCES
    return " ".join(sentences[:_SENTENCES]) + (f" And {more} more." if more > 0 else "")


def number_of(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless it is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_of(count: float) -> str:
    """Bytes in the unit that fits: ``312 kB``, ``1.32 MB``, ``12.4 GB``."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


def duration_of(seconds: float) -> str:
    """Seconds in the unit that fits: ``6 s``, ``12.5 minutes``, ``1.2 hours``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} minutes" if seconds < 3600 else f"{seconds / 3600:.4g} hours"


def did_you_mean(given: object, known: Iterable[str], form: str = " (did you mean {!r}?)") -> str:
    """A hint with the known name that is nearest to ``given``, "" if none is near.

    Args:
        given: what was found instead of a known name.
        known: names that were possible.
        form: the hint, with a place ``{}`` for the name.
    """
    names = list(known)
    swapped = [name for name in names if sorted(name) == sorted(str(given))]  # of short names not near enough
    near = swapped or get_close_matches(str(given), names, n=1)
    return form.format(near[0]) if near else ""
