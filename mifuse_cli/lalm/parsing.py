"""From the text of an answer to a distribution over the classes, or to the reason why there is none.

Everything here is pure and total: no text makes it raise, nothing is evaluated as code, and an answer that
is no distribution never becomes a uniform one. Raw answers are kept in the journal, so a better parser
reads old answers again without asking again; `PARSER_VERSION` says which parser read them.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mifuse_cli.lalm.aliases import fold, resolver, unspaced_words
from mifuse_cli.lalm.repair import repair

PARSER_VERSION = 1

LONGEST = 64 * 1024  # characters of an answer, without its thoughts
FILLED_MASS = 0.95  # share that the named classes must hold before the others count as zero
DROPPED_MASS = 0.05  # largest share of labels that are not classes
EXACT_SUM = (0.98, 1.02)  # sums that are rounding only
USABLE_SUM = (0.5, 1.5)  # sums that are renormalised, with a flag

_CANDIDATES = 8  # bracketed pieces of one answer that are tried
_DEPTH = 4  # nesting of a distribution inside other objects
_SLACK = 1e-9  # sums of decimal fractions miss their bound by rounding


class Status(IntEnum):
    """What became of one question; the value is stored as uint8."""

    MISSING = 0  # never asked, or no answer
    OK = 1
    LABEL_ONLY = 2  # one label word and no numbers
    REFUSED = 3
    INCOMPLETE = 4  # labels missing, or mass on labels that are not classes
    BAD_SUM = 5
    UNPARSED = 6
    EMPTY = 7
    REJECTED = 8  # the server rejected this clip with a 4xx


@dataclass(frozen=True)
class Parsed:
    """One answer as read.

    Attributes:
        probs: K probabilities in class order that sum to 1, or None unless ``status`` is OK.
        status: what the answer is.
        flags: what was done to read it, sorted: ``dropped`` (labels that are not classes), ``duplicate``,
            ``filled`` (missing labels set to 0), ``invalid`` (negative or non-finite value), ``lines`` (no
            JSON), ``mixed`` (percent signs on some values only), ``oversize``, ``percent``, ``renorm``,
            ``repaired``, ``unclosed`` (the answer ends before its JSON does).
        total: sum of the class values as proportions, before renormalisation; None without values.
    """

    probs: tuple[float, ...] | None
    status: Status
    flags: tuple[str, ...]
    total: float | None


def parse_answer(text: str, classes: tuple[str, ...]) -> Parsed:
    """Read one answer, most explicit form first.

    Thoughts and code fences are removed. The first bracketed piece that holds a class name with a value is
    read as JSON, if need be after one repair; else ``label: number`` lines; else the answer is a refusal, a
    lone label or unparsed. Names are compared without case and through a table of synonyms. Values are
    percentages if they carry percent signs or sum to 50..150. Missing classes are 0 if the others hold 0.95,
    other labels are dropped up to 0.05, sums of 0.5..1.5 are renormalised.

    Args:
        text: content of the answer; any string.
        classes: K class names.

    Returns:
        The distribution, shape (K,) in the order of ``classes``, or the reason why there is none.
    """
    text = _visible(text)
    if not text:
        return Parsed(None, Status.EMPTY, (), None)
    if len(text) > LONGEST:
        return Parsed(None, Status.UNPARSED, ("oversize",), None)
    for value, flags in _structures(text):
        pairs = _distribution(value, classes)
        if pairs:
            return _judge(pairs, classes, flags)
    pairs = _lines(text, classes)
    if pairs:
        return _judge(pairs, classes, {"lines"})
    # Before the lone label: "I can't tell whether she is sad" must not count as "sad".
    if _REFUSAL.search(text):
        return Parsed(None, Status.REFUSED, (), None)
    if len(_label_words(text, classes)) == 1:
        return Parsed(None, Status.LABEL_ONLY, (), None)
    return Parsed(None, Status.UNPARSED, (), None)


# --- text -------------------------------------------------------------------------------------------------

_THOUGHT = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:[ \t]*\w{0,10}[ \t]*(?=\n))?")
_REFUSAL = re.compile(
    r"\b(?:can ?not|can['’]t|could ?n['’]t|could not|(?:am|['’]m) (?:unable|not able) to|won['’]t|will not) "
    r"(?:\w+ )?(?:determine|identify|infer|assess|analy[sz]e|assist|help|provide|process|listen|hear|detect|"
    r"comply|classify|tell|judge|recogni[sz]e|evaluate|access|fulfil+|answer|do that)\b"
    r"|\b(?:unable|not able) to (?:determine|identify|infer|assess|analy[sz]e|process|listen|hear|help)\b"
    r"|\bas an ai\b"
    r"|\bno (?:audio|recording|sound)(?: file)? (?:was |is )?(?:provided|attached|found|received)\b"
    r"|\bich kann (?:das |die |den |dabei |leider )*nicht\b|\bje ne peux pas\b|\bno puedo\b|\bnie mogę\b"
    r"|无法|不能",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LINE = re.compile(
    r"(?<![^\W\d_])([^\W\d_]{1,30}(?:[ _-][^\W\d_]{1,30}){0,2})[\"'*_` \t]{0,6}(?:[:=|(→]|\s[-–—]\s|\bis\b)"
    r"[\"'*_` \t]{0,6}([~≈]?[+-]?\d+(?:[.,]\d+)?[ \t]?%?)"
)


def _visible(text: str) -> str:
    """Text outside ``<think>`` blocks, without byte order mark and fences, in compatibility form."""
    kept: list[str] = []
    depth = position = 0
    for tag in _THOUGHT.finditer(text):
        if not depth:
            kept.append(text[position : tag.start()])
        position = tag.end()
        if not tag[1]:
            depth += 1
        elif depth:
            depth -= 1
        else:
            # A closing tag alone: the chat template had opened the block, all so far is thought.
            kept.clear()
    if not depth:
        kept.append(text[position:])
    visible = unicodedata.normalize("NFKC", "".join(kept)).replace("\ufeff", "")
    return _FENCE.sub("\n", visible).strip()


def _label_words(text: str, classes: tuple[str, ...]) -> set[str]:
    """Classes that the text mentions."""
    resolve = resolver(classes)
    words = [*_WORD.findall(text), *unspaced_words(text)]
    named = {label for word in words if (label := resolve(word))}
    # Class names of several words are found by their text.
    plain = " ".join(re.findall(r"[^\W_]+", fold(text)))
    return named | {name for name in classes if f" {fold(name)} " in f" {plain} "}


def _lines(text: str, classes: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Pairs of name and number written as ``name: number``; empty if no name is a class."""
    resolve = resolver(classes)
    pairs = []
    for match in _LINE.finditer(text):
        name = match[1] if resolve(match[1]) else match[1].split()[-1]
        pairs.append((name, match[2]))
    return pairs if any(resolve(name) for name, _ in pairs) else []


