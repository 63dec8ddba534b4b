"""What ends a run of questions before its time: money, errors, rejections, signals; and what is kept then."""

import asyncio
import json
import os
import random
import signal
import threading
import time

import pytest
from conftest import HANG_SECONDS
from scripted import (
    GOOD,
    MAX_TOKENS,
    PRICE,
    SECONDS,
    TEXT_BYTES,
    ask,
    completion,
    error,
    question,
    serving,
)

from mifuse_cli.errors import InputError, RemoteError
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.cost.prices import cost_of
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.service import breaker, live
from mifuse_cli.lalm.service.run_state import BudgetReached

BAD = (400, error("bad audio."))
MUTE = (200, completion("I cannot tell."))


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        yield journal


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(live, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(live, "LONGEST_DELAY", 0.05)


def stored(journal):
    return journal.read("SELECT count(*) FROM answer")[0][0]


def bill(body):
    """What a response costs by its usage."""
    return cost_of(decode(json.dumps(body).encode()).usage, PRICE, seconds=SECONDS)


def crowd(number, line):
    """Lines for requests of which none is answered before they all are there."""

    def wait(request):
        together.wait(HANG_SECONDS)
        return line

    together = threading.Barrier(number)
    return [wait] * number


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


class TestBudget:
    def test_requests_never_pass_it_with_64_under_way(self, play, journal):
        others = (500, error("oops")), (429, error("slow"), {"retry-after-ms": "1"}), "drop"
        server = play(*[(200, GOOD)] * 80, *crowd(64, (200, GOOD)), *others, (200, GOOD))
        asked = ask(server.url, journal, 500, concurrency=64, requests=200)
        with pytest.raises(BudgetReached, match=r"after 200 requests .*--max-requests.*Raise the limit"):
            raise asked.error
        assert len(server.requests) == asked.sent == journal.accounts()["sent"] == 200
        assert asked.answered == stored(journal) == 197
        assert max(one.running for one in server.requests) == 64

    def test_money_never_passes_it_with_64_under_way(self, play, journal):
        rng, billed = random.Random(0), []

        def some(request):
            tokens = {"prompt_tokens": rng.randint(180, 200), "completion_tokens": rng.randint(1, MAX_TOKENS)}
            body = completion('{"angry": 100}', usage=tokens)
            fate = rng.random()
            if fate < 0.1:
                return 500, error("oops")
            billed.append(bill(body))
            return "drop" if fate < 0.15 else (200, body)

        worst = Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES)
        cap = 200 * worst
        budget = Budget(usd=cap, requests=None)
        server = play(*[some] * 90, *crowd(64, some), some)
        asked = ask(server.url, journal, 2000, concurrency=64, price=PRICE, budget=budget)
        assert isinstance(asked.error, BudgetReached)
        # Of those that were dropped nobody knows whether they were billed.
        assert sum(billed) <= asked.spent <= cap
        assert asked.spent > cap - 2 * worst
        assert journal.accounts()["spent"] == pytest.approx(asked.spent)
        assert budget.in_flight == budget.reserved == 0
        assert max(one.running for one in server.requests) == 64

    def test_before_the_first_price_one_request_goes_out_alone(self, play, journal):
        second = threading.Event()

        def first(request):
            alone.append(not second.wait(0.2))
            return 200, GOOD

        def later(request):
            second.set()
            return 200, GOOD

        alone = []
        asked = ask(play(first, later, *crowd(4, later)).url, journal, 6, concurrency=4, price=PRICE, usd=1.0)
        assert alone == [True] and asked.answered == 6

    def test_a_longer_answer_is_reserved_for(self, play, journal):
        worst = Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES)
        server = play((200, GOOD))
        asked = ask(server.url, journal, [question("q", length=2)], price=PRICE, usd=worst)
        assert isinstance(asked.error, BudgetReached) and server.requests == []
        twice = Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES, 2)
        assert ask(server.url, journal, [question("q", length=2)], price=PRICE, usd=twice).answered == 1

    def test_what_is_known_only_afterwards_is_counted_too(self, play, journal):
        dear = completion('{"angry": 100}', usage={"prompt_tokens": 9000, "completion_tokens": 900})
        asked = ask(play((200, dear)).url, journal, 5, price=PRICE, usd=0.02)
        assert isinstance(asked.error, BudgetReached) and asked.answered == 1
        assert asked.spent == pytest.approx(bill(dear)) == journal.accounts()["spent"]


