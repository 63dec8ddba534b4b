"""One pass that mends the usual faults of JSON written by a language model."""

from __future__ import annotations

import re

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
