"""Asking many questions at once, with every request and every answer in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from itertools import islice
from typing import Any

from mifuse_cli.errors import MifuseError, RemoteError
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.answers.response import choices_of, content_of, json_of
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.plan import Question
from mifuse_cli.lalm.service.breaker import Breaker
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import Fault, RequestFailed
from mifuse_cli.lalm.service.pacing import Outcome, Pacer, Turn

ATTEMPTS = 8  # requests for one question, rate limits not counted
LOST = 3  # of them, those that may have been billed though nothing came back
FIRST_DELAY = 0.5  # seconds; doubles with every attempt
LONGEST_DELAY = 30.0
DRAIN_SECONDS = 20.0  # that requests under way have left when the user interrupts

_ANSWER_TOKENS = 60  # a guess for the limit of tokens, corrected when the usage comes
_AUDIO_TOKENS = 25  # a second, likewise
_GATEWAY_TIMEOUTS = (504, 524)  # of a proxy: the model may have answered

_log = logging.getLogger("mifuse")


class BudgetReached(RemoteError):
    """The next request could pass the cap on money or requests."""

    @classmethod
    def after(cls, budget: Budget, answered: int) -> BudgetReached:
        """The error for a run with so many answers."""
        spent = f" and {budget.spent:.4f} USD" if budget.spent else ""
        return cls(
            f"the limit is reached: after {budget.sent} requests{spent} in all runs one more could pass --budget "
            f"or --max-requests. The {answered} answers of this run are kept. Raise the limit to go on."
        )


class Asking:
    """One run of questions: workers that share pace, budget and the decision to stop.

    Args:
        client: where to ask.
        journal: where intents and answers go.
        pacer: when a request may go out.
        concurrency: most questions under way.
        budget: whether it may go out at all.
        meter: what it may cost; None if nobody knows the price.
        max_unreadable: share of the last answers that may be unreadable before the run stops.
        report: called after each question that is settled.

    Attributes:
        answered, limited, sent: answers, 429 responses and requests so far.
        statuses: answers by what became of them.
        rejected, failed: last message by name of the question.
        error: why the run stopped, None if it did not.
        interrupted: whether a signal stopped it.
    """

    def __init__(
        self,
        client: Client,
        journal: Journal,
        pacer: Pacer,
        *,
        concurrency: int,
        budget: Budget,
        meter: Meter | None,
        max_unreadable: float = 0.5,
        report: Callable[[Asking], None] | None = None,
    ) -> None:
        self.client, self.journal, self.pacer = client, journal, pacer
        self.budget, self.meter = budget, meter
        self.answered = self.limited = self.sent = 0
        self.statuses: Counter[Status] = Counter()
        self.rejected: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.error: Exception | None = None
        self.interrupted = False
        self._concurrency = concurrency
        self._report = report
        self._spent_before = budget.spent
        self._stop = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._freed = asyncio.Event()
        self._breaker = Breaker(
            client.host,
            concurrency=concurrency,
            max_unreadable=max_unreadable,
            resumed=journal.has_answers(),
            now=asyncio.get_running_loop().time,
        )

    async def ask(self, questions: Iterable[Question]) -> None:
        """Ask all questions, unless the run has to stop; then `error` or `interrupted` tells why.

        At most twice as many questions as may be under way are taken from the iterator at a time, in another
        thread. What was under way when the run stopped is waited for: it is paid for.
        """
        drawn = self._drawn(iter(questions))
        workers = [asyncio.create_task(self._work(drawn)) for _ in range(self._concurrency)]
        through: asyncio.Future[Any] = asyncio.gather(*workers, return_exceptions=True)
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            first: list[asyncio.Future[Any]] = [through, interrupted]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(workers, timeout=DRAIN_SECONDS)
        finally:
            for task in (interrupted, *workers):
                task.cancel()
            await asyncio.gather(interrupted, *workers, return_exceptions=True)

    def stop(self, error: Exception | None = None) -> None:
        """Let no further request out; the first error is the one that counts."""
        self.error = self.error or error
        self._stop.set()
        self.pacer.stop()
        self._freed.set()

    def interrupt(self) -> None:
        """Stop because the user wishes it."""
        self.interrupted = True
        self._interrupted.set()
        self.stop()
        _log.info(
            "interrupted: waiting %.0f s at most for what is under way; interrupt again to leave it",
            DRAIN_SECONDS,
        )

    @property
    def spent(self) -> float:
        """USD that this run has cost."""
        return self.budget.spent - self._spent_before

    def _drawn(self, source: Iterator[Question]) -> Callable[[], Awaitable[Question | None]]:
        """The next question, drawn with some others in a thread: a look into the journal takes a while."""
        lock, ready = asyncio.Lock(), deque[Question]()

        async def draw() -> Question | None:
            async with lock:
                if not ready:
                    ready.extend(await asyncio.to_thread(lambda: list(islice(source, self._concurrency))))
                return ready.popleft() if ready else None

        return draw

    async def _work(self, drawn: Callable[[], Awaitable[Question | None]]) -> None:
        try:
            while not self._stop.is_set() and (question := await drawn()):
                await self._ask(question)
        except Exception as error:
            self.stop(error)

    async def _ask(self, question: Question) -> None:
        messages = await asyncio.to_thread(question.messages)
        attempt, lost = 1, 0
        choices = question.choices
        while choices:
            result = await self._turn(question, messages, choices, attempt)
            if result is None:
                return
            if isinstance(result, int):
                # A server that ignores "n" gives fewer answers than asked for; the rest is asked again.
                choices, attempt, lost = choices[result:], 1, 0
                continue
            failure = result
            stop: MifuseError | None = None
            if failure.fault is Fault.FATAL:
                raise self._fatal(failure)
            if failure.fault is Fault.THROTTLED:
                continue
            if failure.fault is Fault.REJECTED:
                self.rejected[question.name] = failure.message
                stop = self._breaker.rejected(question.clip, failure)
                choices = ()
            else:
                lost += _is_lost(failure)
                stop = self._breaker.failed(failure, lost=_is_lost(failure))
                if attempt == ATTEMPTS or lost == LOST:
                    self.failed[question.name] = failure.message
                    stop = stop or self._breaker.given_up(failure)
                    choices = ()
            if stop:
                raise self._with_kept(stop)
            if choices:
                delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)))
                await self._rest(max(delay, min(failure.wait or 0, LONGEST_DELAY)))
                attempt += 1
        if self._report:
            self._report(self)

    async def _turn(
        self, question: Question, messages: list[dict[str, Any]], choices: tuple[int, ...], attempt: int
    ) -> int | RequestFailed | None:
        """One request when its turn comes: number of answers, or why there is none; None if the run stops."""
        tokens = len(choices) * _ANSWER_TOKENS + question.text_bytes / 4 + question.seconds * _AUDIO_TOKENS
        cost = self.meter.worst(*_about(question, choices)) if self.meter else 0.0
        if not await self._reserve(cost):
            return None
        if not (turn := await self.pacer.enter(tokens)):
            self._free(cost, 0.0, left=False)
            return None
        intent = await _committed(self.journal.begin(question.key, attempt, asked=question.name, cost=cost))
        self.sent += 1
        try:
            fields = _fields(question, choices)
            reply = await self.client.ask(messages, fields, request_key=f"{question.key}-{intent}")
        except RequestFailed as failure:
            rejected = failure.fault is Fault.REJECTED
            status = None if _is_lost(failure) else failure.http_status
            await _committed(self.journal.fail(intent, status, failure.message, rejected=rejected))
            self._free(cost, cost if status is None else 0.0, left=status != 0)
            if failure.fault is Fault.THROTTLED:
                self._throttle(turn, failure)
            else:
                outcome = Outcome.ANSWERED if rejected else Outcome.FAILED
                self.pacer.leave(turn, outcome, headers=failure.headers)
            return failure
        stored = self.journal.store(
            intent,
            question.key,
            reply.raw,
            http_status=reply.http_status,
            request_id=reply.request_id,
            choice=choices[0],
        )
        usage, spent, got = self._read(question, choices, reply.raw)
        settled = self.journal.settle(
            intent,
            question.key,
            outcome="ok" if got else "unusable",
            choices=choices[: got or 1],
            usage=usage,
            cost=spent,
        )
        self._free(cost, cost if spent is None else spent)
        outcome = Outcome.ANSWERED if got else Outcome.FAILED
        self.pacer.leave(turn, outcome, tokens=_total(usage), headers=reply.headers)
        await _committed(stored)
        await _committed(settled)
        if got:
            return got
        said = self.client.said(json_of(reply.raw) or reply.raw.decode("utf-8", "replace"))
        return RequestFailed(Fault.TRANSIENT, reply.http_status, f"an answer without choices: {said}")

    def _read(
        self, question: Question, choices: tuple[int, ...], raw: bytes
    ) -> tuple[dict[str, int], float | None, int]:
        """Usage and cost of a stored body, and how many of the wanted answers it holds."""
        got = min(len(choices_of(raw)), len(choices))
        usage = content_of(raw, 0)[1]
        spent = self.meter.observe(usage, *_about(question, choices)) if self.meter else None
        if got:
            self._breaker.answered()
            self.answered += got
        for position in range(got):
            status = question.judge(raw, position)
            self.statuses[status] += 1
            if not question.again:
                stop = self._breaker.judged(status is Status.OK, content_of(raw, position)[0])
                if stop:
                    self.stop(self._with_kept(stop))
        return usage, spent, got

    async def _reserve(self, cost: float) -> bool:
        """Set money aside for a request; False if the run stops, because of the budget or otherwise."""
        while not self._stop.is_set():
            known = self.meter is None or self.meter.calibrated or not self.budget.in_flight
            if known and self.budget.reserve(cost):
                return True
            if not self.budget.in_flight:
                # Nothing under way will give any of it back.
                self.stop(BudgetReached.after(self.budget, self.answered))
                break
            self._freed.clear()
            await self._freed.wait()
        return False

    def _free(self, reserved: float, spent: float, *, left: bool = True) -> None:
        self.budget.settle(reserved, spent, left=left)
        self._freed.set()

    def _throttle(self, turn: Turn, failure: RequestFailed) -> None:
        """Let all workers wait as long as the server asks, unless that is for too long."""
        self.limited += 1
        wait = self.pacer.leave(turn, Outcome.THROTTLED, headers=failure.headers, wait=failure.wait)
        if stop := self._breaker.throttled(failure, wait):
            raise self._with_kept(stop)

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

    def _with_kept(self, error: MifuseError) -> MifuseError:
        return RemoteError(f"{error} {self._kept()}")

    def _kept(self) -> str:
        return f"{self.answered} answers of this run are kept in {self.journal.path.name}."

    async def _rest(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


async def _committed(future: Future[Any]) -> Any:
    """Wait for a commit; whoever is cancelled meanwhile does not undo it."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _about(question: Question, choices: tuple[int, ...]) -> tuple[float, int, int]:
    """What a request comes to, for the meter."""
    return question.seconds, question.text_bytes, len(choices) * question.length


def _fields(question: Question, choices: tuple[int, ...]) -> dict[str, Any]:
    fields = dict(question.fields)
    if len(choices) > 1:
        fields["n"] = len(choices)
    if "seed" in fields:
        # Of the rest of a question: with the same seed it would be the same answer again.
        fields["seed"] ^= question.choices[0] ^ choices[0]
    return fields


def _is_lost(failure: RequestFailed) -> bool:
    """Whether the request may have been billed though nothing came back."""
    return failure.http_status is None or failure.http_status in _GATEWAY_TIMEOUTS


def _total(usage: Mapping[str, int]) -> int | None:
    if usage["total"] >= 0:
        return usage["total"]
    return usage["prompt"] + usage["completion"] if min(usage["prompt"], usage["completion"]) >= 0 else None


def _sentence(failure: RequestFailed) -> str:
    return failure.message.rstrip(".") + "."
