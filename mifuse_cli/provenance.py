"""Provenance: seeded random generators, versions, and the command line without secrets."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata

import numpy as np

_PACKAGES = (
    "mifuse",
    "numpy",
    "h5py",
    "torch",
    "torchaudio",
    "transformers",
    "openai",
    "scikit-learn",
    "scipy",
)
_SECRET_IN_URL = re.compile(r"(?<=://)[^/?\s]+@|(?<=\?)\S+")
_FRAGMENT_OF_URL = re.compile(r"(://[^\s#]*#)\S+")


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """Random generator for one named use of the seed: draws for one use do not affect those for another."""
    return np.random.default_rng(named_seed(seed, *names))


def named_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed made from ``seed`` and the names of what it is for."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def versions() -> dict[str, str]:
    """Python, platform and package versions; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """The running command as a shell takes it, with user names, passwords and queries in URLs replaced by ``***``."""
    program = "mifuse" if "mifuse" in sys.argv[0] else sys.argv[0].rsplit("/", 1)[-1]
    # Names of files need not be UTF-8.
    words = [word.encode("utf-8", "backslashreplace").decode() for word in (program, *sys.argv[1:])]
    return shlex.join(map(without_secrets, words))


def without_secrets(text: str) -> str:
    """``text`` with the user, password, query and fragment of every URL replaced by ``***``."""
    text = _SECRET_IN_URL.sub(lambda match: "***@" if match[0].endswith("@") else "***", text)
    return _FRAGMENT_OF_URL.sub(r"\1***", text)


def text_digest(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
