"""Runs of questions through the batches of llmock."""

import asyncio
import sqlite3
from contextlib import closing

from conftest import HANG_SECONDS

from mifuse_cli.lalm.batch import Counts, Money, run_batches
from mifuse_cli.lalm.budget import Budget
from mifuse_cli.lalm.client import Client
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lalm.parsing import Status
from mifuse_cli.lalm.plan import Question

KEY = "sk-test-0123456789abcdef"
WORST, ACTUAL = 0.01, 0.004
FIELDS = {"temperature": 1, "max_completion_tokens": 9}


def question(number, choices=(0,), text="Which emotion?", messages=None):
    def build():
        return [{"role": "user", "content": f"{text} {number}"}]

    name = f"clip {number}"
    return Question(f"{number:032x}", name, choices, 1.0, 20, messages or build, FIELDS, lambda *_: Status.OK)


def questions(n, **options):
    return [question(number, **options) for number in range(n)]


class Runs:
    """Runs against llmock, all with the journal at one path."""

    def __init__(self, llmock, path):
        self.llmock, self.path = llmock, path
        self.budget = Budget(usd=None, requests=None)
        self.slept, self.highest = [], 0.0
        self.client, self.journal = Client, Journal

    def __call__(
        self, asked, *, key=KEY, budget=None, price=ACTUAL, poll_seconds=60, report=lambda _: None, **limits
    ):
        self.budget = budget = budget or Budget(usd=None, requests=None)
        self.counts = counts = Counts()

        def reserve(cost):
            granted = budget.reserve(cost)
            self.highest = max(self.highest, budget.spent + budget.reserved)
            return granted

        async def sleep(seconds):
            self.slept.append(seconds)
            assert len(self.slept) < 100, "waits for ever"

        def settle(reserved, spent, left):
            budget.settle(reserved, spent, left=left)

        async def main(journal):
            async with self.client(self.llmock.base_url(), "m", key, timeout=HANG_SECONDS) as client:
                await run_batches(
                    asked,
                    client=client,
                    journal=journal,
                    money=Money(lambda q: WORST * len(q.choices), reserve, settle, lambda usage: price),
                    counts=counts,
                    poll_seconds=poll_seconds,
                    report=report,
                    sleep=sleep,
                    **limits,
                )
                return counts

        with self.journal(self.path) as journal:
            return asyncio.run(main(journal))

    def query(self, sql):
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(sql).fetchall()

    def intents(self):
        return self.query("SELECT key, http_status, round(est_cost, 6) FROM intent ORDER BY id")

    def answered(self):
        rows = self.query("SELECT key, choice FROM answer WHERE outcome = 'ok' ORDER BY key, choice")
        return [(int(key, 16), choice) for key, choice in rows]

    def posts(self, path):
        return sum(r.method == "POST" and r.path == path for r in self.llmock.requests)
