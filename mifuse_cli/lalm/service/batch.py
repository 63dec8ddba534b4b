"""Asking through the batches of a provider: files of questions, answered within a day and for less.

Everything that a batch costs is in the journal before it is made, under a tag that the provider keeps with
it. A run that dies at any point is taken up by the next one: it looks for the tag, and collects instead of
paying again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol, TypeVar

from mifuse_cli.errors import InputError, RemoteError
from mifuse_cli.lalm.answers.response import Response, decode_json, member
from mifuse_cli.lalm.journal.journal import Waiting, committed
from mifuse_cli.lalm.questions.plan import Request
from mifuse_cli.lalm.service.client import BatchState
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed, backoff, failure_kind, failure_within
from mifuse_cli.lalm.service.run_state import Sender

MAX_REQUESTS = 50_000  # of a batch
MAX_BYTES = 200_000_000
PATIENCE = 900.0  # seconds that one call may fail before the run gives up

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_TOLD_SECONDS = 60.0  # of failing after which somebody is told
_AT_A_TIME = 256  # answers that wait for their commit

_log = logging.getLogger("mifuse")

Result = TypeVar("Result")


class BatchService(Protocol):
    """Whoever takes files of questions and answers them.

    Attributes:
        host: name of the provider, in messages and in the journal.
        model: name of the model that is to answer.
        polled: whether batches come to an end by themselves, so that waiting for them helps.
    """

    host: str
    model: str
    polled: bool

    async def upload(self, file: BinaryIO) -> str: ...

    async def create_batch(self, input_file: str, tag: str) -> str: ...

    def batches(self) -> AsyncGenerator[BatchState, None]: ...

    async def batch_state(self, batch_id: str) -> BatchState: ...

    def lines(self, file_id: str) -> AsyncGenerator[bytes, None]: ...

    async def delete(self, file_id: str) -> None: ...

    def said(self, body: Any) -> str: ...


@dataclass(eq=False)
class BatchRun(Sender[BatchService]):
    """Requests sent in batches; what earlier runs left with the provider is collected with them.

    A run that is cancelled loses nothing: the next one collects its batches. It reports after every look at
    the batches. What earlier runs sent is not settled with the budget. Batches that somebody else has to
    answer (`BatchService.polled`) are left waiting; no more is sent beside them.

    Attributes:
        max_requests: most requests in a file.
        max_bytes: most bytes in a file.
        sleep: waits.
    """

    max_requests: int = MAX_REQUESTS
    max_bytes: int = MAX_BYTES
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._broken = ""  # why a batch failed as a whole
        self._tags: set[str] = set()  # of this run: their money is in the budget

    async def ask(self, requests: Iterable[Request] = ()) -> None:
        """Collect what earlier runs left with the provider, then send these requests and wait for the answers.

        What answers turn out to cost less than was reserved is spent on further requests.

        Args:
            requests: with different keys; drawn after the earlier batches are collected, as files fill up.

        Raises:
            RemoteError: the provider refuses batches, lost one, or cannot be reached.
            InputError: the journal, a clip or the temporary file cannot be read or written.
        """
        try:
            await self._adopt()
            await self._collect()
            if self.state.waiting:
                return
            self._broken = ""  # whatever broke an earlier batch may be mended
            source, held = iter(requests), None
            while True:
                before = self.state.sent
                held = await self._submit(chain([held] if held else [], source))
                await self._collect()
                if held is None or self.state.sent == before or self._broken or self.state.waiting:
                    break
        except RequestFailed as failure:
            raise failure.error(
                f"{self.client.host}: {failure.sentence} Batches under way are collected by the next run."
            ) from None
        if self._broken:
            raise RemoteError(
                f"{self.client.host}: a batch failed: {self._broken.rstrip('.')}. {self.state.answered} answers "
                "came in and are kept. Correct the cause, or wait if it is a limit on batches, then run again."
            )
        self.state.over_budget = held is not None

    async def _adopt(self) -> None:
        """Find the batches of which a run that died did not learn whether they were made."""

        async def find() -> None:
            lost = {tag for tag, batch_id in self.journal.open_batches(self.client.host) if batch_id is None}
            if not lost:
                return
            async with aclosing(self.client.batches()) as states:
                async for state in states:
                    if state.tag in lost:
                        self.journal.add_batch(state.tag, state.id)
                        lost.remove(state.tag)
                    if not lost:
                        return
            for tag in lost:
                self._drop(tag, "the batch was never made")

        await self._patiently(find)

    async def _submit(self, requests: Iterator[Request]) -> Request | None:
        """Send questions until there are no more; the first one that the budget does not allow, if any."""
        file: BatchFile | None = None
        try:
            for request in requests:
                text = await asyncio.to_thread(line, request, self.client.model)
                if len(text) > self.max_bytes:
                    raise InputError(
                        f"{request.name}: takes {len(text)} bytes of a batch, which may have {self.max_bytes}. "
                        "Send shorter audio or mp3."
                    )
                if file and not file.takes(request.key, text):
                    await self._send(file)
                    file = None
                cost = self.meter.worst(
                    request.seconds,
                    request.text_bytes,
                    len(request.choices) * request.length,
                    batch=True,
                )
                if not self.budget.reserve(cost):
                    break
                if file is None:
                    file = BatchFile(self.journal.path.parent, self.max_requests, self.max_bytes)
                    self.journal.plan_batch(file.tag, self.client.host)
                    self._tags.add(file.tag)
                begun = self.journal.begin(request.key, 1, asked=request.name, cost=cost, batch=file.tag)
                file.add(request.key, text, begun)
                self.state.failed.pop(request.name, None)  # it is asked again
            else:
                request = None
            if file:
                await self._send(file)
            return request
        except BaseException as error:
            if file:
                wait(file.intents)
                file.content.close()
                if not file.left:
                    self._drop(file.tag, "the batch was never made")
            if isinstance(error, OSError):
                raise InputError(
                    f"{self.journal.path.parent}: no batch file can be written ({error.strerror}). Make room."
                ) from None
            raise

    async def _collect(self) -> None:
        """Wait until all batches are over, and store their answers."""
        while batches := self.journal.open_batches(self.client.host):
            self.state.waiting = len(batches)
            for tag, batch_id in batches:
                assert batch_id, "adopted or dropped before"
                state = await self._patiently(partial(self._state, batch_id))
                if state.over:
                    await self._close(tag, state)
                    self.state.waiting -= 1
            self.report(self.state)
            if self.state.waiting and not self.client.polled:
                return
            if self.state.waiting:
                await self.sleep(self.service.poll_seconds)

    async def _send(self, file: BatchFile) -> None:
        """Upload a file and have a batch made of it."""
        with file.content:
            await committed(*file.intents)

            async def upload() -> str:
                file.content.seek(0)
                return await self.client.upload(file.content)

            input_file = await self._patiently(upload)

            async def create() -> str:
                if file.left:
                    # The answer to the last try was lost; the batch may be there.
                    async with aclosing(self.client.batches()) as states:
                        async for state in states:
                            if state.tag == file.tag:
                                return state.id
                before, file.left = file.left, True
                try:
                    return await self.client.create_batch(input_file, file.tag)
                except RequestFailed as failure:
                    refused = failure.kind is not FailureKind.TRANSIENT and failure.http_status != 200
                    file.left = before or not (refused or failure.http_status == 0)
                    raise

            batch_id = await self._patiently(create)
        self.journal.add_batch(file.tag, batch_id)
        self.state.sent += len(file.intents)

    async def _state(self, batch_id: str) -> BatchState:
        try:
            return await self.client.batch_state(batch_id)
        except RequestFailed as failure:
            if failure.http_status == 404:
                raise RemoteError(
                    f"{self.client.host} does not know the batch {batch_id}, which holds paid questions: "
                    f"{failure.sentence} Use the API key that it was sent with."
                ) from None
            raise

    async def _close(self, tag: str, state: BatchState) -> None:
        """Store what came of a batch that is over."""
        for file in (state.output_file, state.error_file):
            if file:
                await self._patiently(partial(self._read, tag, file))
        if state.state == "failed":
            self._broken = state.message or "the provider does not say why"
        message = state.message or f"the batch is {state.state}, without an answer"
        self.state.failed |= dict.fromkeys(self._drop(tag, message, state.state), message)
        if state.input_file:
            # Voices need not stay there; the provider forgets them some day in any case.
            with suppress(RequestFailed):
                await self.client.delete(state.input_file)

    async def _read(self, tag: str, file_id: str) -> None:
        waiting = self.journal.in_batch(tag)
        commits: list[Future[None]] = []
        async with aclosing(self.client.lines(file_id)) as lines:
            async for text in lines:
                commits += self._take(decode_json(text), waiting, mine=tag in self._tags)
                if len(commits) >= _AT_A_TIME:
                    await committed(*commits)
                    commits = []
        await committed(*commits)

    def _take(self, entry: Any, waiting: dict[str, Waiting], *, mine: bool) -> list[Future[None]]:
        """Store one line of the provider's files, unless it is none or was stored before."""
        key, choices = asked_for(str(member(entry, "custom_id")))
        if not choices or key not in waiting:
            return []
        intent, name, reserved = waiting.pop(key)
        for earlier in (self.state.rejected, self.state.failed):
            earlier.pop(name, None)
        http = member(entry, "response")
        body, status = member(http, "body"), member(http, "status_code")
        status = status if type(status) is int else 0
        if status != 200:
            message = self.client.said(body if body else member(entry, "error")) or f"HTTP {status}"
            rejected = status != 0 and failure_kind(status, body) is FailureKind.REJECTED
            (self.state.rejected if rejected else self.state.failed)[name] = message
            if mine:
                self.budget.settle(reserved, 0.0, left=status != 0)
            return [self.journal.fail(intent, status, message, rejected=rejected)]
        response = Response.of(body)
        cost = self.meter.cost_in_batch(response.usage, len(choices))
        got = min(len(response.choices), len(choices))
        self.state.answered += got
        request_id = member(http, "request_id")
        commits = [
            self.journal.store(
                intent,
                key,
                json.dumps(body).encode(),
                http_status=status,
                request_id=request_id if isinstance(request_id, str) else None,
                choice=choices[0],
            )
        ]
        within = None if got else failure_within(response, self.client.said(response.error), {})
        if within:
            rejected = within.kind is FailureKind.REJECTED
            (self.state.rejected if rejected else self.state.failed)[name] = within.message
            cost = cost if within.billed else 0.0
        commits.append(self.journal.settle(intent, key, response, choices=choices, cost=cost))
        if within and within.http_status != status:
            failed = self.journal.fail(
                intent, within.http_status, within.message, rejected=rejected, keeps_cost=True
            )
            commits.append(failed)
        if mine:
            self.budget.settle(reserved, reserved if cost is None else cost)
        return commits

    def _drop(self, tag: str, message: str, state: str = "never made") -> list[str]:
        """Close a batch; what it holds without an answer was not billed. Return the names of that."""
        left = list(self.journal.in_batch(tag).values())
        for intent, _, reserved in left:
            self.journal.fail(intent, 0, message)
            if tag in self._tags:
                self.budget.settle(reserved, 0.0, left=False)
        self.journal.close_batch(tag, state)
        return [name for _, name, _ in left]

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Result of a call, which is repeated while it fails in a way that may pass."""
        waited, attempt = 0.0, 1
        while True:
            try:
                return await call()
            except RequestFailed as failure:
                pause = max(backoff(attempt, _FIRST_DELAY, _LONGEST_DELAY), failure.wait or 0.0)
                if not failure.passing or waited + pause > PATIENCE:
                    raise
                if waited < _TOLD_SECONDS <= waited + pause:
                    _log.warning("%s: no answer since %.0f s: %s", self.client.host, waited, failure.message)
            await self.sleep(pause)
            waited += pause
            attempt += 1


class BatchFile:
    """Questions of a batch in the making, in a file without a name, so that no audio stays behind.

    Args:
        directory: where there is room.
        max_requests: most lines.
        max_bytes: most bytes.

    Attributes:
        tag: names the batch.
        content: the lines so far.
        intents: those of the lines.
        left: whether the provider may have made a batch of it.
    """

    def __init__(self, directory: Path, max_requests: int, max_bytes: int) -> None:
        self.tag = secrets.token_hex(16)
        self.content = TemporaryFile(dir=directory)  # noqa: SIM115 - closed with the file
        self.intents: list[Future[int]] = []
        self.left = False
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._keys: set[str] = set()
        self._size = 0

    def takes(self, key: str, line: bytes) -> bool:
        """Whether the line fits in; a key can be asked for only once."""
        room = len(self._keys) < self._max_requests and self._size + len(line) <= self._max_bytes
        return room and key not in self._keys

    def add(self, key: str, line: bytes, intent: Future[int]) -> None:
        """Write a line."""
        self.content.write(line)
        self.intents.append(intent)
        self._keys.add(key)
        self._size += len(line)


def line(request: Request, model: str) -> bytes:
    """The line of a batch file that asks a request."""
    body: dict[str, Any] = {"model": model, "messages": request.messages(), **request.fields}
    if len(request.choices) > 1:
        body["n"] = len(request.choices)
    entry = {
        "custom_id": custom_id(request.key, request.choices),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def custom_id(key: str, choices: Sequence[int]) -> str:
    """Name of a request within a batch: the key, and the wanted choices as bits of a hexadecimal number."""
    return f"{key}.{sum(1 << choice for choice in choices):x}"


def asked_for(custom_id: str) -> tuple[str, tuple[int, ...]]:
    """Key and choices of a `custom_id`; no choices if it is none."""
    # A provider that makes up names must not have us count to 16 to the power of their length.
    found = re.fullmatch(r"(.+)\.([1-9a-f][0-9a-f]{0,999})", custom_id, re.DOTALL)
    bits = int(found[2], 16) if found else 0
    return found[1] if found else "", tuple(i for i in range(bits.bit_length()) if bits >> i & 1)
