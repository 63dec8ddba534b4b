"""Asking through the batches of a provider: files of questions, answered within a day and for less.

Everything that a batch costs is in the journal before it is made, under a tag that the provider keeps with
it. A run that dies at any point is taken up by the next one: it looks for the tag, and collects instead of
paying again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from mifuse_cli.errors import InputError, RemoteError
from mifuse_cli.lalm.answers.response import choices_of, content_of, json_of
from mifuse_cli.lalm.journal.journal import Journal, Waiting
from mifuse_cli.lalm.questions.plan import Question
from mifuse_cli.lalm.service.batch_file import BatchFile, asked_for, line
from mifuse_cli.lalm.service.client import BatchState, Client
from mifuse_cli.lalm.service.failures import Fault, RequestFailed, fault_of

MAX_REQUESTS = 50_000  # of a batch
MAX_BYTES = 200_000_000
PATIENCE = 900.0  # seconds that one call may fail before the run gives up

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_AT_A_TIME = 256  # answers that wait for their commit

Result = TypeVar("Result")


@dataclass
class Counts:
    """How far a run is.

    Attributes:
        sent: requests in the batches of this run; answered: answers that came in, earlier ones' too.
        waiting: batches under way.
        rejected, failed: last message by name of the question.
        refused: whether the budget did not allow for all.
    """

    sent: int = 0
    answered: int = 0
    waiting: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    refused: bool = False


@dataclass(frozen=True)
class Money:
    """What requests cost, and whether they may.

    Attributes:
        cost: most USD that a question can cost.
        reserve: sets that aside; False if it would pass the budget.
        settle: replaces a reservation by what was spent; told, too, whether the request left at all.
        price: USD for tokens as of `mifuse_cli.lalm.answers.response.content_of`, None to let the reservation stand.
    """

    cost: Callable[[Question], float]
    reserve: Callable[[float], bool]
    settle: Callable[[float, float, bool], None]
    price: Callable[[Mapping[str, int]], float | None]


async def run_batches(
    questions: Iterable[Question],
    *,
    client: Client,
    journal: Journal,
    money: Money,
    counts: Counts,
    poll_seconds: float,
    report: Callable[[Counts], None],
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Collect what earlier runs left with the provider, then ask these questions and wait for the answers.

    What answers turn out to cost less than was reserved is spent on further questions. A cancelled run loses
    nothing: the next one collects its batches.

    Args:
        questions: with different keys; drawn after the earlier batches are collected, as files fill up.
        client: where to ask.
        journal: where intents and answers go.
        money: the budget; what earlier runs sent is not settled with it.
        counts: goes on from what it holds, and is right whenever the run ends.
        poll_seconds: between two looks at the batches.
        report: called after every look.
        max_requests: most questions in a file.
        max_bytes: most bytes in a file.
        sleep: waits.

    Raises:
        RemoteError: the provider refuses batches, lost one, or cannot be reached.
        InputError: the journal, a clip or the temporary file cannot be read or written.
    """
    run = _Run(client, journal, money, counts, max_requests, max_bytes, poll_seconds, sleep, report)
    try:
        await run.adopt()
        await run.collect()
        run.broken = ""  # whatever broke an earlier batch may be mended
        source, held = iter(questions), None
        while True:
            before = counts.sent
            held = await run.submit(chain([held] if held else [], source))
            await run.collect()
            if held is None or counts.sent == before or run.broken:
                break
    except RequestFailed as failure:
        raise RemoteError(
            f"{client.host}: {failure.message.rstrip('.')}. Batches under way are collected by the next run."
        ) from None
    if run.broken:
        raise RemoteError(
            f"{client.host}: a batch failed: {run.broken.rstrip('.')}. {counts.answered} answers came in and "
            "are kept. Correct the cause, or wait if it is a limit on batches, then run again."
        )
    counts.refused = held is not None


