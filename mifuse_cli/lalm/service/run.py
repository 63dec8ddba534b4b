"""A run from start to end: find out what the service can do, ask what is missing, save in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from mifuse_cli.errors import InputError, MifuseError, RemoteError
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.journal.open_questions import OpenQuestions
from mifuse_cli.lalm.service.advice import advice
from mifuse_cli.lalm.service.batch import BatchRun
from mifuse_cli.lalm.service.batch_files import BatchFiles
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import RequestFailed
from mifuse_cli.lalm.service.live import LiveRun
from mifuse_cli.lalm.service.probe import find_out
from mifuse_cli.lalm.service.run_state import BudgetReached, RunState
from mifuse_cli.lalm.service.service_options import ServiceOptions

_log = logging.getLogger("mifuse")

Report = Callable[[int, int, Mapping[str, Any]], None]
"""Called with the answers so far, the answers in all, and facts about the run by name."""


def run(
    questions: OpenQuestions,
    service: ServiceOptions,
    *,
    answers: int,
    save: Callable[[], Any],
    report: Report,
) -> RunState:
    """Find out what the service can do, then ask for all that is missing; return how that ended.

    Args:
        questions: what to ask.
        service: whom.
        answers: number of answers that are missing.
        save: called in another thread every ``service.save_minutes``, and not at the end.
        report: called after each answer.

    Raises:
        UsageError: the key or the address cannot be used, or the service cannot do what the options need.
        InputError: questions of a live run may be with the provider already.
    """
    accounts = questions.journal.accounts()
    budget = Budget(
        usd=service.budget,
        requests=service.max_requests,
        spent=accounts["spent"],
        sent=int(accounts["sent"]),
    )
    meter = Meter(service.price, max_tokens=questions.options.answer_tokens)
    asker = _Run(questions, service, budget, meter, answers, save, report)

    async def main() -> RunState:
        if service.transport == "vllm-batch":
            return await asker.in_batches(BatchFiles(service.batch_directory, service.model))
        async with Client(service) as client:
            return await (asker.in_batches(client) if service.transport == "batch" else asker.live(client))

    return asyncio.run(main())


@dataclass(frozen=True)
class _Run:
    """A run by any way of sending; see `run` for what it is about."""

    questions: OpenQuestions
    service: ServiceOptions
    budget: Budget
    meter: Meter
    answers: int
    save: Callable[[], Any]
    report: Report

    async def live(self, client: Client) -> RunState:
        """Send one request at a time for each of some workers."""
        started = time.monotonic()

        def tell(state: RunState) -> None:
            left = max(self.answers - state.answered, 0)
            facts = _pace(state, left, time.monotonic() - started) | self._money()
            if self.service.price:
                projected = left * state.spent / max(state.answered, 1)
                facts["projected_usd"] = self.budget.spent + projected
            self._tell(state, facts)

        self._refuse_open_batches()
        try:
            await self._find_out(client)
        except (RemoteError, InputError) as error:
            return RunState(error=error)
        asking = LiveRun(client, self.questions.journal, self.service, self.budget, self.meter, tell)
        state = asking.state
        async with saved_now_and_then(self.save, self.service.save_minutes):
            with on_signal(asking.interrupt):
                await asking.ask(self.questions.requests())
                for _ in range(self.questions.options.rounds):
                    if state.error or state.interrupted:
                        break
                    await asking.ask(self.questions.requests_again())
        return state

    async def in_batches(self, provider: Client | BatchFiles) -> RunState:
        """Send files of requests; what is not answered when the run ends stays with the provider."""
        committed = saved = 0

        async def ask() -> None:
            # What earlier runs left is paid for: it comes in whatever becomes of the rest.
            await batches.ask()
            if isinstance(provider, Client):
                await self._find_out(provider)
            elif state.failed:
                _log.warning(
                    "%d questions are asked again, since they got no answer, the last one because of: %s",
                    len(state.failed),
                    list(state.failed.values())[-1],
                )
            before = -1
            # What a service that ignores "n" left over, or could not do, is asked again while that helps.
            while state.answered > before and not state.over_budget and not state.waiting:
                before = state.answered
                await batches.ask(one for one in self.questions.requests() if one.name not in state.rejected)
            for _ in range(self.questions.options.rounds):
                if not state.over_budget and not state.waiting:
                    await batches.ask(self.questions.requests_again())
            if state.over_budget:
                raise BudgetReached.after(self.budget, state.answered)

        def tell(state: RunState) -> None:
            nonlocal committed
            committed = state.answered
            self._tell(state, {"batches": state.waiting} | self._money())

        def save() -> None:
            nonlocal saved
            # Most looks at batches bring nothing.
            if (answered := committed) > saved:
                self.save()
                saved = answered

        def interrupt() -> None:
            asking.cancel()
            _log.info("interrupted: batches under way stay with the provider; run again to collect them")

        batches = BatchRun(provider, self.questions.journal, self.service, self.budget, self.meter, tell)
        state = batches.state
        asking = asyncio.create_task(ask())
        async with saved_now_and_then(save, self.service.save_minutes):
            with on_signal(interrupt):
                await asyncio.wait({asking})
        state.interrupted = asking.cancelled()
        if not asking.cancelled() and (error := asking.exception()):
            if not isinstance(error, Exception):
                raise error
            state.error = error
        return state

    def _refuse_open_batches(self) -> None:
        journal = self.questions.journal
        for transport, host in (("batch", self.service.host), ("vllm-batch", BatchFiles.host)):
            batches = [journal.in_batch(tag) for tag, _ in journal.open_batches(host)]
            if waiting := sum(map(len, batches)):
                raise InputError(
                    f"{waiting} questions wait for answers in {len(batches)} batches, and would be asked twice; "
                    f"run with --transport {transport} to collect them first."
                )

    async def _find_out(self, client: Client) -> None:
        try:
            await find_out(self.questions, client, self.service, self.budget, self.meter)
        except RequestFailed as failure:
            what = (
                "" if failure.ours or failure.passing else f" {advice(failure.http_status, failure.message)}"
            )
            text = f"{client.host}: {failure.sentence}{what} Nothing was asked yet."
            raise failure.error(text) from None

    def _tell(self, state: RunState, facts: Mapping[str, Any]) -> None:
        self.report(state.done, max(self.answers, state.done), facts)

    def _money(self) -> dict[str, Any]:
        """What a progress display shows of money, if there is a price."""
        if self.service.price is None:
            return {}
        return {"spent_usd": self.budget.spent, "cap_usd": self.service.budget}


def _pace(state: RunState, left: int, seconds: float) -> dict[str, Any]:
    """What a progress display shows of a live run; shares are of answers, 429s of requests."""
    read = max(sum(state.statuses.values()), 1)
    rate = state.answered / seconds if seconds else 0.0
    return {
        "per_minute": 60 * rate,
        "eta_s": left / rate if rate else None,
        "limited": state.limited / max(state.sent, 1),
        "ok": state.statuses[Status.OK] / read,
        "refused": state.statuses[Status.REFUSED] / read,
    }


@asynccontextmanager
async def saved_now_and_then(save: Callable[[], Any], minutes: float) -> AsyncIterator[None]:
    """Call ``save`` in another thread every so many minutes, not at the end; a failure is only told."""
    over = asyncio.Event()

    async def work() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 60 * minutes)
            if over.is_set():
                return
            try:
                await asyncio.to_thread(save)
            except (MifuseError, OSError) as error:
                _log.warning("could not save in between: %s", error)

    saving = asyncio.create_task(work())
    try:
        yield
    finally:
        # A thread cannot be stopped: the last saving must not run beside the one at the end.
        over.set()
        await saving


@contextmanager
def on_signal(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call ``interrupt`` at the first SIGINT or SIGTERM; a second one does what it did before.

    Only the main thread may handle signals; elsewhere whoever owns it decides, and nothing is changed.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    handled = False

    def release() -> None:
        nonlocal handled
        if handled:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])
        handled = False

    def first() -> None:
        release()
        interrupt()

    # Only the main thread may handle signals, and not on every platform.
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number in numbers:
            loop.add_signal_handler(number, first)
        handled = True
    try:
        yield
    finally:
        release()
