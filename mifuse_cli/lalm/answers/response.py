"""Reading the body of a stored answer; anything may stand in it."""

from __future__ import annotations

import json
from typing import Any

_ONCE = ("id", "created", "model", "system_fingerprint", "usage")  # not in parts; the last one counts


def content_of(raw: bytes, choice: int) -> tuple[str, dict[str, int]]:
    """Text and token numbers of a stored answer; never raises.

    Args:
        raw: body of a chat completion.
        choice: position in its list of choices.

    Returns:
        The text of ``message.content``, else of ``message.refusal``, else ""; and the numbers of prompt,
        completion, total, audio and cached tokens, -1 where the server does not tell.
    """
    body = json_of(raw)
    choices = choices_of(raw)
    message = _field(choices[choice], "message") if 0 <= choice < len(choices) else None
    text = _text(_field(message, "content")) or _text(_field(message, "refusal"))
    usage = _field(body, "usage")
    details = _field(usage, "prompt_tokens_details")
    audio = _field(details, "audio_tokens")
    if audio is None:
        audio = _field(_field(details, "multimodal_tokens"), "audio")
    numbers = {
        "prompt": _field(usage, "prompt_tokens"),
        "completion": _field(usage, "completion_tokens"),
        "total": _field(usage, "total_tokens"),
        "audio": audio,
        "cached": _field(details, "cached_tokens"),
    }
    return text, {name: number if type(number) is int else -1 for name, number in numbers.items()}


def json_of(raw: bytes) -> Any:
    """Decoded body, None if it is no JSON.

    A body of server-sent events comes out as the chat completion that its chunks make up. Unless every
    choice in it came to its end, it has no choices at all, and an ``error`` says why.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return _joined(raw)


def choices_of(raw: bytes) -> list[Any]:
    """Choices of a chat completion, empty if the body is none."""
    choices = _field(json_of(raw), "choices")
    return choices if isinstance(choices, list) else []


def _joined(raw: bytes) -> dict[str, Any] | None:
    """Chat completion of a body of server-sent events, None if it is no such body."""
    # Servers write a chunk on one line, but not all of them a blank one between two.
    lines = [
        line[5:].strip() for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines() if line[:5] == b"data:"
    ]
    if not lines:
        return None
    body: dict[str, Any] = {"object": "chat.completion"}
    choices: dict[int, _Choice] = {}
    error: Any = None
    broken = False
    for line in lines:
        if line in (b"", b"[DONE]"):
            continue
        try:
            chunk = json.loads(line)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            broken = True  # a part of some answer, perhaps
            continue
        error = error or chunk.get("error")
        body |= {name: chunk[name] for name in _ONCE if chunk.get(name) is not None}
        deltas = chunk.get("choices")
        for delta in deltas if isinstance(deltas, list) else []:
            index = _field(delta, "index")
            choices.setdefault(index if type(index) is int else 0, _Choice()).add(delta)
    if broken or not choices or not all(choice.finish_reason for choice in choices.values()):
        return body | {"choices": [], "error": error or {"message": "the stream broke off or is garbled"}}
    return body | {"choices": [choices[index].joined(index) for index in sorted(choices)]}


class _Choice:
    """One choice of a streamed answer, as far as it came."""

    def __init__(self) -> None:
        self.finish_reason: Any = None
        self._texts: dict[str, list[str]] = {"content": [], "refusal": []}
        self._logprobs: list[Any] = []

    def add(self, choice: Any) -> None:
        for name, texts in self._texts.items():
            texts.append(_text(_field(_field(choice, "delta"), name)))
        tokens = _field(_field(choice, "logprobs"), "content")
        self._logprobs += tokens if isinstance(tokens, list) else []
        self.finish_reason = _field(choice, "finish_reason") or self.finish_reason

    def joined(self, index: int) -> dict[str, Any]:
        message = {name: "".join(texts) or None for name, texts in self._texts.items()}
        return {
            "index": index,
            "message": {"role": "assistant", **message},
            "logprobs": {"content": self._logprobs} if self._logprobs else None,
            "finish_reason": self.finish_reason,
        }


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(content: Any) -> str:
    """Text of a message: a string, or a list of parts with a text or a refusal each."""
    if isinstance(content, list):
        return "".join(_string(_field(part, "text")) or _string(_field(part, "refusal")) for part in content)
    return _string(content)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
