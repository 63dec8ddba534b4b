"""Reading the body of a stored answer; anything may stand in it."""

from __future__ import annotations

import json
from typing import Any


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
    """Decoded body, None if it is no JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def choices_of(raw: bytes) -> list[Any]:
    """Choices of a chat completion, empty if the body is none."""
    choices = _field(json_of(raw), "choices")
    return choices if isinstance(choices, list) else []


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(content: Any) -> str:
    """Text of a message: a string, or a list of parts with a text or a refusal each."""
    if isinstance(content, list):
        return "".join(_text(_field(part, "text")) or _text(_field(part, "refusal")) for part in content)
    return content if isinstance(content, str) else ""
