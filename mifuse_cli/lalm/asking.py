"""Asking many questions at once, with every request and every answer in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from mifuse_cli.errors import MifuseError, RemoteError
from mifuse_cli.lalm.budget import Budget, Meter
from mifuse_cli.lalm.client import Client
from mifuse_cli.lalm.faults import Fault, RequestFailed
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lalm.pacing import Outcome, Pacer, Turn
from mifuse_cli.lalm.parsing import Status
from mifuse_cli.lalm.plan import Question
from mifuse_cli.lalm.replies import choices_of, content_of, json_of

ATTEMPTS = 8  # requests for one question, rate limits not counted
LOST = 3  # of them, those that may have been billed though nothing came back
FIRST_DELAY = 0.5  # seconds; doubles with every attempt
LONGEST_DELAY = 30.0
PATIENCE = 900.0  # seconds without any answer after which a rate limit ends the run
HOPELESS = 5  # questions without an answer, and none with one, after which the run ends
REJECTED_IN_A_ROW = 20
JUDGED = 50  # last answers that the breaker looks at
_ANSWER_TOKENS = 60  # a guess for the limit of tokens, corrected when the usage comes
_AUDIO_TOKENS = 25  # a second, likewise
DRAIN_SECONDS = 20.0  # that requests under way have left when the user interrupts


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
        self._max_unreadable = max_unreadable
        self._resumed = journal.has_answers()
        self._spent_before = budget.spent
        self._stop = asyncio.Event()
        self._freed = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self._last_answer = self._now()
        self._judged: deque[bool] = deque(maxlen=JUDGED)
        self._rejected_in_a_row = 0

    async def ask(self, questions: Iterable[Question]) -> None:
        """Ask all questions, unless the run has to stop; then `error` or `interrupted` tells why.

        At most as many questions as the pacer's concurrency are taken from the iterator at a time. What was
        under way when the run stopped is waited for: it is paid for.
        """
        source = iter(questions)
        workers = [asyncio.create_task(self._work(source)) for _ in range(self._concurrency)]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            through: asyncio.Future[Any] = asyncio.gather(*workers, return_exceptions=True)
            first: list[asyncio.Future[Any]] = [through, stopped]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(workers, timeout=DRAIN_SECONDS if self.interrupted else None)
        finally:
            for task in (stopped, *workers):
                task.cancel()
            await asyncio.gather(stopped, *workers, return_exceptions=True)

    def stop(self, error: Exception | None = None) -> None:
        """Let no further request out; the first error is the one that counts."""
        self.error = self.error or error
        self._stop.set()
        self.pacer.stop()
        self._freed.set()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run; a second one of them does what it always does."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            self.interrupted = True
            release()
            self.stop()
            _log.info(
                "interrupted: waiting %.0f s at most for what is under way; interrupt again to leave it",
                DRAIN_SECONDS,
            )

        def release() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        # Only the main thread may handle signals; elsewhere whoever owns it decides.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                release()

    @property
    def spent(self) -> float:
        """USD that this run has cost."""
        return self.budget.spent - self._spent_before

    async def _work(self, source: Iterator[Question]) -> None:
        try:
            while not self._stop.is_set() and (question := next(source, None)):
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
            if failure.fault is Fault.FATAL:
                raise self._fatal(failure)
            if failure.fault is Fault.THROTTLED:
                continue
            if failure.fault is Fault.REJECTED:
                self.rejected[question.name] = failure.message
                self._rejected_in_a_row += 1
                break
            lost += failure.http_status is None
            if attempt == ATTEMPTS or lost == LOST:
                self.failed[question.name] = failure.message
                break
            delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)))
            await self._rest(max(delay, min(failure.wait or 0, LONGEST_DELAY)))
            attempt += 1
        if self._report:
            self._report(self)
        if choices:
            self._check_hope(failure)

    async def _turn(
        self, question: Question, messages: list[dict[str, Any]], choices: tuple[int, ...], attempt: int
    ) -> int | RequestFailed | None:
        """One request when its turn comes: number of answers, or why there is none; None if the run stops."""
        tokens = len(choices) * _ANSWER_TOKENS + question.text_bytes / 4 + question.seconds * _AUDIO_TOKENS
        if not (turn := await self.pacer.enter(tokens)):
            return None
        cost = self.meter.worst(*_about(question, choices)) if self.meter else 0.0
        if not await self._reserve(cost):
            return None
        intent = await _committed(self.journal.begin(question.key, attempt, asked=question.name, cost=cost))
        self.sent += 1
        try:
            fields = _fields(question, choices)
            reply = await self.client.ask(messages, fields, request_key=f"{question.key}-{intent}")
        except RequestFailed as failure:
            await _committed(self.journal.fail(intent, failure.http_status, failure.message))
            self._free(cost, cost if failure.http_status is None else 0.0)
            if failure.fault is Fault.THROTTLED:
                self._throttle(turn, failure)
            else:
                rejected = failure.fault is Fault.REJECTED
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
            self._last_answer, self._rejected_in_a_row = self._now(), 0
            self.answered += got
        for position in range(got):
            status = question.judge(raw, position)
            self.statuses[status] += 1
            self._judged.append(status is Status.OK)
        unreadable = self._judged.count(False) / JUDGED
        if len(self._judged) == JUDGED and unreadable > self._max_unreadable:
            self.stop(
                RemoteError(
                    f"{self.client.host}: {unreadable:.0%} of the last {JUDGED} answers hold no distribution, the "
                    f"last one: {content_of(raw, 0)[0][:200]!r}. {self._kept()} Check the prompt and the model, "
                    "or raise --max-unreadable."
                )
            )
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

    def _free(self, reserved: float, spent: float) -> None:
        self.budget.settle(reserved, spent)
        self._freed.set()

    def _throttle(self, turn: Turn, failure: RequestFailed) -> None:
        """Let all workers wait as long as the server asks, unless that is for too long."""
        self.limited += 1
        wait = self.pacer.leave(turn, Outcome.THROTTLED, headers=failure.headers, wait=failure.wait)
        silence = self._now() + wait - self._last_answer
        if silence > PATIENCE:
            raise RemoteError(
                f"{self.client.host} limits the rate: {_sentence(failure)} The next request would go out in "
                f"{wait:.0f} s, {silence:.0f} s after the last answer or the start. "
                f"{self._kept()} Run the command again later."
            )

    def _check_hope(self, failure: RequestFailed) -> None:
        """Stop a run in which nothing was answered yet, or nothing any more.

        Rejected clips do not count where an earlier run got answers: they may be all that it left over.
        """
        hopeless = len(self.failed) + (0 if self._resumed else len(self.rejected))
        if self.answered:
            hopeless = 0
        if hopeless >= HOPELESS:
            raise RemoteError(
                f"{self.client.host}: the first {hopeless} questions got no answer, the last one because of: "
                f"{_sentence(failure)} Check the address, the model and the audio, then run again."
            )
        if self._rejected_in_a_row >= REJECTED_IN_A_ROW:
            raise RemoteError(
                f"{self.client.host} rejected {REJECTED_IN_A_ROW} questions in a row, the last one with: "
                f"{_sentence(failure)} {self._kept()} Check the audio and the model."
            )

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


def _total(usage: Mapping[str, int]) -> int | None:
    if usage["total"] >= 0:
        return usage["total"]
    return usage["prompt"] + usage["completion"] if min(usage["prompt"], usage["completion"]) >= 0 else None


def _sentence(failure: RequestFailed) -> str:
    return failure.message.rstrip(".") + "."
