"""Many requests at once, with every request and every answer in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mifuse_cli.errors import MifuseError, RemoteError
from mifuse_cli.lalm.answers.response import Response, decode
from mifuse_cli.lalm.journal.journal import committed
from mifuse_cli.lalm.questions.plan import Request
from mifuse_cli.lalm.service.advice import advice
from mifuse_cli.lalm.service.breaker import Breaker
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed, backoff, failure_within
from mifuse_cli.lalm.service.pacing import Pacer, Turn, TurnResult
from mifuse_cli.lalm.service.run_state import BudgetReached, Sender

ATTEMPTS = 8  # requests for one question, rate limits not counted
LOST = 3  # of them, those that may have been billed though nothing came back
FIRST_DELAY = 0.5  # seconds; doubles with every attempt
LONGEST_DELAY = 30.0
STALL_SECONDS = 60.0  # with less than two answers after which somebody is told why
DRAIN_SECONDS = 20.0  # that requests under way have left when the user interrupts

_ANSWER_TOKENS = 60  # a guess for the limit of tokens, corrected when the usage comes
_AUDIO_TOKENS = 25  # a second, likewise
_GATEWAY_TIMEOUTS = (504, 524)  # of a proxy: the model may have answered

_log = logging.getLogger("mifuse")


@dataclass(eq=False)
class LiveRun(Sender[Client]):
    """Workers that send requests, and share the pace, the budget and the decision to stop.

    Made inside the event loop that it runs in; reports after each question that is settled.
    """

    def __post_init__(self) -> None:
        now = asyncio.get_running_loop().time
        self._spent_before = self.budget.spent
        self._stopped = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._freed = asyncio.Event()
        self._pacer = Pacer(self.service, now)
        self._breaker = Breaker(self.service, resumed=self.journal.has_answers(), now=now)
        self._now = now
        self._last_answers = deque([now()] * 2, maxlen=2)  # times
        self._last_failure = ""

    async def ask(self, requests: Iterable[Request]) -> None:
        """Send all requests, unless the run has to stop; then its `state` tells why.

        At most twice as many requests as may be under way are taken from the iterator at a time, in another
        thread. What was under way when the run stopped is waited for: it is paid for.
        """
        drawn = self._drawn(iter(requests))
        workers = [asyncio.create_task(self._work(drawn)) for _ in range(self.service.concurrency)]
        through: asyncio.Future[Any] = asyncio.gather(*workers, return_exceptions=True)
        interrupted = asyncio.create_task(self._interrupted.wait())
        watching = asyncio.create_task(self._watch())
        try:
            first: list[asyncio.Future[Any]] = [through, interrupted]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(workers, timeout=DRAIN_SECONDS)
        finally:
            for task in (interrupted, watching, *workers):
                task.cancel()
            await asyncio.gather(interrupted, watching, *workers, return_exceptions=True)

    def stop(self, error: Exception | None = None) -> None:
        """Send no further request; of several errors the first one is kept in the state."""
        self.state.error = self.state.error or error
        self._stopped.set()
        self._pacer.stop()
        self._freed.set()

    def interrupt(self) -> None:
        """Stop because the user wishes it."""
        self.state.interrupted = True
        self._interrupted.set()
        self.stop()
        _log.info(
            "interrupted: waiting %.0f s at most for what is under way; interrupt again to leave it",
            DRAIN_SECONDS,
        )

    async def _watch(self) -> None:
        """Tell why hardly an answer comes, whatever the cause; stop a run that the service lets nothing out of."""
        patience = STALL_SECONDS
        while True:
            await asyncio.sleep(STALL_SECONDS / 8)
            silence = self._now() - self._last_answers[0]
            if silence < STALL_SECONDS:
                patience = STALL_SECONDS
                continue
            under_way = f"{self._pacer.running} requests are under way"
            why = self._pacer.holding or under_way
            if silence >= patience:
                patience = 2 * silence
                last = f"; the last failure: {self._last_failure}" if self._last_failure else ""
                _log.warning("%s: hardly an answer for %.0f s: %s%s", self.client.host, silence, why, last)
            if self._pacer.held_by_service and (stop := self._breaker.held(why)):
                self.stop(self._with_kept(stop))

    def _drawn(self, source: Iterator[Request]) -> Callable[[], Awaitable[Request | None]]:
        """The next request, drawn with some others in a thread: a look into the journal takes a while."""
        lock, ready = asyncio.Lock(), deque[Request]()

        async def draw() -> Request | None:
            async with lock:
                if not ready:
                    ready.extend(
                        await asyncio.to_thread(lambda: list(islice(source, self.service.concurrency)))
                    )
                return ready.popleft() if ready else None

        return draw

    async def _work(self, drawn: Callable[[], Awaitable[Request | None]]) -> None:
        try:
            while not self._stopped.is_set() and (request := await drawn()):
                await self._ask(request)
        except Exception as error:
            self.stop(error)

    async def _ask(self, request: Request) -> None:
        """Send a request until all its choices are answered, or it is given up, or the run stops."""
        messages = await asyncio.to_thread(request.messages)
        attempt, lost = 1, 0
        choices = request.choices
        while choices:
            result = await self._turn(request, messages, choices, attempt)
            if result is None:
                return
            if isinstance(result, int):
                # A service that ignores "n" gives fewer answers than asked for; the rest is asked again.
                choices, attempt, lost = choices[result:], 1, 0
                continue
            failure = result
            self._last_failure = failure.message
            stop: MifuseError | None = None
            if failure.kind is FailureKind.FATAL:
                raise self._fatal(failure)
            if failure.kind is FailureKind.THROTTLED:
                continue
            if failure.kind is FailureKind.REJECTED:
                self.state.rejected[request.name] = failure.message
                stop = self._breaker.rejected(request.clip, failure)
                choices = ()
            else:
                lost += _is_lost(failure)
                stop = self._breaker.failed(failure, lost=_is_lost(failure))
                if attempt == ATTEMPTS or lost == LOST:
                    self.state.failed[request.name] = failure.message
                    stop = stop or self._breaker.given_up(failure)
                    choices = ()
            if stop:
                raise self._with_kept(stop)
            if choices:
                delay = random.uniform(0, backoff(attempt, FIRST_DELAY, LONGEST_DELAY))
                await self._rest(max(delay, min(failure.wait or 0, LONGEST_DELAY)))
                attempt += 1
        self.report(self.state)

    async def _turn(
        self, request: Request, messages: list[dict[str, Any]], choices: tuple[int, ...], attempt: int
    ) -> int | RequestFailed | None:
        """Send a request once: number of answers, or why there is none; None if the run stops before."""
        tokens = len(choices) * _ANSWER_TOKENS + request.text_bytes / 4 + request.seconds * _AUDIO_TOKENS
        about = request.seconds, request.text_bytes, len(choices) * request.length
        cost = self.meter.worst(*about)
        if not await self._reserve(cost):
            return None
        if not (turn := await self._pacer.enter(tokens)):
            self._free(cost, 0.0, left=False)
            return None
        intent = await committed(self.journal.begin(request.key, attempt, asked=request.name, cost=cost))
        self.state.sent += 1
        try:
            fields = _fields(request, choices)
            reply = await self.client.ask(messages, fields, request_key=f"{request.key}-{intent}")
        except RequestFailed as failure:
            await committed(self._failed(intent, failure))
            self._free(cost, cost if _is_lost(failure) else 0.0, left=failure.http_status != 0)
            return self._left(turn, failure)
        stored = self.journal.store(
            intent,
            request.key,
            reply.raw,
            http_status=reply.http_status,
            request_id=reply.request_id,
            choice=choices[0],
        )
        response = decode(reply.raw)
        within = None
        if not response.choices:
            within = failure_within(response, self.client.said(response.error), reply.headers)
        # An error that came before any answer costs what one of its status costs: nothing.
        free = within is not None and not within.billed and not _is_lost(within)
        spent = 0.0 if free else self.meter.observe(response.usage, *about)
        got = min(len(response.choices), len(choices))
        self._read(request, response, got)
        commits = [stored, self.journal.settle(intent, request.key, response, choices=choices, cost=spent)]
        if within and within.http_status != reply.http_status:
            commits.append(self._failed(intent, within, keeps_cost=True))
        self._free(cost, cost if spent is None else spent)
        if within is None:
            self._pacer.leave(turn, TurnResult.ANSWERED, tokens=_total(response.usage), headers=reply.headers)
        await committed(*commits)
        return got if within is None else self._left(turn, within)

    def _failed(self, intent: int, failure: RequestFailed, *, keeps_cost: bool = False) -> Future[None]:
        """Close the intent of a request that failed."""
        status = None if _is_lost(failure) else failure.http_status
        rejected = failure.kind is FailureKind.REJECTED
        return self.journal.fail(intent, status, failure.message, rejected=rejected, keeps_cost=keeps_cost)

    def _left(self, turn: Turn, failure: RequestFailed) -> RequestFailed:
        """Hand back the turn of a request that failed, and stop the run if the rate is limited for too long."""
        throttled = failure.kind is FailureKind.THROTTLED
        result = TurnResult.ANSWERED if failure.kind is FailureKind.REJECTED else TurnResult.FAILED
        result = TurnResult.THROTTLED if throttled else result
        wait = self._pacer.leave(turn, result, headers=failure.headers, wait=failure.wait)
        if throttled:
            self._throttled(failure, wait)
        return failure

    def _read(self, request: Request, response: Response, got: int) -> None:
        """Count the first ``got`` answers of a response, and stop the run if too many cannot be read."""
        if got:
            self._breaker.answered()
            self._last_answers.append(self._now())
            self._last_failure = ""
            self.state.answered += got
        for position in range(got):
            answer = request.read(response, position)
            status = answer.parsed.status
            self.state.statuses[status] += 1
            if not request.again and (stop := self._breaker.judged(status, answer.text)):
                self.stop(self._with_kept(stop))

    async def _reserve(self, cost: float) -> bool:
        """Set money aside for a request; False if the run stops, because of the budget or otherwise."""
        while not self._stopped.is_set():
            known = self.meter.calibrated or not self.budget.in_flight
            if known and self.budget.reserve(cost):
                return True
            if not self.budget.in_flight:
                # Nothing under way will give any of it back.
                self.stop(BudgetReached.after(self.budget, self.state.answered))
                break
            self._freed.clear()
            await self._freed.wait()
        return False

    def _free(self, reserved: float, spent: float, *, left: bool = True) -> None:
        self.budget.settle(reserved, spent, left=left)
        self.state.spent = self.budget.spent - self._spent_before
        self._freed.set()

    def _throttled(self, failure: RequestFailed, wait: float) -> None:
        """Count a 429, after which all wait for ``wait`` seconds; stop the run if that is for too long."""
        self.state.limited += 1
        if stop := self._breaker.throttled(failure, wait):
            raise self._with_kept(stop)

    def _fatal(self, failure: RequestFailed) -> MifuseError:
        what = advice(failure.http_status, failure.message)
        if failure.ours:
            return failure.error(f"{self.client.host}: {failure.sentence} {self._kept()}")
        return failure.error(
            f"{self.client.host} answered {failure.http_status}: {failure.sentence} {what} {self._kept()}"
        )

    def _with_kept(self, error: MifuseError) -> MifuseError:
        return RemoteError(f"{error} {self._kept()}")

    def _kept(self) -> str:
        return f"{self.state.answered} answers of this run are kept in {self.journal.path.name}."

    async def _rest(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


def _fields(request: Request, choices: tuple[int, ...]) -> dict[str, Any]:
    fields = dict(request.fields)
    if len(choices) > 1:
        fields["n"] = len(choices)
    if "seed" in fields:
        # Of the rest of a question: with the same seed it would be the same answer again.
        fields["seed"] ^= request.choices[0] ^ choices[0]
    return fields


def _is_lost(failure: RequestFailed) -> bool:
    """Whether the request may have been billed though nothing came back."""
    return failure.http_status is None or failure.http_status in _GATEWAY_TIMEOUTS


def _total(usage: Mapping[str, int]) -> int | None:
    if usage["total"] >= 0:
        return usage["total"]
    return usage["prompt"] + usage["completion"] if min(usage["prompt"], usage["completion"]) >= 0 else None
