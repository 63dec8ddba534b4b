"""Taking secrets out of what is shown or kept, in whatever form a body may give them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import unescape
from typing import Any
from urllib.parse import unquote

from mifuse_cli.lalm.answers.response import decode_json

SHORTEST = 8
"""Characters of a secret that cannot be a word of an answer."""

_LONG = 16  # characters of a secret whose beginning, too, says too much
_FRAGMENT = 12  # characters in a row that do
_HIDDEN = "***"


class Secrets:
    """Secrets of a run, such as its key.

    Args:
        values: in plain text; empty ones are left out.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({value for value in values if value}, key=len, reverse=True)
        long = [value for value in self._values if len(value) >= SHORTEST]
        self._written = re.compile("|".join(map(_forms, long))) if long else None
        self._written_bytes = re.compile(self._written.pattern.encode()) if self._written else None
        self._fragments = {
            value[start : start + _FRAGMENT]
            for value in long
            if len(value) >= _LONG
            for start in range(len(value) - _FRAGMENT + 1)
        }
        self._fragment = re.compile("|".join(map(re.escape, self._fragments))) if self._fragments else None

    def shown(self, text: str) -> str:
        """A message without secrets, without what follows the beginning of a long one, and without short ones."""
        for value in self._values:
            if len(value) < SHORTEST:
                text = re.sub(rf"(?<![\w-]){re.escape(value)}(?![\w-])", _HIDDEN, text)
        text = self._written.sub(_HIDDEN, text) if self._written else text
        for value in self._values:
            if len(value) >= _LONG:
                text = re.sub(rf"{re.escape(value[:SHORTEST])}[\w*.-]*", _HIDDEN, text)
        return self._plain(text)

    def body(self, raw: bytes) -> bytes:
        """A body without secrets of `SHORTEST` characters or more, as it is if it holds none.

        Decoded text is looked at as well: in a body a secret may be escaped, or cut into pieces by a stream.
        Such a body is written anew, as the JSON that it comes to.
        """
        if self._written_bytes is None:
            return raw
        raw = self._written_bytes.sub(_HIDDEN.encode(), raw)
        if not self._may_hide(raw):
            return raw
        decoded = decode_json(raw)
        if decoded is None:
            text = raw.decode("utf-8", "replace")
            plain = self._plain(text)
            return raw if plain == text else plain.encode()
        hidden = self._hidden(decoded)
        return raw if hidden == decoded else json.dumps(hidden).encode()

    def _may_hide(self, raw: bytes) -> bool:
        """Whether a body may hold a part of a secret; few do, and to decode it takes a while."""
        if b"data:" in raw or b"\\u" in raw:
            return True
        text = raw.decode("utf-8", "replace").replace("\\", "")
        return self._plain(text) != text

    def _hidden(self, value: Any) -> Any:
        """Decoded JSON without secrets."""
        if isinstance(value, str):
            return self._plain(value)
        if isinstance(value, list):
            return [self._hidden(one) for one in value]
        if isinstance(value, dict):
            return {self._plain(name): self._hidden(one) for name, one in value.items()}
        return value

    def _plain(self, text: str) -> str:
        if self._written:
            text = self._written.sub(_HIDDEN, text)
        if self._fragment is None:
            return text
        for mark, decode in (("%", unquote), ("&#", unescape)):
            # A part of a secret in such a form: the text is shown in its plain one, without the part.
            if mark in text and self._fragment.search(plain := decode(text)):
                text = plain
        kept, position = [], 0
        while found := self._fragment.search(text, position):
            end = found.end()
            while text[end - _FRAGMENT + 1 : end + 1] in self._fragments:
                end += 1
            kept += [text[position : found.start()], _HIDDEN]
            position = end
        return "".join(kept) + text[position:]


def _forms(secret: str) -> str:
    r"""Pattern of a secret each of whose characters may be escaped, as ``\/``, ``\u002f`` or ``%2f``."""
    # Backslashes are bounded, or a body of nothing else would take for ever.
    return "".join(
        rf"(?:\\{{0,8}}{re.escape(char)}|\\{{1,8}}u(?i:{ord(char):04x})"
        rf"|{''.join(f'%(?:25){{0,3}}(?i:{byte:02x})' for byte in char.encode())}"
        rf"|&#(?:x(?i:{ord(char):x})|{ord(char)});)"
        for char in secret
    )
