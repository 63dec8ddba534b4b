"""Finding out with a few cheap requests what a service honours, and what it ignores without a word."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from mifuse_cli import audio
from mifuse_cli.audio import RATE
from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.response import Response, decode, member
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.journal.journal import committed
from mifuse_cli.lalm.journal.open_questions import OpenQuestions
from mifuse_cli.lalm.questions.dialect import Dialect, audio_part
from mifuse_cli.lalm.service.advice import advice
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed, backoff, failure_within
from mifuse_cli.lalm.service.run_state import BudgetReached
from mifuse_cli.lalm.service.service_options import ServiceOptions

LONG_SECONDS = 20.0
"""Audio longer than this is worth a look at whether the model hears all of it."""

ATTEMPTS = 4  # requests for one test, rate limits not counted
PATIENCE = 120.0  # seconds of waiting in one test
_FIRST_DELAY = 0.5  # seconds; doubles with every attempt

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
ANSWER_TOKENS = 64  # the absurd one takes about ten
_REFUSALS = (400, 413, 422, 501)
_SLACK_TOKENS = 3  # by which servers round audio of different lengths
_SLACK = 0.05
_THINGS = {
    "n": "several answers to one request (n)",
    "logprobs": "probabilities of tokens (logprobs)",
    "seed": "a seed",
    "json_schema": "a JSON schema for the answer (response_format)",
    "long_audio": "long audio",
}


async def find_out(
    questions: OpenQuestions, client: Client, service: ServiceOptions, budget: Budget, meter: Meter
) -> None:
    """Probe what this model is not known to do, and stop if it cannot do what the questions rely on.

    What it did not do in an earlier run it may have learnt since.

    Args:
        questions: about its clips; the shortest is the one that is sent.
        client: whom to ask.
        service: its ``probe`` says what to find out about.
        budget: pays for the requests.
        meter: prices them as what they are, live requests.

    Raises:
        UsageError: a feature that the questions rely on is refused or ignored.
        RequestFailed: no request succeeds.
    """
    extremes = questions.extremes()
    if extremes is None or service.probe == "off":
        return
    shortest, longest = extremes
    needed = frozenset(_relied_on(questions, longest))
    wanted = frozenset(_THINGS) if service.probe == "all" else needed
    journal, host, model = questions.journal, client.host, client.model
    found = journal.probed(host, model) or {}
    unknown = wanted - {name for name, facts in found.items() if facts["value"] in ("honoured", "accepted")}
    # What was heard says nothing of clips that are longer still.
    if "long_audio" in wanted and longest > found.get("long_audio", {}).get("seconds", 0.0) + 0.5:
        unknown |= {"long_audio"}
    if unknown:
        question = questions.first_question(shortest)
        asked = f"probe of {', '.join(sorted(unknown))}"

        def messages(samples: np.ndarray) -> list[dict[str, Any]]:
            return questions.messages_about(samples, question)

        async def send(sent: list[dict[str, Any]], extra: Mapping[str, Any]) -> Response:
            about = longest, questions.options.text_bytes(), extra.get("n", 1)
            cost = meter.worst(*about)
            if not budget.reserve(cost):
                raise BudgetReached.after(budget, 0)
            intent = await committed(journal.begin("probe", 1, asked=asked, cost=cost))
            try:
                reply = await client.ask(sent, extra, request_key=f"probe-{intent}")
            except RequestFailed as failure:
                await committed(journal.fail(intent, failure.http_status, failure.message))
                budget.settle(cost, cost if failure.http_status is None else 0.0)
                raise
            response = decode(reply.raw)
            within = None
            if not response.choices:
                within = failure_within(response, client.said(response.error), reply.headers)
            free = within is not None and not within.billed
            spent = 0.0 if free else meter.observe(response.usage, *about) or 0.0
            await committed(journal.note(intent, reply.http_status, spent))
            budget.settle(cost, spent)
            if within:
                # With the words and the headers of the service, which a response does not have.
                raise within
            return response

        clip = audio.read(*shortest.excerpt)
        options = questions.options
        tests = Probe(send, messages, clip, options.dialect.fields(options.temperature, ANSWER_TOKENS))
        found |= await tests.run(unknown, longest)
        journal.add_probe(host, model, found)
    if problems := unsupported(found, sorted(needed)):
        raise UsageError(
            f"{model} at {host} cannot do what the options ask for: {' '.join(problems)} "
            "Choose other options, or pass --probe off to try nevertheless."
        )


def _relied_on(questions: OpenQuestions, longest: float) -> Iterator[str]:
    """What the questions ask of the service, beyond an answer."""
    options = questions.options
    if options.choices_per_request > 1:
        yield "n"
    if options.elicit == "logprob":
        yield "logprobs"
    if options.json_schema:
        yield "json_schema"
    if options.seed is not None:
        yield "seed"
    if longest > LONG_SECONDS:
        yield "long_audio"


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


class Probe:
    """Tests of features: one answered request for all of ``n``, ``logprobs`` and ``seed``, one for
    ``json_schema``, and two or three for ``long_audio``; refused ones come on top.

    Args:
        ask: sends one request, made of messages and further fields.
        messages: builds the messages about audio, shape (S,) at 16 kHz; the text is the same each time.
        clip: samples (S,) at 16 kHz of a short clip of the user's, since some services take only certain
            audio. Tones are sent for ``long_audio`` alone.
        fields: of every request, such as ``temperature`` and a limit of `ANSWER_TOKENS`; no feature among them.
        sleep: waits.
    """

    def __init__(
        self,
        ask: Callable[[list[dict[str, Any]], Mapping[str, Any]], Awaitable[Response]],
        messages: Callable[[np.ndarray], list[dict[str, Any]]],
        clip: np.ndarray,
        fields: Mapping[str, Any],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._found: dict[str, dict[str, Any]] = {}
        self._ask, self._messages, self._clip, self._sleep = ask, messages, clip, sleep
        self._fields = fields
        self._plain_works = False
        self._prompt = -1  # tokens of a question about the clip

    async def run(self, wanted: Collection[str], longest: float) -> dict[str, dict[str, Any]]:
        """Test features.

        Args:
            wanted: their names.
            longest: seconds of audio that the model should hear.

        Returns:
            By name of the feature a dict, fit for JSON, with a ``value``: "honoured", "ignored", "refused" (by
            the service's ``message``), or "unknown". ``seed``: "accepted" instead of "honoured". ``n``: number
            of ``choices`` that came for 2. ``logprobs``: number of ``alternatives``. ``long_audio``:
            "truncated" instead of "ignored"; ``seconds`` sent, ``heard`` (an estimate, or with ``at_most`` a
            bound), and ``tokens_per_second`` where they are known.

        Raises:
            RequestFailed: no request can succeed, or none did in time.
            KeyError: no such feature.
        """
        for name in wanted:
            if name not in _THINGS:
                raise KeyError(name)
        if together := [name for name in ("n", "logprobs", "seed") if name in wanted]:
            await self._test(together)
        if "json_schema" in wanted:
            await self._test(["json_schema"])
        if "long_audio" in wanted:
            await self._hear(longest)
        return self._found

    async def _test(self, names: list[str]) -> None:
        """Ask about the clip with these features; if that is refused, find out because of which."""
        extra = {field: value for name in names for field, value in _FIELDS[name].items()}
        try:
            response = await self._send(self._clip, extra)
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
                    await self._test(some)
            self._found |= {name: {"value": "refused", "message": failure.message} for name in guilty}
            return
        self._plain_works = True
        self._prompt = response.usage["prompt"]
        self._found |= {name: _READERS[name](response) for name in names}

    async def _hear(self, longest: float) -> None:
        """Compare the prompt tokens of three lengths of audio: they lie on a line, or the longest falls short."""
        short = len(self._clip) / RATE
        points = [(short, self._prompt)] if self._prompt >= 0 and short <= longest / 4 else []
        for seconds in (longest / 8, longest / 2, longest)[len(points) :]:
            try:
                response = await self._send(_tone(seconds), {})
            except RequestFailed as failure:
                if failure.http_status not in _REFUSALS:
                    raise
                # Only where shorter tones went through, the length is what is refused.
                value = "refused" if seconds == longest else "unknown"
                self._found["long_audio"] = {"value": value, "seconds": longest, "message": failure.message}
                return
            points.append((seconds, response.usage["prompt"]))
        self._found["long_audio"] = {"seconds": longest, **_heard(points)}

    async def _send(self, samples: np.ndarray, extra: Mapping[str, Any]) -> Response:
        """A response with choices."""
        messages = await asyncio.to_thread(self._messages, samples)
        waited, attempt = 0.0, 1
        while True:
            try:
                response = await self._ask(messages, {**self._fields, **extra})
                if response.choices:
                    return response
                failure = failure_within(response, "", {})
            except RequestFailed as error:
                failure = error
            wait = backoff(attempt, _FIRST_DELAY, PATIENCE) if failure.wait is None else failure.wait
            if not failure.passing or attempt == ATTEMPTS or waited + wait > PATIENCE:
                raise failure
            await self._sleep(wait)
            waited += wait
            # A server that limits without saying for how long must not be asked for ever.
            attempt += failure.kind is FailureKind.TRANSIENT or failure.wait is None


def ask_about_a_tone(service: ServiceOptions, dialect: Dialect) -> Response:
    """The answer to one question about a second of a tone, which tells whether a model takes audio in this form.

    Raises:
        RemoteError: there is no answer.
        InputError: a proxy or a certificate of this machine is at fault.
        UsageError: the address is none, or the key cannot be sent.
    """
    sound = audio_part(audio.wav_bytes(_tone(1.0)), "wav", dialect.audio_part)
    question = {"type": "text", "text": "What is in this recording? Answer in one word."}

    async def send() -> Response:
        async with Client(service) as client:
            messages = [{"role": "user", "content": [sound, question]}]
            reply = await client.ask(messages, dialect.fields(1.0, ANSWER_TOKENS))
            response = decode(reply.raw)
            if not response.choices:
                raise failure_within(response, client.said(response.error), reply.headers)
            return response

    try:
        return asyncio.run(send())
    except RequestFailed as failure:
        advised = advice(failure.http_status, failure.message)
        raise failure.error(f"{service.model} at {service.host}: {failure.sentence} {advised}") from None


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


def _read_n(response: Response) -> dict[str, Any]:
    came = len(response.choices)
    return {"value": "honoured" if came >= 2 else "ignored", "choices": came}


def _read_logprobs(response: Response) -> dict[str, Any]:
    first = response.choices[0]
    alternatives = member(first.tokens[0], "top_logprobs") if first.tokens else None
    if isinstance(alternatives, list) and alternatives:
        return {"value": "honoured", "alternatives": len(alternatives)}
    # Without a word of answer there is nothing to give probabilities of.
    return {"value": "ignored" if first.text else "unknown"}


def _read_json_schema(response: Response) -> dict[str, Any]:
    text = response.choices[0].text
    return {"value": "unknown" if not text else "honoured" if f'"{_WORD}"' in text else "ignored"}


def _read_seed(_: Response) -> dict[str, Any]:
    return {"value": "accepted"}


_READERS = {
    "n": _read_n,
    "logprobs": _read_logprobs,
    "seed": _read_seed,
    "json_schema": _read_json_schema,
}
