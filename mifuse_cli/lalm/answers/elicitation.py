"""Three ways of asking for a distribution: the fields of the request and how its answer is read.

``verbalized`` asks for a number for every label, ``label`` for one label, ``logprob`` for one letter whose
alternatives the server gives with their probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.parsing import EXACT_SUM, Parsed, Status, parse_answer, parse_label
from mifuse_cli.lalm.answers.response import content_of, json_of
from mifuse_cli.lalm.questions.prompts import LETTERS

MODES = ("verbalized", "label", "logprob")

LEAST_MASS = 0.5  # probability that the letters must hold together

_LONGEST = {"verbalized": 256, "label": 256, "logprob": 1}  # tokens; ten classes need about 80
_ALTERNATIVES = 20  # most that servers give for one token
_AROUND_LETTER = " \t\r\n▁Ġ\"'`*_.,:;()[]{}"  # ▁ and Ġ are spaces of tokenizers


def request_fields(
    mode: str,
    classes: Sequence[str],
    *,
    temperature: float,
    max_tokens: int | None = None,
    json_schema: bool = False,
) -> dict[str, Any]:
    """Fields of a chat completion that depend on how the question is asked.

    Args:
        mode: one of `MODES`.
        classes: K class names.
        temperature: sampling temperature.
        max_tokens: most tokens of an answer; by default 256, and 1 in mode ``logprob``.
        json_schema: let the server force the form of the answer. It then writes the names in the order of
            ``classes``, whatever the order of the prompt.

    Raises:
        UsageError: more classes than there are letters, or a schema for a letter.
    """
    fields: dict[str, Any] = {
        "temperature": temperature,
        "max_completion_tokens": _LONGEST[mode] if max_tokens is None else max_tokens,
    }
    if mode == "logprob":
        if json_schema:
            raise UsageError("--elicit logprob reads one letter, not JSON. Leave out --json-schema.")
        if len(classes) > len(LETTERS):
            raise UsageError(
                f"--elicit logprob: {len(classes)} classes, expected {len(LETTERS)} at most. "
                "Use --elicit verbalized."
            )
        return fields | {"logprobs": True, "top_logprobs": _ALTERNATIVES}
    if json_schema:
        share = {"type": "integer", "minimum": 0, "maximum": 100}
        properties = (
            dict.fromkeys(classes, share)
            if mode == "verbalized"
            else {"label": {"type": "string", "enum": list(classes)}}
        )
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        form = {"name": "emotions", "strict": True, "schema": schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    return fields


class Answered(NamedTuple):
    """One stored answer.

    Attributes:
        parsed: the distribution, or the reason why there is none. Further flags: ``argmax`` (a label taken
            from a distribution), ``label-only`` (a lone label taken for a distribution), ``no-logprobs``
            (the server did not give any), ``tie``.
        text: what the model wrote.
        usage: numbers of prompt, completion, total, audio and cached tokens, -1 where the server does not
            tell.
        model: the name by which the server says who answered, "" if it does not.
    """

    parsed: Parsed
    text: str
    usage: dict[str, int]
    model: str = ""


def read_answer(
    mode: str,
    raw: bytes,
    choice: int,
    classes: tuple[str, ...],
    order: Sequence[int],
    *,
    accept_label_only: bool = False,
) -> Answered:
    """Read a stored answer; never raises, whatever the body holds.

    ``verbalized`` is read by `parse_answer`. ``label`` puts all probability on the label: no constants are
    added, since they would pass for uncertainty of the model. ``logprob`` adds up the probabilities of every
    way to write a letter ("A", " a", "A.") as the first token; OK if all letters together hold
    `LEAST_MASS`, INCOMPLETE below.

    An answer that the token limit cut off is TRUNCATED unless it can be read or is a refusal.

    Args:
        mode: one of `MODES`.
        raw: body of a chat completion.
        choice: position in its list of choices.
        classes: K class names.
        order: class index at each position of the prompt's list of labels, length K.
        accept_label_only: in mode ``verbalized``, take a lone label for a distribution.
    """
    body = json_of(raw)
    choices = _field(body, "choices")
    entry = choices[choice] if isinstance(choices, list) and 0 <= choice < len(choices) else None
    entry = entry if isinstance(entry, dict) else {}
    message = _field(entry, "message")
    content = _field(message, "content")
    text = content if isinstance(content, str) and content else content_of(raw, choice)[0]
    finish = entry.get("finish_reason")
    if finish == "content_filter" or _field(message, "refusal") or _has_refusal(content):
        parsed = Parsed(None, Status.REFUSED, (), None)
    elif mode == "logprob":
        parsed = _letters(_field(entry.get("logprobs"), "content"), classes, order)
    else:
        parsed = parse_answer(text, classes) if mode == "verbalized" else _label(text, classes)
        if finish == "length" and parsed.status not in (Status.OK, Status.REFUSED):
            parsed = parsed._replace(status=Status.TRUNCATED, label=None)
        elif accept_label_only and parsed.label:
            parsed = _one_hot(parsed.label, classes, (*parsed.flags, "label-only"))
    model = _field(body, "model")
    return Answered(parsed, text, _usage(body), model if isinstance(model, str) else "")


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


def _letters(tokens: Any, classes: tuple[str, ...], order: Sequence[int]) -> Parsed:
    """Distribution over the letters that the first token could have been."""
    first = tokens[0] if isinstance(tokens, list) and tokens else None
    alternatives = _field(first, "top_logprobs")
    if not isinstance(alternatives, list) or not alternatives:
        return Parsed(None, Status.UNPARSED, ("no-logprobs",), None)
    place = {LETTERS[i].casefold(): k for i, k in enumerate(order[: len(LETTERS)])}
    masses = [0.0] * len(classes)
    found, drawn = set(), _field(first, "token")
    # The token drawn may be none of the likeliest.
    listed = any(_field(one, "token") == drawn for one in alternatives)
    for one in alternatives if listed else [*alternatives, first]:
        token, logprob = _field(one, "token"), _field(one, "logprob")
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


def _has_refusal(content: Any) -> bool:
    return isinstance(content, list) and any(_field(part, "refusal") for part in content)


def _usage(body: Any) -> dict[str, int]:
    usage = _field(body, "usage")
    details = _field(usage, "prompt_tokens_details")
    audio = _field(details, "audio_tokens")
    if audio is None:
        audio = _field(_field(details, "multimodal_tokens"), "audio")
    numbers = usage if isinstance(usage, dict) else {}
    return {
        "prompt": _count(numbers.get("prompt_tokens")),
        "completion": _count(numbers.get("completion_tokens")),
        "total": _count(numbers.get("total_tokens")),
        "audio": _count(audio),
        "cached": _count(_field(details, "cached_tokens")),
    }


def _count(number: Any) -> int:
    return number if type(number) is int else -1


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
