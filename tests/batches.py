"""Runs of questions through the batches of llmock."""

import asyncio
import sqlite3
from contextlib import closing

from scripted import read

from mifuse_cli.lalm.cost.budget import Budget
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.plan import Request
from mifuse_cli.lalm.service.batch import BatchRun
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.service_options import ServiceOptions

KEY = "sk-test-0123456789abcdef"
WORST, ACTUAL = 0.01, 0.004
FIELDS = {"temperature": 1, "max_completion_tokens": 9}


def question(number, choices=(0,), text="Which emotion?", messages=None):
    def build():
        return [{"role": "user", "content": f"{text} {number}"}]

    name = f"clip {number}"
    return Request(f"{number:032x}", name, choices, 1.0, 20, messages or build, FIELDS, read)


def questions(n, **options):
    return [question(number, **options) for number in range(n)]


class FlatMeter:
    """Every answer may cost the same, and costs ``price``."""

    def __init__(self, price):
        self.price = price

    def worst(self, seconds, text_bytes, choices, *, batch):
        assert batch
        return WORST * choices

    def cost_in_batch(self, usage, choices=1):
        return self.price


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

        def reserve(cost):
            granted = Budget.reserve(budget, cost)
            self.highest = max(self.highest, budget.spent + budget.reserved)
            return granted

        budget.reserve = reserve

        async def sleep(seconds):
            self.slept.append(seconds)
            assert len(self.slept) < 100, "waits for ever"

        service = ServiceOptions(self.llmock.base_url(), "m", key, timeout=5, poll_seconds=poll_seconds)

        async def main(journal):
            async with self.client(service) as client:
                run = BatchRun(
                    client, journal, service, budget, FlatMeter(price), report, sleep=sleep, **limits
                )
                self.counts = run.state
                await run.ask(asked)
                return run.state

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
