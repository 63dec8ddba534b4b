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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from mifuse_cli.lalm.answers.emotion_words import fold, named, refuses, resolver
from mifuse_cli.lalm.answers.json_in_text import Pairs, Piece, structures_in, unescaped

PARSER_VERSION = 3

LONGEST = 64 * 1024  # characters of an answer, without its thoughts
FILLED_MASS = 0.95  # share that the named classes must hold before the others count as zero
DROPPED_MASS = 0.05  # largest share of labels that are not classes
EXACT_SUM = (0.98, 1.02)  # sums that are rounding only
USABLE_SUM = (0.5, 1.5)  # sums that are renormalised, with a flag

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
    TRUNCATED = 9  # cut off by the token limit and unreadable
    SKIPPED = 10  # left out by the rule for long clips


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
        label: the class of a LABEL_ONLY answer, else None.
    """

    probs: tuple[float, ...] | None
    status: Status
    flags: tuple[str, ...]
    total: float | None
    label: str | None = None


def parse_answer(text: str, classes: Sequence[str]) -> Parsed:
    """Read the text of one answer, most explicit form first.

    Thoughts and code fences are removed. Bracketed pieces that hold a class name with a value are read as
    JSON, if need be after one repair; then lists of ``label: number`` and tags with numbers. The last complete
    distribution counts, since those before it are drafts or repeat the question; a list beside JSON counts only
    if it names every class. Without any the answer is a refusal, a lone label or unparsed.

    Names are compared without case and through a table of synonyms. Values are percentages if they carry
    percent signs or sum to 50..150. Missing classes are 0 if the others hold 0.95, other labels are dropped up
    to 0.05, sums of 0.5..1.5 are renormalised.

    Args:
        text: what the model wrote; any string.
        classes: K different class names.

    Returns:
        The distribution, shape (K,) in the order of ``classes``, or the reason why there is none.

    Raises:
        ValueError: ``text`` is no string, or ``classes`` are no names that differ.
    """
    classes = _checked(text, classes)
    values = _plain(text, classes)
    if values:
        written = sum(values.values())
        percent = 50 <= written <= 150
        mass = written / 100 if percent else written
        if EXACT_SUM[0] <= mass <= EXACT_SUM[1]:
            probs = tuple([(values[name] + 0.0) / written for name in classes])  # a "-0.0" is a zero
            return Parsed(probs, Status.OK, ("percent",) if percent else (), mass)
        return _normalised(values, 0.0, 100 if percent else 1, classes, {"percent"} if percent else set())
    return _read(visible(text), classes)


def parse_label(text: str, classes: Sequence[str]) -> Parsed:
    """Read the text of an answer that should be one label.

    Args:
        text: what the model wrote; any string.
        classes: K different class names.

    Returns:
        LABEL_ONLY if one class is named and not denied, else EMPTY, REFUSED or UNPARSED.

    Raises:
        ValueError: ``text`` is no string, or ``classes`` are no names that differ.
    """
    classes = _checked(text, classes)
    text = visible(text)
    return _unread(text) or _lone_label(text, [piece.value for piece in structures_in(text)], classes)


def _checked(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes as a tuple, if both arguments are what they should be."""
    if not isinstance(text, str):
        raise ValueError(f"text is {type(text).__name__}, expected a string")
    if not isinstance(classes, (tuple, list)):
        raise ValueError(f"classes are {classes!r}, expected several names such as ('angry', 'sad')")
    names = tuple(classes)
    try:
        _check_names(names)
    except TypeError:  # one that cannot even be looked up
        raise ValueError(f"classes are {names!r}, expected strings") from None
    return names


@lru_cache(maxsize=32)
def _check_names(names: tuple[str, ...]) -> None:
    """Once for every class list, since all answers of a run have the same."""
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes are {names!r}, expected strings")
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"classes are {names!r}, expected different names, none of them empty")


