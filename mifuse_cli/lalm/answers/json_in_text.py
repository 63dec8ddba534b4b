"""JSON that stands somewhere in a text, with the usual faults mended. Pure and total: no text makes it raise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_WORK = 1 << 20  # characters of bracketed pieces that are tried in vain
_PIECES = 1000  # bracketed pieces of one text that are looked at
_OPENING = re.compile(r"[{\[]")


class Pairs(list[Any]):
    """Items of a JSON object in order; unlike a dict it keeps repeated names."""


_DECODER = json.JSONDecoder(object_pairs_hook=Pairs)


class Piece(NamedTuple):
    """A decoded bracketed piece of the text: where it stands, what it is, and the flags of its decoding."""

    start: int
    end: int
    value: Any
    flags: set[str]


def structures_in(text: str) -> Iterator[Piece]:
    """Decoded bracketed pieces of the text in order."""
    position, work = 0, _WORK
    for _ in range(_PIECES):
        opening = _OPENING.search(text, position)
        if not opening or work < 0:
            return
        start = opening.start()
        try:
            value, end = _DECODER.raw_decode(text, start)
            flags: set[str] = set()
        except (ValueError, RecursionError):
            closing = _closing(text, start)
            value, end = _decoded(repair(text[start:closing])), closing or len(text)
            flags = {"repaired"} if closing else {"repaired", "unclosed"}
            # A piece that is no JSON may hold one; each such look costs its length, and a stray bracket more.
            work -= (end - start) * (1 if closing else 2)
        if value is not None:
            yield Piece(start, end, value, flags)
            position = end
        else:
            position = start + 1


_ESCAPED_QUOTE = re.compile(r'\\+"')


def unescaped(text: str) -> list[Piece]:
    """Pieces of JSON that stands in the text as a string: with a backslash before every quotation mark."""
    if not _ESCAPED_QUOTE.search(text):
        return []
    text = _ESCAPED_QUOTE.sub('"', re.sub(r"\\+[nrt]", " ", text))
    return [piece._replace(flags=piece.flags | {"repaired"}) for piece in structures_in(text)]


def _closing(text: str, start: int) -> int | None:
    """Position after the bracket that closes the one at ``start``, None if it stays open."""
    depth, quoted, escaped = 0, False, False
    for position in range(start, len(text)):
        char = text[position]
        if escaped:
            escaped = False
        elif quoted:
            escaped = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return position + 1
    return None


def _decoded(piece: str) -> Any:
    try:
        return _DECODER.decode(piece)
    except (ValueError, RecursionError):
        return None


_QUOTES = str.maketrans({**dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'")})
# A string that is never closed runs to the end: without that, each quote in it would be tried as a start.
_DOUBLE_QUOTED = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
_STRING = re.compile(f"({_DOUBLE_QUOTED})", re.DOTALL)
_ANY_STRING = re.compile(rf"({_DOUBLE_QUOTED})|'([^'\"\\\n]*)'", re.DOTALL)
_TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")
_BARE_KEY = re.compile(r"([{,]\s*)([^\W\d][\w /-]{0,40}?)(?=\s{0,9}:)")
_PERCENT = re.compile(r"(?<![\w.,])([+-]?\d+(?:[.,]\d+)?\s{0,3}%)")
_DECIMAL = re.compile(r"(:\s*)([+-]?(?:\d+[.,]\d+|[.,]\d+|\d+\.|\+\d+))(?=\s*(?:[,}\]]|\Z))")
_NOT_A_NUMBER = re.compile(r"(:\s*)[+-]?(?:nan|inf|infinity|none|null|n/a)\b", re.IGNORECASE)


def repair(piece: str) -> str:
    """JSON text with the usual faults mended; it may still not be JSON.

    Mended are smart and single quotes, trailing commas, keys without quotes, percent signs and decimal
    commas (such numbers become strings), NaN and its kin (null), and missing closing brackets.

    Args:
        piece: text that starts at an opening bracket.
    """
    piece = piece.translate(_QUOTES)
    piece = _ANY_STRING.sub(lambda found: found[1] or f'"{found[2]}"', piece)
    # The parts at odd positions are strings and stay as they are.
    parts = _STRING.split(piece)
    parts[::2] = [_mended(part) for part in parts[::2]]
    mended = "".join(parts)
    return _TRAILING_COMMA.sub("", mended + _missing(_STRING.split(mended)[::2]))


def _mended(code: str) -> str:
    """Text between strings with keys and odd numbers in quotes."""
    code = _NOT_A_NUMBER.sub(r"\1null", code)
    code = _PERCENT.sub(r'"\1"', code)
    code = _DECIMAL.sub(r'\1"\2"', code)
    return _BARE_KEY.sub(r'\1"\2"', code)


def _missing(parts: list[str]) -> str:
    """Closing brackets that the text between strings lacks, innermost first."""
    expected: list[str] = []
    for char in "".join(parts):
        if char in "{[":
            expected.append("}" if char == "{" else "]")
        elif char in "}]" and expected:
            expected.pop()
    return "".join(reversed(expected))
