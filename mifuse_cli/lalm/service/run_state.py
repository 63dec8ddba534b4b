"""What all ways of sending share: how far a run is, what it is made of, and the error of a used-up budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mifuse_cli.errors import RemoteError
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.service.service_options import ServiceOptions

Service = TypeVar("Service")


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


@dataclass
class RunState:
    """How far a run is, and in the end how it ended.

    Attributes:
        sent: requests of this run.
        answered: answers that came in; with batches, those to requests of earlier runs too.
        limited: responses that told to wait (429).
        waiting: batches under way.
        statuses: answers by what they are; not counted with batches.
        rejected, failed: last message by name of the question.
        spent: USD that this run has cost; not counted with batches.
        over_budget: whether the budget did not allow for all.
        error: why the run stopped, None if it did not.
        interrupted: whether a signal stopped it.
    """

    sent: int = 0
    answered: int = 0
    limited: int = 0
    waiting: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    rejected: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    spent: float = 0.0
    over_budget: bool = False
    error: Exception | None = None
    interrupted: bool = False

    @property
    def done(self) -> int:
        """Questions that nothing more is expected of."""
        return self.answered + len(self.rejected) + len(self.failed)


@dataclass(eq=False)
class Sender(Generic[Service]):
    """Sends requests, keeps what comes back, and counts; the parent of all ways of sending.

    Attributes:
        client: where to ask.
        journal: where intents and answers go.
        service: how fast to ask, and when to stop.
        budget: whether a request may go out.
        meter: what it may cost.
        report: called as the state changes.
        state: how far it is, right whenever the run ends.
    """

    client: Service
    journal: Journal
    service: ServiceOptions
    budget: Budget
    meter: Meter
    report: Callable[[RunState], None] = lambda _: None
    state: RunState = field(default_factory=RunState)