def _read(text: str, classes: tuple[str, ...]) -> Parsed:
    unread = _unread(text)
    if unread:
        return unread
    structures = list(structures_in(text)) or unescaped(text)
    found = _candidates(text, structures, classes)
    # What is marked as the answer is; drafts may well stand behind it, as a check or a comment.
    spans = _marked(text)
    marked = [one for one in found if any(start <= one.start < end for start, end in spans)]
    for some in (marked, found):
        good = [one.parsed for one in some if one.parsed.status is Status.OK]
        if good:
            return good[-1]
    if found:
        return found[-1].parsed
    return _lone_label(text, [one.value for one in structures], classes)


class _Candidate(NamedTuple):
    """A distribution, or what was meant to be one, and where it stands in the text."""

    start: int
    parsed: Parsed


def _candidates(text: str, structures: list[Piece], classes: tuple[str, ...]) -> list[_Candidate]:
    """All that may be meant as the distribution, in the order of the text."""
    in_json, rest = [], text
    for piece in structures:
        judged = [_judge(pairs, classes, piece.flags) for pairs in _distributions(piece.value, classes)]
        # Beside a distribution over all classes, what stands with it in one piece speaks of some of them.
        whole = [parsed for parsed in judged if _is_whole(parsed)]
        in_json += [_Candidate(piece.start, parsed) for parsed in whole or judged]
        if judged:
            # JSON that was read is no list of lines as well.
            rest = rest[: piece.start] + " " * (piece.end - piece.start) + rest[piece.end :]
    if in_json and not _DIGIT.search(rest):
        return in_json
    lines = [_Candidate(start, _judge(pairs, classes, {"lines"})) for start, pairs in _lines(rest, classes)]
    whole_lines = [one for one in lines if _is_whole(one.parsed)]
    # "Confidence in sad: 100 %" behind a distribution speaks of one class, and of the certainty.
    return sorted(in_json + (whole_lines if in_json or whole_lines else lines), key=lambda one: one.start)


_DIGIT = re.compile(r"\d")


def _is_whole(parsed: Parsed) -> bool:
    """Whether a distribution names every class, and nothing else."""
    return parsed.status is Status.OK and not {"filled", "dropped"} & set(parsed.flags)


_MARKED = re.compile(
    r"<((?:final[ _-]?)?(?:answer|output|result|response))>(.*?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL
)


def _marked(text: str) -> list[tuple[int, int]]:
    """Start and end of what tags such as ``<answer>`` enclose."""
    return [found.span(2) for found in _MARKED.finditer(text)] if "<" in text else []


# One object of plain names and numbers: nothing to strip, to unescape or to repair.
_PLAIN = re.compile(r'[ \t\r\n]*\{[A-Za-z0-9_ \t\r\n",:.+-]{0,2000}\}[ \t\r\n]*')


def _plain(text: str, classes: tuple[str, ...]) -> dict[str, float] | None:
    """Values of an answer exactly as asked for, None for any other: a short cut through `_read`."""
    # Two quotes per class: no name stands twice.
    if not _PLAIN.fullmatch(text) or text.count('"') != 2 * len(classes):
        return None
    try:
        # From Python 3.12 on, sums of whole numbers and floats are rounded in another way than those of floats.
        values: dict[str, float] = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if len(values) != len(classes):
        return None
    for name in classes:
        value: Any = values.get(name)
        if type(value) is not float or not 0 <= value <= 1000:
            return None
    return values


# --- text -------------------------------------------------------------------------------------------------

_AROUND = " \t\r\n\"'`*_.,:;!()"


_TURN = re.compile(
    r"\b(?:wait|actually|final|finally|answer|correct(?:ed|ion)|revised?|instead|hm+|let me|second thoughts?)\b",
    re.IGNORECASE,
)


