"""The response of a service, decoded once: choices, errors, tokens and model, whatever stands in its body."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from math import inf
from typing import Any

_ONCE = (
    "id",
    "created",
    "model",
    "system_fingerprint",
    "usage",
)  # in every chunk of a stream; the last counts

MOST_TOKENS = 16_000_000
"""More than any context window holds: a larger number in a usage is no count of tokens."""

_DEPTH = 4  # of parts within parts
_MOST_CHOICES = 4096  # that are looked at; nobody asks for more at once
_BEGUN = "choices_begun"  # in what is made of a stream that broke off
_LONGEST_NUMBER = 300  # digits of a number in a body; longer ones are infinite


@dataclass(frozen=True)
class Choice:
    """One answer of a response, which may hold several.

    Attributes:
        text: text of ``message.content``, else of what else services put an answer into: a refusal, the transcript
            of spoken audio, the arguments of a tool, or ``text`` beside the message; never of thoughts; else "".
        refused: whether the service marks the answer as a refusal, or filtered it out.
        finish_reason: why the answer ends, such as "stop" or "length"; "" if the service does not say.
        tokens: tokens with their log-probabilities, as the service gives them; empty if it gives none.
    """

    text: str = ""
    refused: bool = False
    finish_reason: str = ""
    tokens: tuple[Any, ...] = ()

    @classmethod
    def of(cls, choice: Any) -> Choice:
        """Read an entry of the list ``choices``; never raises."""
        message = member(choice, "message") or member(choice, "delta")
        content, refusal = member(message, "content"), member(message, "refusal")
        finish = member(choice, "finish_reason")
        tokens = member(member(choice, "logprobs"), "content")
        in_parts = isinstance(content, list) and any(member(part, "refusal") for part in content)
        return cls(
            text=_text(content)
            or _text(refusal)
            or _text(member(member(message, "audio"), "transcript"))
            or _arguments(message)
            or _text(member(choice, "text")),
            refused=finish == "content_filter" or bool(refusal) or in_parts,
            finish_reason=_string(finish),
            tokens=tuple(tokens) if isinstance(tokens, list) else (),
        )


@dataclass(frozen=True)
class Response:
    """A chat completion.

    Attributes:
        choices: the answers, in the order of the body; none if it is no chat completion. An entry that holds
            an error instead of an answer is none.
        usage: numbers of ``prompt``, ``completion``, ``total``, ``audio`` and ``cached`` tokens of all choices
            together, -1 where the service does not tell, or tells what cannot be.
        model: the name by which the service says who answered, "" if it does not.
        error: what stands in the body instead of choices, for a message; None if there are choices.
        begun: whether the service began to answer before the error, so that it may have billed something.
    """

    choices: tuple[Choice, ...]
    usage: dict[str, int]
    model: str = ""
    error: Any = None
    begun: bool = False

    @classmethod
    def of(cls, body: Any) -> Response:
        """Read decoded JSON; never raises."""
        entries = member(body, "choices")
        entries = entries[:_MOST_CHOICES] if isinstance(entries, list) else []
        errors = [_error_in(entry, body) for entry in entries]
        choices = tuple(Choice.of(entry) for entry, error in zip(entries, errors, strict=True) if not error)
        told = next(filter(None, errors), None) or body
        usage = _usage(body)
        begun = bool(entries or member(body, _BEGUN)) or max(usage["prompt"], usage["completion"]) > 0
        return cls(choices, usage, _string(member(body, "model")), None if choices else told, begun)

    def choice(self, position: int) -> Choice:
        """The choice at ``position``, an empty one if the response has none there."""
        return self.choices[position] if 0 <= position < len(self.choices) else Choice()


def decode(raw: bytes) -> Response:
    """Decode the body of a response; never raises.

    A body of server-sent events comes out as the chat completion that its chunks make up. Unless every
    choice in it came to its end, it has no choices at all, and ``error`` says why.

    Args:
        raw: bytes of the body, JSON or server-sent events; anything else has no choices.
    """
    response = Response.of(decode_json(raw))
    if response.choices or response.error:
        return response
    return replace(response, error=raw.decode("utf-8", "replace"))


def decode_json(raw: bytes) -> Any:
    """JSON of a body, or of the chat completion that its server-sent events make up; None if it is neither.

    Bytes that are no UTF-8 become replacement characters: the rest of the answer is paid for.
    """
    try:
        return _loads(raw)
    except (ValueError, RecursionError):
        return _joined(raw)


def _loads(raw: bytes) -> Any:
    """Decoded JSON; a number of thousands of digits, and bytes that are no UTF-8, do not spoil the rest."""
    try:
        return json.loads(raw)
    except ValueError:
        text = raw.decode("utf-8-sig", "replace")
        return json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) < _LONGEST_NUMBER else inf
        )


def member(value: Any, name: str) -> Any:
    """Member of a JSON object by name; None if ``value`` is no object or lacks it."""
    return value.get(name) if isinstance(value, dict) else None


def _error_in(entry: Any, body: Any) -> Any:
    """What an entry of the list ``choices`` holds instead of an answer, None if it may be an answer.

    An error beside it, in the body, is that of an entry without a word: a service that gave up after a part of
    the answer says so in ``finish_reason``.
    """
    beside = _error(member(body, "error")) or (body if _fails(body) else None)
    if error := _error(member(entry, "error")) or _error(member(member(entry, "message"), "error")):
        return error
    if member(entry, "finish_reason") == "error":
        return beside or {"message": "finish_reason: error"}
    if not beside:
        return None
    choice = Choice.of(entry)
    return None if choice.text or choice.tokens or choice.refused else beside


def _error(value: Any) -> Any:
    """An error that is one: some services always send the object, with a code that says that all is well."""
    return None if not value or member(value, "code") in (0, 200, "0", "200") else value


def _fails(body: Any) -> bool:
    """Whether a body says by a code of its own, without an ``error``, that it is one."""
    return member(body, "object") == "error" or status_in(body) is not None


def status_in(error: Any) -> int | None:
    """HTTP status that an error object has in one of its numbers, 400 to 599; None if it has none."""
    for name in ("code", "status", "status_code", "statusCode", "http_code", "http_status"):
        value = member(error, name)
        if isinstance(value, str) and re.fullmatch("[45][0-9][0-9]", value):
            value = int(value)
        if type(value) is int and 400 <= value <= 599:
            return value
    return None


def _joined(raw: bytes) -> dict[str, Any] | None:
    """Chat completion of a body of server-sent events, None if it is no such body."""
    # Servers write a chunk on one line, but not all of them a blank one between two.
    lines = [
        line[5:].strip() for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines() if line[:5] == b"data:"
    ]
    if not lines:
        return None
    body: dict[str, Any] = {"object": "chat.completion"}
    choices: dict[int, _StreamedChoice] = {}
    error: Any = None
    broken = False
    for line in lines:
        if line in (b"", b"[DONE]"):
            continue
        try:
            chunk = _loads(line)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            broken = True  # a part of some answer, perhaps
            continue
        error = error or _error(chunk.get("error")) or (chunk if _fails(chunk) else None)
        body |= {name: chunk[name] for name in _ONCE if chunk.get(name) is not None}
        deltas = chunk.get("choices")
        for delta in deltas if isinstance(deltas, list) else []:
            index = member(delta, "index")
            choices.setdefault(index if type(index) is int else 0, _StreamedChoice()).add(delta)
    if broken or not choices or not all(choice.finish_reason for choice in choices.values()):
        broke = {"message": "the stream broke off or is garbled"}
        return body | {"choices": [], _BEGUN: len(choices), "error": error or broke}
    if error:
        body["error"] = error
    return body | {"choices": [choices[index].joined(index) for index in sorted(choices)]}


class _StreamedChoice:
    """One choice of a streamed answer, as far as it came."""

    def __init__(self) -> None:
        self.finish_reason: Any = None
        self._error: Any = None
        self._texts: dict[str, list[str]] = {"content": [], "refusal": []}
        self._logprobs: list[Any] = []

    def add(self, choice: Any) -> None:
        for name, texts in self._texts.items():
            texts.append(_text(member(member(choice, "delta"), name)))
        tokens = member(member(choice, "logprobs"), "content")
        self._logprobs += tokens if isinstance(tokens, list) else []
        self.finish_reason = member(choice, "finish_reason") or self.finish_reason
        self._error = self._error or member(choice, "error")

    def joined(self, index: int) -> dict[str, Any]:
        message = {name: "".join(texts) or None for name, texts in self._texts.items()}
        return {
            "index": index,
            "message": {"role": "assistant", **message},
            "logprobs": {"content": self._logprobs} if self._logprobs else None,
            "finish_reason": self.finish_reason,
        } | ({"error": self._error} if self._error else {})


def _usage(body: Any) -> dict[str, int]:
    usage = member(body, "usage")
    counts = usage if isinstance(usage, dict) else {}
    details = counts.get("prompt_tokens_details")
    audio = member(details, "audio_tokens")
    if audio is None:
        audio = member(member(details, "multimodal_tokens"), "audio")
    numbers = {
        "prompt": counts.get("prompt_tokens"),
        "completion": counts.get("completion_tokens"),
        "total": counts.get("total_tokens"),
        "audio": audio,
        "cached": member(details, "cached_tokens"),
    }
    return {
        name: number if type(number) is int and 0 <= number <= MOST_TOKENS else -1
        for name, number in numbers.items()
    }


def _text(content: Any, depth: int = 0) -> str:
    """Text of a message: a string, or parts with a text, a refusal or parts of their own; thoughts are left out.

    An object that is no part is the answer itself, decoded already.
    """
    if depth > _DEPTH:
        return ""
    if isinstance(content, list):
        return "".join(_text(part, depth + 1) for part in content)
    if not isinstance(content, dict):
        return _string(content)
    if re.search("reason|think", _string(content.get("type"))):
        return ""
    inner = (_text(content.get(name), depth + 1) for name in ("text", "value", "refusal", "content"))
    return next(filter(None, inner), "") or ("" if depth or "type" in content else json.dumps(content))


def _arguments(message: Any) -> str:
    """Arguments of the last tool that a message calls, as JSON."""
    calls = member(message, "tool_calls")
    functions = [member(call, "function") for call in calls] if isinstance(calls, list) else []
    return _text(member(next(reversed(functions), None) or member(message, "function_call"), "arguments"))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
