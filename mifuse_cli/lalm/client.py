"""Asking: one request, and many of them at once with every answer in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import openai

from mifuse_cli.errors import MifuseError, RemoteError, UsageError
from mifuse_cli.lalm.faults import Fault, RequestFailed, fault_of, message_of, wait_of
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lalm.replies import choices_of, content_of, json_of

ATTEMPTS = 8  # requests for one question, rate limits not counted
FIRST_DELAY = 0.5  # seconds; doubles with every attempt
LONGEST_DELAY = 30.0
PATIENCE = 900.0  # seconds without any answer after which a rate limit ends the run
HOPELESS = 5  # questions without an answer, and none with one, after which the run ends

_CONNECT_SECONDS = 10.0
_LEFT_NOTHING = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)

Progress = Callable[[int, int, int], None]  # questions answered, rejected, failed so far


@dataclass(frozen=True)
class Question:
    """One question: its key and how to build its messages.

    ``messages`` is called in another thread shortly before the request, so that audio is in memory only
    while its request is under way.
    """

    key: str
    messages: Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Reply:
    """Body of a 200 response as the server sent it, and the server's id of the request."""

    raw: bytes
    http_status: int
    request_id: str | None


@dataclass(frozen=True)
class Counts:
    """Outcome of a run: number of answers, and the last message for each key without one."""

    answered: int
    rejected: dict[str, str]
    failed: dict[str, str]