class TestUnreadable:
    def test_more_than_half_of_fifty_stop_the_run(self, play, journal):
        server = play(*[(200, GOOD)] * 24, MUTE)
        asked = ask(server.url, journal, 200, concurrency=1)
        with pytest.raises(
            RemoteError, match=r"52% of the last 50 .*'I cannot tell\.'.*50 answers .*are kept"
        ):
            raise asked.error
        assert len(server.requests) == stored(journal) == 50
        assert sorted(asked.statuses.values()) == [24, 26]

    def test_half_of_them_do_not(self, play, journal):
        assert ask(play(*[(200, GOOD), MUTE] * 30).url, journal, 60, concurrency=1).error is None

    def test_the_share_can_be_chosen(self, play, journal):
        assert ask(play(MUTE).url, journal, 55, max_unreadable=1.0).error is None
        asked = ask(play(MUTE, (200, GOOD)).url, journal, 55, concurrency=1, max_unreadable=0.0)
        assert "2% of the last 50" in str(asked.error)


class TestHopeless:
    def test_nothing_but_rejections(self, play, journal):
        server = play(BAD)
        asked = ask(server.url, journal, 50, concurrency=1)
        with pytest.raises(RemoteError, match=r"first 5 questions got no answer.*bad audio\. Check"):
            raise asked.error
        assert len(server.requests) == 5

    def test_clips_that_an_earlier_run_left_over_may_all_be_rejected(self, play, journal):
        assert ask(play((200, GOOD)).url, journal, [question("before")]).answered == 1
        asked = ask(play(BAD).url, journal, 9)
        assert (len(asked.rejected), asked.error) == (9, None)

    @pytest.mark.parametrize(("between", "sent"), [([], 21), ([(200, GOOD)], 1 + 19 + 1 + 20)])
    def test_twenty_rejections_in_a_row(self, play, journal, between, sent):
        server = play((200, GOOD), *[BAD] * 19, *between, BAD)
        asked = ask(server.url, journal, 90, concurrency=1)
        with pytest.raises(RemoteError, match=r"rejected 20 clips in a row, .*bad audio\. .*are kept"):
            raise asked.error
        assert len(server.requests) == sent

    def test_a_server_that_is_not_there(self, journal):
        with serving((200, GOOD)) as server:
            url = server.url
        asked = ask(url, journal, 50, price=PRICE)
        assert isinstance(asked.error, RemoteError) and "connection failed" in str(asked.error)
        assert (
            journal.unresolved() == [] and journal.accounts()["sent"] == asked.spent == 0
        )  # nothing ever left