# --- JSON -------------------------------------------------------------------------------------------------


_OPENING = re.compile(r"[{\[]")


class _Pairs(list):
    """Items of a JSON object in order; unlike a dict it keeps repeated names."""


def _structures(text: str) -> Iterator[tuple[Any, set[str]]]:
    """Decoded bracketed pieces of the text in order, each with the flags of its decoding."""
    position = 0
    for _ in range(_CANDIDATES):
        opening = _OPENING.search(text, position)
        if not opening:
            return
        start = opening.start()
        end = _closing(text, start)
        piece = text[start:end]
        value, flags = _decoded(piece), set[str]()
        if value is None:
            value, flags = _decoded(repair(piece)), {"repaired"} if end else {"repaired", "unclosed"}
        if value is not None:
            yield value, flags
            position = end or len(text)
        else:
            position = start + 1


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
        return json.loads(piece, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None


def _distribution(value: Any, classes: tuple[str, ...], depth: int = 0) -> list[tuple[str, Any]]:
    """Pairs of name and value of the first part of ``value`` that gives a class a number; empty if none."""
    resolve = resolver(classes)
    pairs = list(value) if isinstance(value, _Pairs) else _pairs_of_list(value, classes)
    if any(resolve(name) and _is_value(item) for name, item in pairs):
        return pairs
    if depth < _DEPTH and isinstance(value, list):
        for item in (item for _, item in value) if isinstance(value, _Pairs) else value:
            found = _distribution(item, classes, depth + 1)
            if found:
                return found
    return []


def _pairs_of_list(value: Any, classes: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Pairs of ``[["sad", 1]]``, ``[{"sad": 1}]`` or ``[{"label": "sad", "score": 1}]``; else empty."""
    resolve = resolver(classes)
    pairs: list[tuple[str, Any]] = []
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, list) or not item:
            return []
        if not isinstance(item, _Pairs):
            if len(item) != 2 or not isinstance(item[0], str):
                return []
            pairs.append((item[0], item[1]))
        elif any(resolve(name) for name, _ in item):
            pairs.extend(item)
        else:
            names = [field for _, field in item if isinstance(field, str) and _number(field) is None]
            numbers = [field for _, field in item if _is_value(field)]
            if not names or len(numbers) != 1:
                return []
            pairs.append((names[0], numbers[0]))
    return pairs


# --- numbers ----------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*[~≈]?\s*([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")
_NOT_LABELS = frozenset(
    {"total", "sum", "confidence", "certainty", "score", "probability", "valence", "arousal", "dominance"}
)


def _number(value: Any) -> tuple[float, bool] | None:
    """Number and whether it has a percent sign; None if it is none or is negative or not finite."""
    percent = False
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value[:80])
        if not match:
            return None
        value, percent = match[1].replace(",", "."), match[2] == "%"
    elif type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return (number, percent) if math.isfinite(number) and number >= 0 else None


def _is_value(value: Any) -> bool:
    return type(value) in (int, float) or _number(value) is not None


def _judge(pairs: Iterable[tuple[str, Any]], classes: tuple[str, ...], flags: set[str]) -> Parsed:
    """Turn pairs of name and value into a distribution by the rules of `parse_answer`."""
    resolve = resolver(classes)
    given: dict[str, tuple[float, bool] | None] = {}
    others: list[tuple[float, bool]] = []
    for name, raw in pairs:
        label, value = resolve(name), _number(raw)
        if label in given:
            return Parsed(None, Status.UNPARSED, _sorted(flags | {"duplicate"}), None)
        if label:
            given[label] = value
            if value is None:
                flags = flags | {"invalid"}
        elif value is not None and fold(name) not in _NOT_LABELS:
            others.append(value)
            flags = flags | {"dropped"}
    known = {label: value for label, value in given.items() if value is not None}
    numbers = [*known.values(), *others]
    signs = {percent for number, percent in numbers if number > 0}
    if len(signs) == 2:
        return Parsed(None, Status.UNPARSED, _sorted(flags | {"mixed"}), None)
    scale = 1
    if signs == {True} or 50 <= sum(number for number, _ in numbers) <= 150:
        scale = 100
        flags = flags | {"percent"}
    values = {label: number for label, (number, _) in known.items()}
    return _normalised(values, sum(number for number, _ in others) / scale, scale, classes, flags)


def _normalised(
    values: Mapping[str, float], other: float, scale: int, classes: tuple[str, ...], flags: set[str]
) -> Parsed:
    """Judge the sums: ``values`` of classes as written, ``other`` labels as a share of ``scale``."""
    written = sum(values.values())
    mass = written / scale
    total = mass if math.isfinite(mass) else None
    missing = len(values) < len(classes)
    exact = _within(mass, EXACT_SUM)
    if other > DROPPED_MASS + _SLACK or (missing and mass < FILLED_MASS - _SLACK):
        return Parsed(None, Status.INCOMPLETE, _sorted(flags), total)
    # The last number of an unclosed answer may have lost digits; only a right sum tells that it has not.
    if not _within(mass, USABLE_SUM) or ("unclosed" in flags and not exact):
        return Parsed(None, Status.BAD_SUM, _sorted(flags), total)
    if missing:
        flags = flags | {"filled"}
    if not exact:
        flags = flags | {"renorm"}
    # abs: a "-0.0" in the answer is a zero.
    probs = tuple(abs(values.get(name, 0.0)) / written for name in classes)
    return Parsed(probs, Status.OK, _sorted(flags), total)


def _within(mass: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] - _SLACK <= mass <= bounds[1] + _SLACK


def _sorted(flags: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(flags))