class Client:
    """A model behind an OpenAI-compatible endpoint; used as an async context manager.

    Args:
        base_url: address up to and with ``/v1``.
        model: name of the model.
        api_key: sent in the header; it appears in no message and no stored answer.
        timeout: seconds for one request.
        parameters: further fields of the request body, e.g. ``temperature``.

    Raises:
        UsageError: the key cannot be sent in a header, or the address is no URL.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        *,
        timeout: float = 120.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if not re.fullmatch(r"[!-~]+", api_key):
            raise UsageError(
                "the API key is empty or holds spaces, line breaks or non-ASCII characters. Check the "
                "variable that it comes from; for a server that needs none, any word will do."
            )
        url = urlsplit(base_url)
        self._api_key = api_key
        self.host = url.netloc.rpartition("@")[2]
        if url.scheme not in ("http", "https") or not self.host:
            raise UsageError(
                f"the address of the model {self.redacted(base_url)!r} is no URL. "
                "Expected one like https://api.openai.com/v1."
            )
        self.model = model
        self._parameters = dict(parameters or {})
        # Retries of the library would be invisible to the journal and to the bill.
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        )

    def __repr__(self) -> str:
        return f"Client(host={self.host!r}, model={self.model!r})"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()

    async def ask(self, messages: list[dict[str, Any]]) -> Reply:
        """Send one request, once.

        Raises:
            RequestFailed: no 200 response; its fault tells what to do.
        """
        # Errors are raised "from None": those of the library hold the request with its headers.
        try:
            response = await self._openai.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                extra_body=self._parameters,
            )
        except openai.APIStatusError as error:
            fault = fault_of(error.status_code, error.body)
            message = self.said(error.body) or f"HTTP {error.status_code}"
            raise RequestFailed(fault, error.status_code, message, wait_of(error.response.headers)) from None
        except openai.APITimeoutError as error:
            raise self._unreachable(error, "no answer in time") from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error, f"connection failed: {error.__cause__}") from None
        except openai.OpenAIError as error:
            raise RequestFailed(Fault.FATAL, 0, self.redacted(str(error))) from None
        raw = response.http_response.content
        if len(self._api_key) >= 8:  # shorter ones are placeholders that may well be words of the answer
            raw = raw.replace(self._api_key.encode(), b"***")
        return Reply(
            raw,
            response.http_response.status_code,
            response.request_id and self.redacted(response.request_id),
        )

    def _unreachable(self, error: openai.APIConnectionError, message: str) -> RequestFailed:
        left = type(error.__cause__).__name__ not in _LEFT_NOTHING
        return RequestFailed(Fault.TRANSIENT, None if left else 0, self.redacted(message))

    def said(self, body: Any) -> str:
        """What an error body says, without the API key and at most 400 characters of it."""
        text = self.redacted(message_of(body))
        return text if len(text) <= 400 else f"{text[:400]}..."

    def redacted(self, text: str) -> str:
        """Text without the API key, and without what follows its first 8 characters if it is a long one."""
        key = self._api_key
        if len(key) < 8:
            return re.sub(rf"(?<![\w-]){re.escape(key)}(?![\w-])", "***", text)
        text = text.replace(key, "***")
        return re.sub(rf"{re.escape(key[:8])}[\w*.-]*", "***", text) if len(key) >= 16 else text


async def answer_all(
    questions: Iterable[Question],
    *,
    client: Client,
    journal: Journal,
    concurrency: int = 8,
    progress: Progress | None = None,
) -> Counts:
    """Ask all questions and keep every answer in the journal.

    At most ``concurrency`` questions are taken from the iterator at a time. A cancelled call loses nothing
    that was committed; requests under way then stay unresolved in the journal.

    Args:
        questions: with different keys, none of them answered in the journal; drawn in the event loop.
        client: where to ask.
        journal: where intents and answers go.
        concurrency: requests under way at the same time.
        progress: called after each question that is settled.

    Raises:
        RemoteError: the server refuses all requests, cannot be reached, or limits the rate for too long;
            raised when the requests under way are through.
        InputError: the journal or a clip cannot be read or written.
    """
    run = _Run(client, journal, progress)
    source = iter(questions)
    workers = [asyncio.create_task(run.work(source)) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if run.error:
        raise run.error
    return Counts(run.answered, run.rejected, run.failed)


class _Run:
    """What the workers of one run share."""

    def __init__(self, client: Client, journal: Journal, progress: Progress | None) -> None:
        self.client = client
        self.journal = journal
        self.progress = progress
        self.answered = 0
        self.rejected: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.error: Exception | None = None
        self._resumed = journal.has_answers()
        self._stop = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self._resume_at = self._last_answer = self._now()
        self._pauses = 0  # in a row, without an answer between them

    async def work(self, source: Iterator[Question]) -> None:
        """Ask questions from the shared source until it is empty or the run has to stop."""
        try:
            while not self._stop.is_set() and (question := next(source, None)):
                await self._ask(question)
        except Exception as error:
            # The first error ends the run, but what the other workers have under way is paid for.
            self.error = self.error or error
            self._stop.set()

    async def _ask(self, question: Question) -> None:
        messages = await asyncio.to_thread(question.messages)
        attempt = 1
        while True:
            while (wait := self._resume_at - self._now()) > 0 and not self._stop.is_set():
                await self._rest(wait)
            if self._stop.is_set():
                return
            failure = await self._attempt(question.key, messages, attempt)
            if failure is None:
                self.answered += 1
                break
            if failure.fault is Fault.FATAL:
                raise self._fatal(failure)
            if failure.fault is Fault.THROTTLED:
                self._throttle(failure)
                continue
            if failure.fault is Fault.REJECTED:
                self.rejected[question.key] = failure.message
                break
            if attempt == ATTEMPTS:
                self.failed[question.key] = failure.message
                break
            delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)))
            await self._rest(max(delay, min(failure.wait or 0, LONGEST_DELAY)))
            attempt += 1
        if self.progress:
            self.progress(self.answered, len(self.rejected), len(self.failed))
        if failure and not self.answered:
            self._check_hope(failure)

    def _check_hope(self, failure: RequestFailed) -> None:
        """Stop a run in which nothing was answered yet.

        Rejected clips do not count where an earlier run got answers: they may be all that it left over.
        """
        hopeless = len(self.failed) + (0 if self._resumed else len(self.rejected))
        if hopeless >= HOPELESS:
            raise RemoteError(
                f"{self.client.host}: the first {hopeless} questions got no answer, the last one because of: "
                f"{_sentence(failure)} Check the address, the model and the audio, then run again."
            )

    async def _attempt(self, key: str, messages: list[dict[str, Any]], attempt: int) -> RequestFailed | None:
        """Send one request between its intent and its outcome in the journal; None if it was answered."""
        intent = self.journal.begin(key, attempt)
        try:
            reply = await self.client.ask(messages)
        except RequestFailed as failure:
            self.journal.fail(intent, failure.http_status, failure.message)
            return failure
        self.journal.store(intent, key, reply.raw, http_status=reply.http_status, request_id=reply.request_id)
        if choices_of(reply.raw):
            self.journal.settle(key, outcome="ok", usage=content_of(reply.raw, 0)[1])
            self._last_answer, self._pauses = self._now(), 0
            return None
        self.journal.settle(key, outcome="unusable")
        said = self.client.said(json_of(reply.raw) or reply.raw.decode("utf-8", "replace"))
        return RequestFailed(Fault.TRANSIENT, reply.http_status, f"an answer without choices: {said}")

    def _throttle(self, failure: RequestFailed) -> None:
        """Let all workers wait as long as the server asks, or longer from pause to pause."""
        now = self._now()
        if now >= self._resume_at:
            self._pauses += 1  # once for all the requests that the same limit hit
        wait = failure.wait
        if wait is None:
            wait = random.uniform(0.5, 1) * min(LONGEST_DELAY, 2.0 ** min(self._pauses, 10) / 2)
        if now + wait - self._last_answer > PATIENCE:
            raise RemoteError(
                f"{self.client.host} limits the rate: {_sentence(failure)} The next request would go out in "
                f"{wait:.0f} s, {now + wait - self._last_answer:.0f} s after the last answer or the start. "
                f"{self._kept()} Run the command again later."
            )
        self._resume_at = max(self._resume_at, now + max(wait, 0.05))

    def _fatal(self, failure: RequestFailed) -> MifuseError:
        advice = {
            401: "Check the API key.",
            402: "Check the credit of the account.",
            403: "Check the API key and what it is allowed to do.",
            404: "Check the address and the name of the model.",
            429: "Check the credit of the account.",
        }.get(failure.http_status or 0, "Check the address, the model and the parameters of the request.")
        return RemoteError(
            f"{self.client.host} answered {failure.http_status}: {_sentence(failure)} {advice} {self._kept()}"
        )

    def _kept(self) -> str:
        return f"{self.answered} answers of this run are kept in {self.journal.path.name}."

    async def _rest(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def _sentence(failure: RequestFailed) -> str:
    return failure.message.rstrip(".") + "."
