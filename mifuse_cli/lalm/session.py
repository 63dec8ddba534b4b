"""A survey taken to a service: the client, its pace and its price, from start to end of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mifuse_cli.errors import RemoteError
from mifuse_cli.lalm.asking import Asking, BudgetReached
from mifuse_cli.lalm.batch import Counts, Money, run_batches
from mifuse_cli.lalm.budget import Budget, Meter
from mifuse_cli.lalm.client import Client
from mifuse_cli.lalm.faults import RequestFailed
from mifuse_cli.lalm.features import find_out
from mifuse_cli.lalm.pacing import Pacer
from mifuse_cli.lalm.parsing import Status
from mifuse_cli.lalm.plan import Question
from mifuse_cli.lalm.pricing import Price, cost_of
from mifuse_cli.lalm.survey import Survey

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
        needed: features that the options rely on, see `mifuse_cli.lalm.probe`.
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
    """
    accounts = survey.journal.accounts()
    budget = Budget(
        usd=service.usd, requests=service.requests, spent=accounts["spent"], sent=int(accounts["sent"])
    )
    longest = survey.plan.form.fields()["max_completion_tokens"]
    meter = Meter(service.price, max_tokens=longest, batch=service.batch) if service.price else None
    started = time.monotonic()

    def tell(asking: Asking) -> None:
        if report:
            done = asking.answered + len(asking.rejected) + len(asking.failed)
            report(done, max(answers, done), _facts(asking, service, answers, time.monotonic() - started))

    async def main() -> Ended:
        client = Client(
            service.base_url, service.model, service.api_key, timeout=service.timeout, stream=service.stream
        )
        async with client:
            try:
                await find_out(survey, client, service.needed, service.probed, budget, meter)
            except RequestFailed as failure:
                message = f"{client.host}: {failure.message.rstrip('.')}. Nothing was asked yet."
                return Ended(0, {}, RemoteError(message), False)
            if service.batch:
                return await _in_batches(survey, client, service, budget, meter, answers, report)
            asking = Asking(
                client,
                survey.journal,
                Pacer(
                    concurrency=service.concurrency,
                    rpm=service.rpm,
                    tpm=service.tpm,
                    now=asyncio.get_running_loop().time,
                ),
                concurrency=service.concurrency,
                budget=budget,
                meter=meter,
                max_unreadable=service.max_unreadable,
                report=tell,
            )
            await survey.ask(asking, rounds=rounds, save=save, save_seconds=save_seconds)
            return Ended(asking.answered, asking.failed, asking.error, asking.interrupted)

    return asyncio.run(main())


async def _in_batches(
    survey: Survey,
    client: Client,
    service: Service,
    budget: Budget,
    meter: Meter | None,
    answers: int,
    report: Report | None,
) -> Ended:
    def cost(question: Question) -> float:
        return meter.worst(question.seconds, question.text_bytes, len(question.choices)) if meter else 0.0

    def price(usage: Mapping[str, int]) -> float | None:
        # Without the number of audio tokens the price would be a guess; the reservation stands then.
        if service.price is None or usage["audio"] <= 0:
            return None
        return cost_of(usage, service.price, seconds=0.0, batch=True)

    def tell(counts: Counts) -> None:
        if report:
            facts = {"batches": counts.waiting, "spent_usd": budget.spent} if service.price else {}
            report(min(counts.answered, answers), answers, facts)

    counts = await run_batches(
        survey.questions(),
        client=client,
        journal=survey.journal,
        money=Money(cost, budget.reserve, budget.settle, price),
        poll_seconds=service.poll_seconds,
        report=tell,
    )
    error = BudgetReached.after(budget, counts.answered) if counts.refused else None
    return Ended(counts.answered, counts.failed, error, False)


def _facts(asking: Asking, service: Service, answers: int, seconds: float) -> dict[str, Any]:
    """What a progress display shows of a run; shares are of answers, 429s of requests."""
    read = max(sum(asking.statuses.values()), 1)
    rate = asking.answered / seconds if seconds else 0.0
    left = max(answers - asking.answered, 0)
    facts: dict[str, Any] = {
        "per_minute": 60 * rate,
        "eta_s": left / rate if rate else None,
        "limited": asking.limited / max(asking.sent, 1),
        "ok": asking.statuses[Status.OK] / read,
        "refused": asking.statuses[Status.REFUSED] / read,
    }
    if service.price:
        spent = asking.budget.spent
        facts["spent_usd"] = spent
        facts["projected_usd"] = spent + left * asking.spent / max(asking.answered, 1)
        facts["cap_usd"] = service.usd
    return facts
