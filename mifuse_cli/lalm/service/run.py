"""A survey taken to a service: the client, its pace and its price, from start to end of a run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mifuse_cli.errors import InputError, RemoteError
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.cost.prices import Price, cost_of
from mifuse_cli.lalm.questions.plan import Question
from mifuse_cli.lalm.service.batch import Counts, Money, run_batches
from mifuse_cli.lalm.service.breaker import on_signal
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import RequestFailed
from mifuse_cli.lalm.service.find_out import find_out
from mifuse_cli.lalm.service.live import Asking, BudgetReached
from mifuse_cli.lalm.service.pacing import Pacer
from mifuse_cli.lalm.service.survey import Survey, saved_now_and_then

_log = logging.getLogger("mifuse")

Report = Callable[[int, int, Mapping[str, Any]], None]
"""Answers so far, answers in all, and facts about the run by name."""


@dataclass(frozen=True)
class Service:
    """Where to ask, how fast, and for how much.

    Attributes:
        base_url, model, api_key, timeout, stream: see `Client`.
        concurrency: most requests under way; rpm, tpm: limits per minute, None where not known.
        price: of the model, None if not known.
        usd, requests: caps over all runs, None for none.
        max_unreadable: share of the last answers that may be unreadable.
        needed: features that the options rely on, see `mifuse_cli.lalm.service.probe`.
        probed: features to find out about before anything is asked.
        batch: through the provider's batches; looked at every ``poll_seconds``.
    """

    base_url: str
    model: str
    api_key: str
    timeout: float
    stream: bool
    concurrency: int
    rpm: float | None
    tpm: float | None
    price: Price | None
    usd: float | None
    requests: int | None
    max_unreadable: float
    needed: frozenset[str]
    probed: frozenset[str]
    batch: bool
    poll_seconds: float


@dataclass(frozen=True)
class Ended:
    """How a run ended: answers that came, the error that stopped it, whether the user did."""

    answered: int
    failed: dict[str, str]
    error: Exception | None
    interrupted: bool


def run(
    survey: Survey,
    service: Service,
    *,
    rounds: int,
    answers: int,
    save: Callable[[], Any],
    save_seconds: float,
    report: Report | None,
) -> Ended:
    """Find out what the service can do, then ask for all that is missing.

    Args:
        survey: what to ask.
        service: whom.
        rounds: how often to ask again for what could not be read.
        answers: that are missing.
        save: called every ``save_seconds`` in another thread.
        save_seconds: see ``save``.
        report: called after each answer.

    Raises:
        UsageError: the key or the address cannot be used, or the service cannot do what the options need.
        InputError: questions of a live run may be with the provider already.
    """
    accounts = survey.journal.accounts()
    budget = Budget(
        usd=service.usd, requests=service.requests, spent=accounts["spent"], sent=int(accounts["sent"])
    )
    longest = survey.plan.form.fields()["max_completion_tokens"]
    meter = Meter(service.price, max_tokens=longest) if service.price else None

    async def main() -> Ended:
        client = Client(
            service.base_url, service.model, service.api_key, timeout=service.timeout, stream=service.stream
        )
        async with client:
            course = _Course(
                survey, service, client, budget, meter, rounds, answers, save, save_seconds, report
            )
            return await (course.in_batches() if service.batch else course.live())

    return asyncio.run(main())


@dataclass(frozen=True)
class _Course:
    """A run by either way; see `run` for what it is about. The meter is that of live requests."""

    survey: Survey
    service: Service
    client: Client
    budget: Budget
    meter: Meter | None
    rounds: int
    answers: int
    save: Callable[[], Any]
    save_seconds: float
    report: Report | None

    async def live(self) -> Ended:
        """One request at a time for each of some workers."""
        service, started = self.service, time.monotonic()

        def tell(asking: Asking) -> None:
            facts = _pace(asking, self.answers, time.monotonic() - started) | self._money(asking)
            self._tell(asking.answered + len(asking.rejected) + len(asking.failed), facts)

        self._refuse_open_batches()
        try:
            await self._find_out()
        except RemoteError as error:
            return Ended(0, {}, error, False)
        asking = Asking(
            self.client,
            self.survey.journal,
            Pacer(
                concurrency=service.concurrency,
                rpm=service.rpm,
                tpm=service.tpm,
                now=asyncio.get_running_loop().time,
            ),
            concurrency=service.concurrency,
            budget=self.budget,
            meter=self.meter,
            max_unreadable=service.max_unreadable,
            report=tell,
        )
        await self.survey.ask(asking, rounds=self.rounds, save=self.save, save_seconds=self.save_seconds)
        return Ended(asking.answered, asking.failed, asking.error, asking.interrupted)

    async def in_batches(self) -> Ended:
        """Files of requests; what is not answered when the run ends stays with the provider."""
        counts = Counts()
        committed = saved = 0

        async def send(questions: Iterable[Question]) -> None:
            await run_batches(
                questions,
                client=self.client,
                journal=self.survey.journal,
                money=self._batch_money(),
                counts=counts,
                poll_seconds=self.service.poll_seconds,
                report=tell,
            )

        async def ask() -> Exception | None:
            try:
                # What earlier runs left is paid for: it comes in whatever becomes of the rest.
                await send(())
                await self._find_out()
                before = -1
                # What a server that ignores "n" left over, or could not do, is asked again while that helps.
                while counts.answered > before and not counts.refused:
                    before = counts.answered
                    await send(one for one in self.survey.questions() if one.name not in counts.rejected)
                for _ in range(self.rounds):
                    if not counts.refused:
                        await send(self.survey.again())
            except Exception as error:
                return error
            return BudgetReached.after(self.budget, counts.answered) if counts.refused else None

        def tell(counts: Counts) -> None:
            nonlocal committed
            committed = counts.answered
            done = counts.answered + len(counts.rejected) + len(counts.failed)
            self._tell(done, {"batches": counts.waiting} | self._money())

        def save() -> None:
            nonlocal saved
            # Most looks at batches bring nothing.
            if (answered := committed) > saved:
                self.save()
                saved = answered

        def interrupt() -> None:
            asking.cancel()
            _log.info("interrupted: batches under way stay with the provider; run again to collect them")

        asking = asyncio.create_task(ask())
        async with saved_now_and_then(save, self.save_seconds):
            with on_signal(interrupt):
                await asyncio.wait({asking})
        error = None if asking.cancelled() else asking.result()
        return Ended(counts.answered, counts.failed, error, asking.cancelled())

    def _refuse_open_batches(self) -> None:
        journal, host = self.survey.journal, self.client.host
        batches = [journal.in_batch(tag) for tag, _ in journal.open_batches(host)]
        if waiting := sum(map(len, batches)):
            raise InputError(
                f"{waiting} questions are with the provider in {len(batches)} batches, and would be paid twice; "
                "run with --transport batch to collect them first."
            )

    async def _find_out(self) -> None:
        needed, probed = self.service.needed, self.service.probed
        try:
            await find_out(self.survey, self.client, needed, probed, self.budget, self.meter)
        except RequestFailed as failure:
            message = f"{self.client.host}: {failure.message.rstrip('.')}. Nothing was asked yet."
            raise RemoteError(message) from None

    def _batch_money(self) -> Money:
        price, meter, budget = self.service.price, self.meter, self.budget

        def cost(question: Question) -> float:
            if price is None or meter is None:
                return 0.0
            length = len(question.choices) * question.length
            return price.batch_factor * meter.worst(question.seconds, question.text_bytes, length)

        def settle(reserved: float, spent: float, left: bool) -> None:
            budget.settle(reserved, spent, left=left)

        def spent(usage: Mapping[str, int]) -> float | None:
            # Without the number of audio tokens the price would be a guess; the reservation stands then.
            if price is None or usage["audio"] <= 0:
                return None
            return cost_of(usage, price, seconds=0.0, batch=True)

        return Money(cost, budget.reserve, settle, spent)

    def _tell(self, done: int, facts: Mapping[str, Any]) -> None:
        if self.report:
            self.report(done, max(self.answers, done), facts)

    def _money(self, asking: Asking | None = None) -> dict[str, Any]:
        """What a progress display shows of money, if there is a price; where it leads only if that is known."""
        if self.service.price is None:
            return {}
        facts: dict[str, Any] = {"spent_usd": self.budget.spent, "cap_usd": self.service.usd}
        if asking:
            left = max(self.answers - asking.answered, 0)
            facts["projected_usd"] = self.budget.spent + left * asking.spent / max(asking.answered, 1)
        return facts


def _pace(asking: Asking, answers: int, seconds: float) -> dict[str, Any]:
    """What a progress display shows of a live run; shares are of answers, 429s of requests."""
    read = max(sum(asking.statuses.values()), 1)
    rate = asking.answered / seconds if seconds else 0.0
    return {
        "per_minute": 60 * rate,
        "eta_s": max(answers - asking.answered, 0) / rate if rate else None,
        "limited": asking.limited / max(asking.sent, 1),
        "ok": asking.statuses[Status.OK] / read,
        "refused": asking.statuses[Status.REFUSED] / read,
    }