def _lines(text: str, classes: tuple[str, ...]) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """Listings that name a class, each with its start.

    A class that comes again begins another one if all classes were named before, or words such as "wait" stand
    between the two.
    """
    resolve = resolver(classes)
    for listing in listings(text):
        start, before, pairs, seen = 0, 0, list[tuple[str, Any]](), set[str]()
        for name, number, position in listing:
            name = name if resolve(name) else name.split()[-1]
            label = resolve(name)
            if label in seen and (seen >= set(classes) or _TURN.search(text, before, position)):
                yield start, pairs
                pairs, seen = [], set()
            start, before = start if pairs else position, position
            pairs.append((name, number))
            seen |= {label} if label else set()
        if seen:
            yield start, pairs
            return


def _unread(text: str) -> Parsed | None:
    """Outcome of a visible text that is not looked into, None for any other."""
    if not text:
        return Parsed(None, Status.EMPTY, (), None)
    if len(text) > LONGEST:
        return Parsed(None, Status.UNPARSED, ("oversize",), None)
    return None


def _lone_label(text: str, structures: list[Any], classes: tuple[str, ...]) -> Parsed:
    resolve = resolver(classes)
    label = resolve(text.strip(_AROUND))
    # Before the words of the text: "I can't tell whether she is sad" must not count as "sad".
    if not label and refuses(text):
        return Parsed(None, Status.REFUSED, (), None)
    labels = {label} if label else _chosen(structures, classes) or named(text, classes)
    if len(labels) != 1:
        return Parsed(None, Status.UNPARSED, (), None)
    if not label and text.count("{") > text.count("}"):
        # Cut off before the second label, or before a number.
        return Parsed(None, Status.UNPARSED, ("unclosed",), None)
    return Parsed(None, Status.LABEL_ONLY, (), None, labels.pop())


def _chosen(structures: list[Any], classes: tuple[str, ...]) -> set[str]:
    """Classes that are values of the last JSON object with any: its other values may speak of further ones."""
    resolve = resolver(classes)
    for pairs in reversed(structures):
        items = [item for _, item in pairs if isinstance(item, str)] if isinstance(pairs, Pairs) else []
        if labels := {label for item in items if (label := resolve(item))}:
            return labels
    return set()


# --- distributions in JSON ------------------------------------------------------------------------------------


def _distributions(value: Any, classes: tuple[str, ...], depth: int = 0) -> Iterator[list[tuple[str, Any]]]:
    """Pairs of name and value of the parts of ``value`` that give a class a number, in order."""
    resolve = resolver(classes)
    pairs = list(value) if isinstance(value, Pairs) else _pairs_of_list(value, classes)
    pairs = [(name, _inner(item, classes)) for name, item in pairs]
    if not any(resolve(name) and _is_value(item) for name, item in pairs):
        pairs = _parallel(value, classes)
    if pairs:
        yield pairs
        return
    items: list[Any] = []
    if isinstance(value, str):
        items = [piece.value for piece in structures_in(value[:LONGEST])]
    elif isinstance(value, list):
        items = [item for _, item in value] if isinstance(value, Pairs) else value
    if depth < _DEPTH:
        for item in items:
            yield from _distributions(item, classes, depth + 1)


# What a number is called that stands for the share of a label.
_SHARE_NAMES = (
    "probability", "prob", "p", "score", "share", "percentage", "percent", "value", "likelihood", "intensity",
    "weight", "confidence",
)  # fmt: skip


def _inner(item: Any, classes: tuple[str, ...]) -> Any:
    """The number within ``{"probability": 70, ...}`` or ``[70]``; any other item as it is."""
    if not isinstance(item, list) or not item:
        return item
    if not isinstance(item, Pairs):
        return item[0] if len(item) == 1 and _is_value(item[0]) else item
    resolve = resolver(classes)
    if any(resolve(name) for name, _ in item):
        return item
    return _share([(name, number) for name, number in item if _is_value(number)], item)


