"""How a question is put into a request body: services that speak the same interface differ in a few fields."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN_LIMITS = ("max_completion_tokens", "max_tokens", "none")
"""Names of the field with the most tokens of an answer; ``none`` sends no such field."""

AUDIO_PARTS = ("object", "data-uri", "audio-url", "string")
"""Forms in which a message holds audio, see `Dialect`."""

SET_ELSEWHERE = frozenset(
    {"model", "messages", "n", "stream", "stream_options", "seed", "temperature", "max_tokens",
     "max_completion_tokens", "modalities", "response_format", "logprobs", "top_logprobs"}
)  # fmt: skip
"""Fields that have an option of their own."""

_MEDIA = {"wav": "audio/wav", "mp3": "audio/mpeg"}


@dataclass(frozen=True)
class Dialect:
    """What a service expects of a request body, beyond what all of them do.

    Attributes:
        token_limit: one of `TOKEN_LIMITS`.
        audio_part: one of `AUDIO_PARTS`: ``object`` is ``{"data": base64, "format": "wav"}`` in a part
            ``input_audio``, ``data-uri`` the same with a data URI as data, ``audio-url`` a part ``audio_url`` with
            a data URI, ``string`` a part ``input_audio`` with nothing but base64.
        temperature: whether a temperature may be sent.
        modalities: kinds of output that are asked for; empty to leave the field out.
        extra_body: further fields, such as ``reasoning_effort``.
    """

    token_limit: str = TOKEN_LIMITS[0]
    audio_part: str = AUDIO_PARTS[0]
    temperature: bool = True
    modalities: tuple[str, ...] = ()
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def fields(self, temperature: float, tokens: int) -> dict[str, Any]:
        """Fields of every request body besides model and messages, for answers of so many tokens at most."""
        fields: dict[str, Any] = dict(self.extra_body)
        if self.temperature:
            fields["temperature"] = temperature
        if self.token_limit != "none":
            fields[self.token_limit] = tokens
        if self.modalities:
            fields["modalities"] = list(self.modalities)
        return fields

    def changes(self) -> dict[str, Any]:
        """What of it makes other questions, by names in `QuestionOptions.spec`; a form of the same makes none."""
        changed: dict[str, Any] = {"extra_body": dict(self.extra_body)} if self.extra_body else {}
        if not self.temperature:
            changed["temperature"] = None
        if self.token_limit == "none":
            changed["max_completion_tokens"] = None
        return changed


def audio_part(audio: bytes, audio_format: str, form: str) -> dict[str, Any]:
    """The part of a message that holds audio.

    Args:
        audio: bytes of an audio file.
        audio_format: ``wav`` or ``mp3``.
        form: one of `AUDIO_PARTS`.
    """
    data = base64.b64encode(audio).decode("ascii")
    uri = f"data:{_MEDIA[audio_format]};base64,{data}"
    if form == "audio-url":
        return {"type": "audio_url", "audio_url": {"url": uri}}
    if form == "string":
        return {"type": "input_audio", "input_audio": data}
    return {
        "type": "input_audio",
        "input_audio": {"data": uri if form == "data-uri" else data, "format": audio_format},
    }
