"""Files of questions for a batch: one request a line, with a name that tells what it asks for."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mifuse_cli.lalm.questions.plan import Question


def line(question: Question, model: str) -> bytes:
    """The line of a batch file that asks a question."""
    body: dict[str, Any] = {"model": model, "messages": question.messages(), **question.fields}
    if len(question.choices) > 1:
        body["n"] = len(question.choices)
    entry = {
        "custom_id": custom_id(question.key, question.choices),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def custom_id(key: str, choices: Sequence[int]) -> str:
    """Name of a request within a batch: the key, and the wanted choices as bits of a hexadecimal number."""
    return f"{key}.{sum(1 << choice for choice in choices):x}"


def asked_for(custom_id: str) -> tuple[str, tuple[int, ...]]:
    """Key and choices of a `custom_id`; no choices if it is none."""
    found = re.fullmatch(r"(.+)\.([1-9a-f][0-9a-f]*)", custom_id, re.DOTALL)
    bits = int(found[2], 16) if found else 0
    return found[1] if found else "", tuple(i for i in range(bits.bit_length()) if bits >> i & 1)


class BatchFile:
    """Questions of a batch in the making, in a file without a name, so that no audio stays behind.

    Args:
        directory: where there is room.
        max_requests: most lines.
        max_bytes: most bytes.

    Attributes:
        tag: names the batch.
        content: the lines so far.
        intents: those of the lines.
        left: whether the provider may have made a batch of it.
    """

    def __init__(self, directory: Path, max_requests: int, max_bytes: int) -> None:
        self.tag = secrets.token_hex(16)
        self.content = TemporaryFile(dir=directory)  # noqa: SIM115 - closed with the file
        self.intents: list[Future[int]] = []
        self.left = False
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._keys: set[str] = set()
        self._size = 0

    def takes(self, key: str, line: bytes) -> bool:
        """Whether the line fits in; a key can be asked for only once."""
        room = len(self._keys) < self._max_requests and self._size + len(line) <= self._max_bytes
        return room and key not in self._keys

    def add(self, key: str, line: bytes, intent: Future[int]) -> None:
        """Write a line."""
        self.content.write(line)
        self.intents.append(intent)
        self._keys.add(key)
        self._size += len(line)
