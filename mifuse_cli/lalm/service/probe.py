"""Finding out with a few cheap requests what a server honours, and what it ignores without a word."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import numpy as np

from mifuse_cli.audio import RATE
from mifuse_cli.lalm.answers.response import choices_of, content_of
from mifuse_cli.lalm.service.client import Reply
from mifuse_cli.lalm.service.failures import Fault, RequestFailed

ATTEMPTS = 4  # requests for one test, rate limits not counted
PATIENCE = 120.0  # seconds of waiting in one test

_WORD = "zebra_crossings"  # that no model says unless it is made to
_SCHEMA = {
    "type": "object",
    "properties": {_WORD: {"type": "integer"}},
    "required": [_WORD],
    "additionalProperties": False,
}
_FIELDS: dict[str, dict[str, Any]] = {
    "n": {"n": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 20},
    "seed": {"seed": 7},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "count", "strict": True, "schema": _SCHEMA},
        }
    },
}
_NAMES = {
    "n": r"\bn\b|candidate|choices",
    "logprobs": "logprobs",
    "seed": r"\bseed\b",
    "json_schema": "response_?format|schema|structured",
}
_TOKENS = 64  # of an answer; the absurd one takes about ten
_REFUSALS = (400, 413, 422, 501)
_SLACK_TOKENS = 3  # by which servers round audio of different lengths
_SLACK = 0.05

Ask = Callable[[list[dict[str, Any]], Mapping[str, Any]], Awaitable[Reply]]
Messages = Callable[[np.ndarray], list[dict[str, Any]]]


async def probe(
    ask: Ask,
    messages: Messages,
    clip: np.ndarray,
    *,
    wanted: Collection[str],
    fields: Mapping[str, Any],
    longest: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, dict[str, Any]]:
    """Test features with one answered request for all of ``n``, ``logprobs`` and ``seed``, one for
    ``json_schema``, and two or three for ``long_audio``; refused ones come on top.

    Args:
        ask: sends one request, see `mifuse_cli.lalm.service.client.Client.ask`.
        messages: builds the messages about audio (S,) at 16 kHz; the text is the same each time.
        clip: a short clip of the user's, since some servers take only certain audio. Tones are sent for
            ``long_audio`` alone.
        wanted: names of features to test.
        fields: of every request, such as ``temperature``; no feature among them.
        longest: seconds of audio that the model should hear.
        sleep: waits.

    Returns:
        By name of the feature a dict, fit for JSON, with a ``value``: "honoured", "ignored", "refused" (by the
        server's ``message``), or "unknown". ``seed``: "accepted" instead of "honoured". ``n``: number of
        ``choices`` that came for 2. ``logprobs``: number of ``alternatives``. ``long_audio``: "truncated"
        instead of "ignored"; ``seconds`` sent, ``heard`` (an estimate, or with ``at_most`` a bound), and
        ``tokens_per_second`` where they are known.

    Raises:
        RequestFailed: no request can succeed, or none did in time.
        KeyError: no such feature.
    """
    for name in wanted:
        if name not in _FIELDS and name != "long_audio":
            raise KeyError(name)
    run = _Probe(ask, messages, clip, fields, sleep)
    if together := [name for name in ("n", "logprobs", "seed") if name in wanted]:
        await run.test(together)
    if "json_schema" in wanted:
        await run.test(["json_schema"])
    if "long_audio" in wanted:
        await run.hear(longest)
    return run.found


def unsupported(found: Mapping[str, Mapping[str, Any]], wanted: Collection[str]) -> list[str]:
    """What cannot work with this server, in sentences; empty if all can.

    An ignored ``n`` can: the answers that are missing are asked for one by one. What is unknown may work.

    Args:
        found: as of `probe`.
        wanted: features that are to be used.
    """
    sentences = []
    for name in wanted:
        facts = found.get(name, {})
        value = facts.get("value")
        thing = _THINGS[name]
        if value == "refused":
            sentences.append(f"The server refuses {thing}: {str(facts.get('message', '')).rstrip('.')}.")
        elif value == "truncated":
            about = "at most" if facts.get("at_most") else "about"
            sentences.append(
                f"The model hears {about} {facts['heard']:.0f} s of {facts['seconds']:.0f} s of audio, and does "
                "not say so."
            )
        elif value == "ignored" and name != "n":
            sentences.append(f"The server ignores {thing} without a word.")
    return sentences


_THINGS = {
    "n": "several answers to one request (n)",
    "logprobs": "probabilities of tokens (logprobs)",
    "seed": "a seed",
    "json_schema": "a JSON schema for the answer (response_format)",
    "long_audio": "long audio",
}


class _Probe:
    """Tests under way, and what they found."""

    def __init__(
        self,
        ask: Ask,
        messages: Messages,
        clip: np.ndarray,
        fields: Mapping[str, Any],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._ask, self._messages, self._clip, self._sleep = ask, messages, clip, sleep
        self._fields = {**fields, "max_completion_tokens": _TOKENS}
        self._plain_works = False
        self._prompt = -1  # tokens of a question about the clip

    async def test(self, names: list[str]) -> None:
        """Ask about the clip with these features; if that is refused, find out because of which."""
        extra = {field: value for name in names for field, value in _FIELDS[name].items()}
        try:
            raw = await self._send(self._clip, extra)
        except RequestFailed as failure:
            if failure.http_status not in _REFUSALS or not names:
                raise
            guilty = [name for name in names if re.search(_NAMES[name], failure.message, re.IGNORECASE)]
            if guilty or len(names) == 1:
                guilty = guilty or names
                rest = [[name for name in names if name not in guilty]]
            else:
                rest = [[name] for name in names]
            for some in rest:
                # Without any feature too: the request itself may be at fault, whatever the message names.
                if some or not self._plain_works:
                    await self.test(some)
            self.found |= {name: {"value": "refused", "message": failure.message} for name in guilty}
            return
        self._plain_works = True
        self._prompt = content_of(raw, 0)[1]["prompt"]
        self.found |= {name: _READERS[name](raw) for name in names}

    async def hear(self, longest: float) -> None:
        """Compare the prompt tokens of three lengths of audio: they lie on a line, or the longest falls short."""
        short = len(self._clip) / RATE
        points = [(short, self._prompt)] if self._prompt >= 0 and short <= longest / 4 else []
        for seconds in (longest / 8, longest / 2, longest)[len(points) :]:
            try:
                raw = await self._send(_tone(seconds), {})
            except RequestFailed as failure:
                if failure.http_status not in _REFUSALS:
                    raise
                # Only where shorter tones went through, the length is what is refused.
                value = "refused" if seconds == longest else "unknown"
                self.found["long_audio"] = {"value": value, "seconds": longest, "message": failure.message}
                return
            points.append((seconds, content_of(raw, 0)[1]["prompt"]))
        self.found["long_audio"] = {"seconds": longest, **_heard(points)}

    async def _send(self, samples: np.ndarray, extra: Mapping[str, Any]) -> bytes:
        """Body of an answer with choices."""
        messages = await asyncio.to_thread(self._messages, samples)
        waited, attempt = 0.0, 1
        while True:
            try:
                reply = await self._ask(messages, {**self._fields, **extra})
                if choices_of(reply.raw):
                    return reply.raw
                failure = RequestFailed(Fault.TRANSIENT, reply.http_status, "an answer without choices")
            except RequestFailed as error:
                failure = error
            wait = 0.5 * 2 ** (attempt - 1) if failure.wait is None else failure.wait
            passing = failure.fault in (Fault.THROTTLED, Fault.TRANSIENT)
            if not passing or attempt == ATTEMPTS or waited + wait > PATIENCE:
                raise failure
            await self._sleep(wait)
            waited += wait
            # A server that limits without saying for how long must not be asked for ever.
            attempt += failure.fault is Fault.TRANSIENT or failure.wait is None


def _tone(seconds: float) -> np.ndarray:
    """A tone (S,) in a little noise, since silence may be cut off."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * 220 * time) + 0.01 * noise).astype(np.float32)


def _heard(points: list[tuple[float, int]]) -> dict[str, Any]:
    """Whether the last of three points (seconds, tokens) lies on the line through the others, or below."""
    (x1, y1), (x2, y2), (x3, y3) = points
    if min(y1, y2, y3) < 0:
        return {"value": "unknown", "message": "the server does not count tokens"}
    rate = (y2 - y1) / (x2 - x1)
    if y2 - y1 <= _SLACK_TOKENS:
        # Audio padded to a fixed length: only a second block of it would show.
        if y3 - y2 > _SLACK_TOKENS:
            return {"value": "honoured", "tokens_per_second": round(y3 / x3, 1)}
        return {"value": "unknown", "message": "all audio takes the same number of tokens"}
    expected = rate * (x3 - x2)
    short = expected - (y3 - y2)
    facts = {"tokens_per_second": round(rate, 1)}
    if short <= max(_SLACK_TOKENS, _SLACK * expected):
        return {"value": "honoured", **facts}
    if y3 - y2 <= _SLACK_TOKENS:
        # It stopped listening somewhere before x2, so that the rate up to there is not known either.
        return {"value": "truncated", "heard": round(x2, 1), "at_most": True}
    return {"value": "truncated", "heard": round(x2 + (y3 - y2) / rate, 1), **facts}


def _read_n(raw: bytes) -> dict[str, Any]:
    came = len(choices_of(raw))
    return {"value": "honoured" if came >= 2 else "ignored", "choices": came}


def _read_logprobs(raw: bytes) -> dict[str, Any]:
    logprobs = _field(choices_of(raw)[0], "logprobs")
    tokens = _field(logprobs, "content")
    first = tokens[0] if isinstance(tokens, list) and tokens else None
    alternatives = _field(first, "top_logprobs")
    if isinstance(alternatives, list) and alternatives:
        return {"value": "honoured", "alternatives": len(alternatives)}
    # Without a word of answer there is nothing to give probabilities of.
    return {"value": "ignored" if content_of(raw, 0)[0] else "unknown"}


def _read_json_schema(raw: bytes) -> dict[str, Any]:
    text = content_of(raw, 0)[0]
    return {"value": "unknown" if not text else "honoured" if f'"{_WORD}"' in text else "ignored"}


def _read_seed(_: bytes) -> dict[str, Any]:
    return {"value": "accepted"}


_READERS = {
    "n": _read_n,
    "logprobs": _read_logprobs,
    "seed": _read_seed,
    "json_schema": _read_json_schema,
}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