def _share(fields: list[tuple[str, Any]], otherwise: Any) -> Any:
    """Of named numbers the only one, else the one whose name says that it is a share."""
    numbers = [(fold(name).removesuffix("s"), number) for name, number in fields]
    numbers = [(name, number) for name, number in numbers if name not in _NO_SHARES]
    if len(numbers) == 1:
        return numbers[0][1]
    for name in _SHARE_NAMES:
        found = [number for other, number in numbers if other == name]
        if len(found) == 1:
            return found[0]
    return otherwise


def _parallel(value: Any, classes: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Pairs of two lists of one length, as in ``{"labels": ["sad", "angry"], "scores": [0.7, 0.3]}``."""
    resolve = resolver(classes)
    if not isinstance(value, list):
        return []
    fields = value if isinstance(value, Pairs) else [("", item) for item in value]
    lists = [(name, item) for name, item in fields if isinstance(item, list) and not isinstance(item, Pairs)]
    names = [
        item
        for _, item in lists
        if item and all(isinstance(one, str) for one in item) and any(resolve(one) for one in item)
    ]
    if len(names) != 1:
        return []
    numbers = [
        (name, item)
        for name, item in lists
        if item is not names[0] and len(item) == len(names[0]) and all(map(_is_value, item))
    ]
    scores = _share(numbers, None)
    return list(zip(names[0], scores, strict=True)) if scores else []


def _pairs_of_list(value: Any, classes: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Pairs of ``[["sad", 1]]``, ``[{"sad": 1}]`` or ``[{"label": "sad", "score": 1}]``; else empty."""
    resolve = resolver(classes)
    pairs: list[tuple[str, Any]] = []
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, list) or not item:
            return []
        if not isinstance(item, Pairs):
            if len(item) != 2 or not isinstance(item[0], str):
                return []
            pairs.append((item[0], item[1]))
        elif any(resolve(name) for name, _ in item):
            pairs.extend(item)
        else:
            words = [field for _, field in item if isinstance(field, str) and _number(field) is None]
            number = _share([(name, field) for name, field in item if _is_value(field)], None)
            if not words or number is None:
                return []
            # A reason may stand before the name.
            pairs.append((next((word for word in words if resolve(word)), words[0]), number))
    return pairs


# --- numbers ----------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*[~≈]?\s*([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")
_NO_SHARES = frozenset(
    {"valence", "arousal", "dominance", "rank", "id", "index", "order", "position", "total"}
)
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


# --- text without thoughts and fences ----------------------------------------------------------------------

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


# --- numbers outside JSON ----------------------------------------------------------------------------------

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


# <sad>70</sad>, <emotion name="sad">70</emotion>, <emotion label="sad" score="70"/>
_TAG = re.compile(
    rf"<({_NAME})>\s{{0,9}}([~≈]?[+-]?\d+(?:[.,]\d+)?\s?%?)\s{{0,9}}</\1>"
    rf"|<\w{{1,30}}\s[^<>]{{0,40}}?[\"']({_NAME})[\"'][^<>\d]{{0,40}}>?\s{{0,9}}[\"']?"
    r"([~≈]?[+-]?\d+(?:[.,]\d+)?\s?%?)[\"']?\s{0,9}(?:/?>|</)"
)

Listing = list[tuple[str, str, int]]
"""Names with numbers, and where they stand in the text."""


def listings(text: str) -> tuple[Listing, Listing, Listing]:
    """Names with numbers outside JSON.

    Returns:
        Tags with numbers; those like ``name: 0.7``; those like ``name 70%`` or ``70% name``.
    """
    tags = [
        (found[1] or found[3], found[2] or found[4], found.start())
        for found in (_TAG.finditer(text) if "<" in text else ())
    ]
    # In "70% sad | 30% angry" the bar stands between two pairs, not within one.
    signed = [
        (found[1], found[3], found.start())
        for found in _LINE.finditer(text)
        if not (found[2] and "%" in text[max(found.start() - 2, 0) : found.start()])
    ]
    listed = [(found[1] or found[4], found[2] or found[3], found.start()) for found in _LISTED.finditer(text)]
    return tags, signed, listed