class TestStalls:
    """Whatever holds a run up is told after a while."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(live, "STALL_SECONDS", 0.2)

    async def told(self, caplog, word):
        await until(lambda: any(word in line for line in caplog.messages))

    def test_a_service_that_does_not_answer(self, play, journal, caplog):
        async def beside(asking):
            await self.told(caplog, "2 requests are under way")
            server.release.set()

        server = play("hang", "hang", (200, GOOD))
        asked = ask(server.url, journal, 2, beside=beside)
        assert asked.answered == 2 and any("hardly an answer for" in line for line in caplog.messages)

    def test_failures_are_named(self, play, journal, caplog):
        async def beside(asking):
            await self.told(caplog, "the last failure: no memory")
            server.script[:] = [(200, GOOD)]

        server = play((429, error("no memory"), {"retry-after-ms": "20"}))
        assert ask(server.url, journal, 1, beside=beside).answered == 1

    def test_a_limit_in_a_header_that_never_lets_go_ends_the_run(self, play, journal, caplog, monkeypatch):
        monkeypatch.setattr(breaker, "PATIENCE", 1)
        full = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60s"}
        asked = ask(play((200, GOOD, full)).url, journal, 9, concurrency=1, rpm=None)
        assert isinstance(asked.error, RemoteError) and asked.answered == 1
        assert "by x-ratelimit-reset-requests" in str(asked.error) and "--rpm" in str(asked.error)
        assert any("by x-ratelimit-reset-requests" in line for line in caplog.messages)


class TestFatal:
    @pytest.mark.parametrize(
        ("status", "body", "words"),
        [
            (
                401,
                error("invalid API key", code="invalid_api_key"),
                r"401: invalid API key\. Check the API key",
            ),
            (402, error("no credit left"), "402: no credit left"),
            (403, error("model not allowed"), "403: model not allowed"),
            (404, error("The model `m` does not exist"), "404: The model"),
            (429, error("You exceeded your quota", code="insufficient_quota"), "Check the credit"),
            (400, error("Unsupported parameter: 'n'", code="unsupported_parameter"), "Unsupported parameter"),
            (422, {"detail": "Unexpected field seed"}, "Unexpected field seed"),
            (
                400,
                [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
                r"400: API key not valid\. Check",
            ),
        ],
    )
    def test_what_hits_every_request_stops_the_run(self, play, journal, status, body, words):
        server = play((200, GOOD), (status, body))
        asked = ask(server.url, journal, 20, concurrency=1)
        with pytest.raises(
            RemoteError, match=rf"{words}.*1 answers of this run are kept in j\.sqlite"
        ) as caught:
            raise asked.error
        assert caught.value.exit_code == 5
        assert len(server.requests) == 2 and stored(journal) == 1

    def test_requests_under_way_are_kept(self, play, journal):
        def late(request):
            assert stopped.wait(HANG_SECONDS)
            return 200, GOOD

        async def beside(asking):
            await until(lambda: asking.state.error)
            stopped.set()

        def revoked(request):
            assert arrived.wait(HANG_SECONDS)
            return 401, error("revoked")

        def last(request):
            arrived.set()
            return late

        stopped, arrived = threading.Event(), threading.Event()
        server = play(revoked, late, last)
        asked = ask(server.url, journal, 20, concurrency=3, beside=beside)
        assert "revoked" in str(asked.error)
        assert len(server.requests) == 3 and stored(journal) == asked.answered == 2
        assert journal.unresolved() == []

    def test_a_clip_that_cannot_be_read(self, play, journal):
        def missing():
            raise InputError("a.wav: not found")

        items = [question("q0"), question("q1", messages=missing), question("q2")]
        asked = ask(play((200, GOOD)).url, journal, items, concurrency=1)
        assert isinstance(asked.error, InputError) and str(asked.error) == "a.wav: not found"
        assert journal.read("SELECT key FROM intent") == [("q0",)]


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_what_is_under_way_comes_in(self, play, journal, number):
        def held(request):
            assert released.wait(HANG_SECONDS)
            return 200, GOOD

        async def beside(asking):
            await until(lambda: len(server.requests) == 3)
            os.kill(os.getpid(), number)
            await until(lambda: asking.state.interrupted)
            released.set()

        released = threading.Event()
        server = play(held)
        before = signal.getsignal(number)
        asked = ask(server.url, journal, 20, concurrency=3, beside=beside)
        assert (asked.interrupted, asked.error, asked.answered) == (True, None, 3)
        assert len(server.requests) == stored(journal) == 3 and journal.unresolved() == []
        assert signal.getsignal(number) in (before, signal.default_int_handler, signal.SIG_DFL)

    def test_but_not_for_ever(self, play, journal, monkeypatch):
        async def beside(asking):
            await until(lambda: len(server.requests) == 5)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(live, "DRAIN_SECONDS", 0.05)
        server = play(*[(200, GOOD)] * 3, "hang")
        asked = ask(server.url, journal, 20, concurrency=2, timeout=60, price=PRICE, usd=1.0, beside=beside)
        assert (asked.interrupted, asked.answered) == (True, 3)
        assert len(journal.unresolved()) == server.running == 2  # which still holds them
        worst = Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES)
        assert journal.accounts()["spent"] >= 3 * bill(GOOD) + 2 * worst

    def test_a_pause_does_not_hold_it_up(self, play, journal):
        async def beside(asking):
            await until(lambda: asking.state.limited)
            os.kill(os.getpid(), signal.SIGINT)

        limit = (429, error("slow down"), {"Retry-After": "600"})
        server = play(limit)
        asked = ask(server.url, journal, 20, beside=beside)
        assert time.monotonic() - server.requests[-1].time < 300
        assert (asked.interrupted, asked.error, asked.answered) == (True, None, 0)

    def test_cancelling_keeps_what_was_committed(self, play, journal):
        async def beside(asking):
            await until(lambda: len(server.requests) == 5)
            raise KeyError("cancels the other one")

        server = play(*[(200, GOOD)] * 3, "hang")
        with pytest.raises(KeyError):
            ask(server.url, journal, 10, beside=beside)
        assert stored(journal) == 3 and len(journal.unresolved()) == 2
