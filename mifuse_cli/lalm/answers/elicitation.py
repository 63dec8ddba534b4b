"""From a response to the distribution that one of its answers gives, in three ways of asking for it.

``verbalized`` asks for a number for every label, ``label`` for one label, ``logprob`` for one letter whose
alternatives the service gives with their probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mifuse_cli.lalm.answers.parsing import EXACT_SUM, Parsed, Status, parse_answer, parse_label
from mifuse_cli.lalm.answers.response import Choice, Response, member

MODES = ("verbalized", "label", "logprob")

LETTERS = "ABCDEFGHJKLMNOPQRSTU"
"""Names of the labels in mode ``logprob``; without I, with which a refusal begins."""

LEAST_MASS = 0.5  # probability that the letters must hold together

_AROUND_LETTER = " \t\r\n▁Ġ\"'`*_.,:;()[]{}"  # ▁ and Ġ are spaces of tokenizers


@dataclass(frozen=True)
class Answer:
    """One answer as read.

    Attributes:
        parsed: the distribution, or the reason why there is none. Flags beyond those of `Parsed`: ``argmax``
            (a label taken from a distribution), ``label-only`` (a lone label taken for a distribution),
            ``no-logprobs`` (the service did not give any), ``tie``.
        text: what the model wrote.
        usage: tokens of the whole response, see `Response`.
        model: who answered, see `Response`.
    """

    parsed: Parsed
    text: str
    usage: dict[str, int]
    model: str = ""


def read_answer(
    mode: str,
    response: Response,
    position: int,
    classes: tuple[str, ...],
    order: Sequence[int],
    *,
    accept_label_only: bool = False,
) -> Answer:
    """Read one answer of a response; never raises, whatever the response holds.

    ``verbalized`` is read by `parse_answer`. ``label`` puts all probability on the label: no constants are
    added, since they would pass for uncertainty of the model. ``logprob`` adds up the probabilities of every
    way to write a letter ("A", " a", "A.") as the first token; OK if all letters together hold
    `LEAST_MASS`, INCOMPLETE below.

    An answer that the token limit cut off is TRUNCATED unless it can be read or is a refusal.

    Args:
        mode: one of `MODES`.
        response: of the service.
        position: which of its choices.
        classes: K class names.
        order: class index at each position of the prompt's list of labels, length K.
        accept_label_only: in mode ``verbalized``, take a lone label for a distribution.
    """
    choice = response.choice(position)
    parsed = _read(mode, choice, classes, order)
    if mode != "logprob" and not choice.refused:
        if choice.finish_reason == "length" and parsed.status not in (Status.OK, Status.REFUSED):
            parsed = replace(parsed, status=Status.TRUNCATED, label=None)
        elif accept_label_only and parsed.label:
            parsed = _one_hot(parsed.label, classes, (*parsed.flags, "label-only"))
    return Answer(parsed, choice.text, response.usage, response.model)


def _read(mode: str, choice: Choice, classes: tuple[str, ...], order: Sequence[int]) -> Parsed:
    if choice.refused:
        return Parsed(None, Status.REFUSED, (), None)
    if mode == "logprob":
        return _letters(choice, classes, order)
    return parse_answer(choice.text, classes) if mode == "verbalized" else _label(choice.text, classes)


def _label(text: str, classes: tuple[str, ...]) -> Parsed:
    parsed = parse_label(text, classes)
    if parsed.label:
        return _one_hot(parsed.label, classes, parsed.flags)
    if parsed.status is not Status.UNPARSED:
        return parsed
    parsed = parse_answer(text, classes)
    if parsed.probs is None:
        return parsed
    best = [name for name, prob in zip(classes, parsed.probs, strict=True) if prob == max(parsed.probs)]
    if len(best) > 1:
        return Parsed(None, Status.UNPARSED, _sorted(*parsed.flags, "tie"), parsed.total)
    return _one_hot(best[0], classes, (*parsed.flags, "argmax"))


def _one_hot(label: str, classes: tuple[str, ...], flags: tuple[str, ...]) -> Parsed:
    return Parsed(tuple(float(name == label) for name in classes), Status.OK, _sorted(*flags), None)


def _letters(choice: Choice, classes: tuple[str, ...], order: Sequence[int]) -> Parsed:
    """Distribution over the letters that the first token could have been."""
    first = choice.tokens[0] if choice.tokens else None
    alternatives = member(first, "top_logprobs")
    if not isinstance(alternatives, list) or not alternatives:
        return Parsed(None, Status.UNPARSED, ("no-logprobs",), None)
    place = {LETTERS[i].casefold(): k for i, k in enumerate(order[: len(LETTERS)])}
    masses = [0.0] * len(classes)
    found, drawn = set(), member(first, "token")
    # The token drawn may be none of the likeliest.
    listed = any(member(one, "token") == drawn for one in alternatives)
    for one in alternatives if listed else [*alternatives, first]:
        token, logprob = member(one, "token"), member(one, "logprob")
        k = place.get(token.strip(_AROUND_LETTER).casefold()) if isinstance(token, str) else None
        # The bound also leaves out NaN, and integers that are no floats.
        if k is not None and type(logprob) in (int, float) and logprob > -1e6:
            masses[k] += math.exp(min(logprob, 0.0))
            found.add(k)
    mass = math.fsum(masses)
    flags = {"filled"} if len(found) < len(classes) else set[str]()
    if mass < LEAST_MASS:
        return Parsed(None, Status.INCOMPLETE, _sorted(*flags), mass)
    if mass > EXACT_SUM[1]:
        return Parsed(None, Status.BAD_SUM, _sorted(*flags), mass)
    if mass < EXACT_SUM[0]:
        flags.add("renorm")
    return Parsed(tuple(one / mass for one in masses), Status.OK, _sorted(*flags), mass)


def _sorted(*flags: str) -> tuple[str, ...]:
    return tuple(sorted(flags))