class _Run:
    """What the parts of one run share."""

    def __init__(
        self,
        client: Client,
        journal: Journal,
        money: Money,
        counts: Counts,
        max_requests: int,
        max_bytes: int,
        poll_seconds: float,
        sleep: Callable[[float], Awaitable[None]],
        report: Callable[[Counts], None],
    ) -> None:
        self.client, self.journal, self.money = client, journal, money
        self.max_requests, self.max_bytes, self.poll_seconds = max_requests, max_bytes, poll_seconds
        self.counts = counts
        self.broken = ""
        self._sleep, self._report = sleep, report
        self._tags: set[str] = set()  # of this run: their money is in the budget

    async def adopt(self) -> None:
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

    async def submit(self, questions: Iterator[Question]) -> Question | None:
        """Send questions until there are no more; the first one that the budget does not allow, if any."""
        file: BatchFile | None = None
        try:
            for question in questions:
                text = await asyncio.to_thread(line, question, self.client.model)
                if len(text) > self.max_bytes:
                    raise InputError(
                        f"{question.name}: takes {len(text)} bytes of a batch, which may have {self.max_bytes}. "
                        "Send shorter audio or mp3."
                    )
                if file and not file.takes(question.key, text):
                    await self._send(file)
                    file = None
                cost = self.money.cost(question)
                if not self.money.reserve(cost):
                    break
                if file is None:
                    file = BatchFile(self.journal.path.parent, self.max_requests, self.max_bytes)
                    self.journal.plan_batch(file.tag, self.client.host)
                    self._tags.add(file.tag)
                begun = self.journal.begin(question.key, 1, asked=question.name, cost=cost, batch=file.tag)
                file.add(question.key, text, begun)
            else:
                question = None
            if file:
                await self._send(file)
            return question
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

    async def collect(self) -> None:
        """Wait until all batches are over, and store their answers."""
        while batches := self.journal.open_batches(self.client.host):
            self.counts.waiting = len(batches)
            for tag, batch_id in batches:
                assert batch_id, "adopted or dropped before"
                state = await self._patiently(partial(self._state, batch_id))
                if state.over:
                    await self._close(tag, state)
                    self.counts.waiting -= 1
            self._report(self.counts)
            if self.counts.waiting:
                await self._sleep(self.poll_seconds)

    async def _send(self, file: BatchFile) -> None:
        """Upload a file and have a batch made of it."""
        with file.content:
            await _all(file.intents)

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
                    refused = failure.fault is not Fault.TRANSIENT and failure.http_status != 200
                    file.left = before or not (refused or failure.http_status == 0)
                    raise

            batch_id = await self._patiently(create)
        self.journal.add_batch(file.tag, batch_id)
        self.counts.sent += len(file.intents)

    async def _state(self, batch_id: str) -> BatchState:
        try:
            return await self.client.batch_state(batch_id)
        except RequestFailed as failure:
            if failure.http_status == 404:
                raise RemoteError(
                    f"{self.client.host} does not know the batch {batch_id}, which holds paid questions: "
                    f"{failure.message.rstrip('.')}. Use the API key that it was sent with."
                ) from None
            raise

    async def _close(self, tag: str, state: BatchState) -> None:
        """Store what came of a batch that is over."""
        for file in (state.output_file, state.error_file):
            if file:
                await self._patiently(partial(self._read, tag, file))
        if state.state == "failed":
            self.broken = state.message or "the provider does not say why"
        message = state.message or f"the batch is {state.state}, without an answer"
        self.counts.failed |= dict.fromkeys(self._drop(tag, message, state.state), message)
        if state.input_file:
            # Voices need not stay there; the provider forgets them some day in any case.
            with suppress(RequestFailed):
                await self.client.delete(state.input_file)

    async def _read(self, tag: str, file_id: str) -> None:
        waiting = self.journal.in_batch(tag)
        commits: list[Future[None]] = []
        async with aclosing(self.client.lines(file_id)) as lines:
            async for text in lines:
                commits += self._take(json_of(text), waiting, mine=tag in self._tags)
                if len(commits) >= _AT_A_TIME:
                    await _all(commits)
                    commits = []
        await _all(commits)

    def _take(self, entry: Any, waiting: dict[str, Waiting], *, mine: bool) -> list[Future[None]]:
        """Store one line of the provider's files, unless it is none or was stored before."""
        key, choices = asked_for(str(_field(entry, "custom_id")))
        if not choices or key not in waiting:
            return []
        intent, name, reserved = waiting.pop(key)
        for earlier in (self.counts.rejected, self.counts.failed):
            earlier.pop(name, None)
        response = _field(entry, "response")
        body, status = _field(response, "body"), _field(response, "status_code")
        status = status if type(status) is int else 0
        if status != 200:
            message = self.client.said(body if body else _field(entry, "error")) or f"HTTP {status}"
            rejected = status != 0 and fault_of(status, body) is Fault.REJECTED
            (self.counts.rejected if rejected else self.counts.failed)[name] = message
            if mine:
                self.money.settle(reserved, 0.0, status != 0)
            return [self.journal.fail(intent, status, message, rejected=rejected)]
        raw = json.dumps(body).encode()
        request_id = _field(response, "request_id")
        got = min(len(choices_of(raw)), len(choices))
        usage = content_of(raw, 0)[1]
        cost = self.money.price(usage)
        self.counts.answered += got
        if not got:
            self.counts.failed[name] = f"an answer without choices: {self.client.said(body)}"
        if mine:
            self.money.settle(reserved, reserved if cost is None else cost, True)
        return [
            self.journal.store(
                intent,
                key,
                raw,
                http_status=status,
                request_id=request_id if isinstance(request_id, str) else None,
                choice=choices[0],
            ),
            self.journal.settle(
                intent,
                key,
                outcome="ok" if got else "unusable",
                choices=choices[: got or 1],
                usage=usage,
                cost=cost,
            ),
        ]

    def _drop(self, tag: str, message: str, state: str = "never made") -> list[str]:
        """Close a batch; what it holds without an answer was not billed. Return the names of that."""
        left = list(self.journal.in_batch(tag).values())
        for intent, _, reserved in left:
            self.journal.fail(intent, 0, message)
            if tag in self._tags:
                self.money.settle(reserved, 0.0, False)
        self.journal.close_batch(tag, state)
        return [name for _, name, _ in left]

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Result of a call, which is repeated while it fails in a way that may pass."""
        waited, delay = 0.0, _FIRST_DELAY
        while True:
            try:
                return await call()
            except RequestFailed as failure:
                pause = max(delay, failure.wait or 0.0)
                if failure.fault not in (Fault.THROTTLED, Fault.TRANSIENT) or waited + pause > PATIENCE:
                    raise
            await self._sleep(pause)
            waited += pause
            delay = min(2 * delay, _LONGEST_DELAY)


async def _all(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        # A run that is cancelled meanwhile keeps what it began to write.
        await asyncio.shield(asyncio.wrap_future(future))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
