"""What stands in an answer once thoughts, fences and the usual faults of JSON are out of the way."""

from __future__ import annotations

import re
import unicodedata

_THOUGHT = re.compile(
    r"<(/?)(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad)>|[\[◁](/?)think[\]▷]",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>[ \t]{0,4}(\w{1,20})")
_FENCE = re.compile(r"```(?:[ \t]*\w{0,10}[ \t]*(?=\n))?")
_PER_CENT = re.compile(r"(?<=\d)[ \t]{0,2}(?:per ?cent|pour ?cent|prozent|por ciento)\b", re.IGNORECASE)
_ARABIC = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹٪٫،؛", "01234567890123456789%.,;")


def visible(text: str) -> str:
    """What an answer says once thinking is done.

    Removed are blocks of thought (``<think>``, ``<reasoning>``, ``[THINK]`` and their kin, all channels but
    the final one), byte order mark and code fences; an answer that is all thought becomes empty. Characters
    take their compatibility form, Arabic digits and signs their Latin one, "percent" becomes ``%``.
    """
    text = _outside_thoughts(_final_channel(text))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\ufeff", "").translate(_ARABIC)
    return _PER_CENT.sub("%", _FENCE.sub("\n", text)).strip()


def _final_channel(text: str) -> str:
    channels = list(_CHANNEL.finditer(text)) if "<|channel|>" in text else []
    if not channels:
        return text
    last = channels[-1]
    return text[last.end() :].partition("<|message|>")[2] if last[1] == "final" else ""


def _outside_thoughts(text: str) -> str:
    kept: list[str] = []
    depth = position = 0
    for tag in _THOUGHT.finditer(text):
        if not depth:
            kept.append(text[position : tag.start()])
        position = tag.end()
        if not (tag[1] or tag[2]):
            depth += 1
        elif depth:
            depth -= 1
        else:
            # A closing tag alone: the chat template had opened the block, all so far is thought.
            kept.clear()
    if not depth:
        kept.append(text[position:])
    return "".join(kept)


_NAME = r"[^\W\d_]{1,30}(?:[ _-][^\W\d_]{1,30}){0,2}"
_SHARE = r"[~≈]?\d+(?:[.,]\d+)?[ \t]?%"
_LINE = re.compile(
    rf"(?<![^\W\d_])({_NAME})[\"'*_` \t]{{0,6}}(?:[:=→]|\bis\b|([|(]|[ \t][-–—][ \t]))"
    r"[\"'*_` \t]{0,6}([~≈]?[+-]?\d+(?:[.,]\d+)?[ \t]?%?)"
)
# Without a sign between name and number only a list of nothing but shares tells which belongs to which.
_LISTED = re.compile(
    rf"(?:^|[,;|\n])[ \t*•>-]{{0,6}}(?:({_NAME})[ \t*]{{1,4}}({_SHARE})|({_SHARE})[ \t*]{{1,4}}({_NAME}))"
    r"[ \t*.]{0,6}(?=$|[,;|\n])"
)


def listings(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Names with numbers outside JSON: those like ``name: 0.7``, then those like ``name 70%`` or ``70% name``."""
    # In "70% sad | 30% angry" the bar stands between two pairs, not within one.
    signed = [
        (found[1], found[3])
        for found in _LINE.finditer(text)
        if not (found[2] and "%" in text[max(found.start() - 2, 0) : found.start()])
    ]
    listed = [(found[1] or found[4], found[2] or found[3]) for found in _LISTED.finditer(text)]
    return signed, listed


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
