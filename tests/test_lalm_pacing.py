import asyncio
import itertools
import math
import random
import selectors

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.lalm.service.pacing import Pacer, TurnResult
from mifuse_cli.lalm.service.service_options import ServiceOptions


class Clockwork(selectors.SelectSelector):
    """Waits by moving the clock of its loop forward, a little too far as real ones do."""

    now = 0.0

    def __init__(self, late, seed):
        super().__init__()
        self.late, self.random = late, random.Random(seed)

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits for ever"
        if timeout > 0:
            self.now += timeout + (self.random.expovariate(1 / self.late) if self.late else 0.0)
        return super().select(0)


def in_no_time(coroutine, late=0.0, seed=0):
    """Run a coroutine in a loop whose clock starts at 0 and jumps from timer to timer."""
    clock = Clockwork(late, seed)
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(coroutine)


def now():
    return asyncio.get_running_loop().time()


class Server:
    """A token bucket that holds what it allows in a second; `latency` and `refusal` are means in seconds."""

    def __init__(self, rpm, *, latency=0.08, refusal=0.005, after=lambda exact: exact, seed=0, headers=None):
        self.rate = rpm / 60
        self.bucket, self.filled = max(self.rate, 1.0), 0.0
        self.latency, self.refusal, self.after, self.headers = latency, refusal, after, headers or {}
        self.random = random.Random(seed)
        self.refused = 0

    async def ask(self):
        await asyncio.sleep(self.random.uniform(0, 0.002))
        self.bucket = min(self.bucket + (now() - self.filled) * self.rate, max(self.rate, 1.0))
        self.filled = now()
        wait = max(1 - self.bucket, 0.0) / self.rate
        if wait:
            self.refused += 1
            await asyncio.sleep(self.refusal * self.random.uniform(0.5, 1.5))
            return TurnResult.THROTTLED, self.after(wait)
        self.bucket -= 1
        await asyncio.sleep(self.latency * self.random.uniform(0.5, 1.5))
        return TurnResult.ANSWERED, None


async def answer(server, pacer, count, concurrency, *, tokens=0.0, used=None):
    """Ask until ``count`` requests are answered; return the seconds that it took."""
    left = itertools.count()

    async def work():
        while next(left) < count:
            outcome = None
            while outcome is not TurnResult.ANSWERED:
                turn = await pacer.enter(tokens)
                outcome, wait = await server.ask()
                pacer.leave(turn, outcome, tokens=used, headers=server.headers, wait=wait)

    start = now()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return now() - start


def figures(server, *, count=2000, concurrency=64, late=0.001, seed=0, **given):
    """Goodput as a share of the server's limit, and the share of 429s."""

    async def run():
        pacer = pacer_with(concurrency=concurrency, **given)
        seconds = await answer(server, pacer, count, concurrency)
        assert (pacer.running, pacer.answered, pacer.throttled) == (0, count, server.refused)
        return count / seconds / server.rate, server.refused / (count + server.refused)

    return in_no_time(run(), late, seed)


def pacer_with(**options):
    return Pacer(ServiceOptions("http://h/v1", "m", "key", **options), now)


async def turns(pacer, count, tokens=0.0):
    return [await pacer.enter(tokens) for _ in range(count)]


async def waiting(pacer, tokens=0.0):
    task = asyncio.create_task(pacer.enter(tokens))
    await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.parametrize("late", [0.0005, 0.005, 0.02])
@pytest.mark.parametrize("rpm", [6000, 300])
def test_a_given_rate_is_used_in_full_however_late_the_loop_wakes(rpm, late):
    goodput, refused = figures(Server(rpm), rpm=rpm, late=late)
    assert 0.97 <= goodput <= 1.001 and refused == 0


@pytest.mark.parametrize("late", [0.0005, 0.003])
def test_a_given_rate_where_a_millisecond_too_soon_is_too_soon(late):
    goodput, refused = figures(Server(60), rpm=60, late=late)
    assert goodput >= 0.9 and refused < 0.005


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("latency", "refusal"), [(0.02, 0.02), (0.08, 0.005), (0.08, 0.04), (0.5, 0.005)])
@pytest.mark.parametrize("rpm", [6000, 300, 60])
def test_an_unknown_rate_is_found_at_little_cost(rpm, latency, refusal, seed):
    server = Server(rpm, latency=latency, refusal=refusal, seed=seed)
    goodput, refused = figures(server, concurrency=128, seed=seed)
    assert goodput >= 0.9 and refused < 0.01


@pytest.mark.parametrize("after", [math.ceil, lambda _: None], ids=["whole seconds", "not told"])
@pytest.mark.parametrize("rpm", [6000, 300, 60])
def test_an_unknown_rate_is_found_though_the_server_does_not_say_how_long_to_wait(rpm, after):
    random.seed(0)
    goodput, refused = figures(Server(rpm, after=after, refusal=0.08))
    assert goodput >= 0.88 and refused < 0.01


@pytest.mark.parametrize("rpm", [3000, 300, 60])
def test_a_given_rate_that_is_too_high_is_lowered(rpm):
    goodput, refused = figures(Server(rpm), rpm=6000)
    assert goodput >= 0.95 and refused < 0.01


def test_a_rate_follows_the_limit_down_and_up_again_but_not_above_what_was_given():
    async def run():
        server, pacer = Server(3000), pacer_with(rpm=3000)
        assert await answer(server, pacer, 500, 64) == pytest.approx(10, rel=0.05)
        server.rate = 20.0
        await answer(server, pacer, 1000, 64)
        assert pacer.rate == pytest.approx(1200, rel=0.05)
        server.rate = 100.0
        await answer(server, pacer, 6000, 64)
        refused = server.refused
        seconds = await answer(server, pacer, 1000, 64)
        assert pacer.rate == 3000 and server.refused == refused
        assert seconds == pytest.approx(20, rel=0.05)

    in_no_time(run())


def test_a_rate_that_is_not_used_is_not_raised():
    async def run():
        server, pacer = Server(300), pacer_with()
        await answer(server, pacer, 500, 8)
        rate = pacer.rate
        server.latency = 8.0  # one request a second at most
        await answer(server, pacer, 500, 8)
        assert pacer.rate == rate

    in_no_time(run())


def test_one_long_pause_does_not_ruin_the_rate():
    async def run():
        pacer = pacer_with(rpm=600)
        for outcome in (
            TurnResult.THROTTLED,
            TurnResult.THROTTLED,
            TurnResult.ANSWERED,
            TurnResult.THROTTLED,
        ):
            rate = pacer.rate
            pacer.leave(await pacer.enter(), outcome, wait=1000)
        assert pacer.rate == pytest.approx(rate / 4) and rate > 590

    in_no_time(run())


def test_headers_stand_in_for_a_rate_that_was_not_given():
    goodput, refused = figures(Server(600, headers={"x-ratelimit-limit-requests": "600"}))
    assert goodput == pytest.approx(0.95, abs=0.01) and refused == 0
    assert figures(Server(6000, headers={"x-ratelimit-limit-requests": "60"}), rpm=6000)[0] >= 0.97


def test_headers_that_mean_a_day_do_no_harm():
    daily = {
        "x-ratelimit-limit-requests": "144000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "7h12m0s",
    }
    goodput, refused = figures(Server(600, headers=daily))
    assert goodput >= 0.9 and refused < 0.01


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1s", 1), ("0m40s", 40), ("20ms", 0.02), ("0.5", 0.5), ("1m", 60), ("1s500ms", 1.5), ("6m0s", 0)]
    + [(text, 0) for text in ("", "soon", "-3", "nan", "1e999", ".", "1.2.3s", "2026-01-01")],
)
def test_no_request_goes_out_before_the_reset_that_the_headers_tell(reset, seconds):
    async def run():
        pacer = pacer_with(rpm=1e6)
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
        assert pacer.leave(await pacer.enter(), TurnResult.ANSWERED, headers=headers) == pytest.approx(
            seconds
        )
        return (await pacer.enter()).time

    assert in_no_time(run()) == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("limit", ["", "many", "0", "-1", "nan", "inf"])
def test_limits_that_are_no_numbers_are_passed_over(limit):
    async def run():
        pacer = pacer_with()
        headers = {"x-ratelimit-limit-requests": limit, "x-ratelimit-limit-tokens": limit}
        pacer.leave(await pacer.enter(), TurnResult.ANSWERED, headers=headers)
        await turns(pacer, 5, tokens=1e6)
        assert pacer.rate is None and now() < 1

    in_no_time(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-limit-requests": "0.000001"},
        {"x-ratelimit-limit-tokens": "1"},
        {"x-ratelimit-limit-requests": "1e300", "x-ratelimit-limit-tokens": "9" * 400},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 300 + "h"},
    ],
)
def test_absurd_limits_hold_up_nobody(headers):
    async def main():
        pacer = pacer_with()
        for _ in range(3):
            pacer.leave(await pacer.enter(500), TurnResult.ANSWERED, headers=headers)
        return now()

    assert in_no_time(main()) < 1


class TestHolding:
    """What is told where no request goes out."""

    def reason(self, *, headers=None, wait=None, held=0, **given):
        async def main():
            pacer = pacer_with(**given)
            turns = [await pacer.enter(400) for _ in range(1 + held)]
            result = TurnResult.ANSWERED if wait is None else TurnResult.THROTTLED
            pacer.leave(turns[0], result, headers=headers, wait=wait)
            before = pacer.holding
            nexts = [asyncio.create_task(pacer.enter(400)) for _ in range(3)]
            await asyncio.sleep(1)
            for one in nexts:
                if one.done():
                    pacer.leave(one.result(), TurnResult.ANSWERED)
            told = pacer.holding, pacer.held_by_service
            pacer.stop()
            await asyncio.gather(*nexts)
            return before, *told

        return in_no_time(main())

    @pytest.mark.parametrize(
        ("circumstances", "word", "by_service"),
        [
            ({"wait": 40}, "in 39 s (after a 429)", True),
            (
                {"headers": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "50s"}},
                "in 49 s (by x-ratelimit-reset-requests)",
                True,
            ),
            ({"headers": {"x-ratelimit-limit-requests": "1"}}, "by x-ratelimit-limit-requests", True),
            ({"headers": {"x-ratelimit-limit-tokens": "100"}}, "by x-ratelimit-limit-tokens", True),
            ({"rpm": 1}, "1 requests a minute by --rpm", False),
            ({"tpm": 10, "rpm": 1e6}, "10 tokens a minute by --tpm", False),
            ({"held": 1, "concurrency": 2, "wait": 0}, "1 requests are under way", False),
        ],
    )
    def test_the_cause_is_named(self, circumstances, word, by_service):
        before, why, service = self.reason(**circumstances)
        assert before == "" and word in why and service is by_service


def test_requests_are_spread_and_a_late_loop_catches_up_on_a_quarter_of_a_second():
    async def run():
        pacer = pacer_with(rpm=600, concurrency=8)
        held = await turns(pacer, 8)
        await asyncio.sleep(10)
        for turn in held:
            pacer.leave(turn, TurnResult.FAILED)
        return [turn.time for turn in held], [turn.time for turn in await turns(pacer, 4)]

    spread, after = in_no_time(run())
    assert spread == pytest.approx([0.1 * number for number in range(8)])
    assert [time - after[0] for time in after] == pytest.approx([0, 0, 0.05, 0.15])


def test_tokens_are_charged_by_the_estimate_and_settled_by_what_was_used():
    async def run(used, outcome=TurnResult.ANSWERED):
        pacer = pacer_with(tpm=60_000, rpm=1e6)  # 1000 tokens a second
        assert [turn.time for turn in await turns(pacer, 3, tokens=500)] == pytest.approx([0, 0.5, 1])
        turn = await pacer.enter(5000)  # more than any bucket holds
        assert turn.time == pytest.approx(1.5)
        pacer.leave(turn, outcome, tokens=used, wait=0)
        return (await pacer.enter(500)).time

    assert in_no_time(run(None)) == pytest.approx(6.5)
    assert in_no_time(run(1000)) == pytest.approx(2.5)
    assert in_no_time(run(7000)) == pytest.approx(8.5)
    assert in_no_time(run(None, TurnResult.FAILED)) == pytest.approx(6.5)
    assert in_no_time(run(None, TurnResult.THROTTLED)) == pytest.approx(1.55)


@pytest.mark.parametrize(
    ("given", "headers"), [({"tpm": 57_000}, {}), ({}, {"x-ratelimit-limit-tokens": "60000"})]
)
def test_tokens_per_minute_hold_over_a_run(given, headers):
    async def run():
        server = Server(6000, headers=headers)
        return await answer(server, pacer_with(**given), 1000, 32, tokens=500, used=100)

    assert in_no_time(run()) == pytest.approx(1000 * 100 / 950, rel=0.05)


def test_nobody_enters_during_a_pause_and_there_is_no_herd_after_it():
    async def run():
        pacer = pacer_with(rpm=600)
        first, second = await turns(pacer, 2)
        others = [await waiting(pacer) for _ in range(5)]
        assert pacer.leave(first, TurnResult.THROTTLED, wait=7.0) == pytest.approx(7)
        assert pacer.leave(second, TurnResult.THROTTLED, wait=2.0) == pytest.approx(7)  # the longer one holds
        times = [turn.time for turn in await asyncio.gather(*others)]
        assert times[0] == pytest.approx(7.1)
        assert all(later - sooner >= 0.1 for sooner, later in itertools.pairwise(times))

    in_no_time(run())


def test_pauses_double_up_to_half_a_minute_until_an_answer():
    async def run():
        pacer = pacer_with(rpm=1e6)
        pauses = []
        for _ in range(8):
            pauses.append(pacer.leave(await pacer.enter(), TurnResult.THROTTLED))
        for pause, most in zip(pauses, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
            assert most / 2 <= pause <= most
        pacer.leave(await pacer.enter(), TurnResult.ANSWERED)
        assert 0.5 <= pacer.leave(await pacer.enter(), TurnResult.THROTTLED) <= 1

    in_no_time(run())


def test_requests_in_flight_follow_answers_and_429s():
    async def run():
        pacer = pacer_with(rpm=1e6, concurrency=20)
        assert pacer.limit == 8
        held = await turns(pacer, 8)
        ninth = await waiting(pacer)
        pacer.leave(held.pop(), TurnResult.FAILED)
        held.append(await ninth)
        assert (pacer.limit, pacer.running) == (8, 8)
        for _ in range(40):
            pacer.leave(held.pop(), TurnResult.ANSWERED)
            held += await turns(pacer, pacer.limit - pacer.running)
        assert (pacer.limit, pacer.running) == (20, 20)

        for _ in range(3):  # one cut for all
            pacer.leave(held.pop(), TurnResult.THROTTLED, wait=6.0)
        assert pacer.limit == 14
        await asyncio.sleep(5.5)
        pacer.leave(held.pop(), TurnResult.THROTTLED, wait=0.1)
        assert pacer.limit == 14
        await asyncio.sleep(1)
        pacer.leave(held.pop(), TurnResult.THROTTLED, wait=0.1)
        assert pacer.limit == 9  # 9.8
        for _ in range(15):
            pacer.leave(held.pop(), TurnResult.ANSWERED)
        assert (pacer.limit, pacer.running) == (11, 0)
        for _ in range(20):
            pacer.leave(await pacer.enter(), TurnResult.THROTTLED, wait=6.0)
        assert (pacer.limit, pacer_with(concurrency=3).limit) == (1, 3)

    in_no_time(run())


def test_stop_sends_everybody_away():
    async def run():
        pacer = pacer_with(rpm=1)
        turn = await pacer.enter()
        others = [await waiting(pacer) for _ in range(3)]
        pacer.stop()
        assert await asyncio.gather(*others) == [None] * 3
        assert await pacer.enter() is None
        pacer.leave(turn, TurnResult.ANSWERED)
        assert (pacer.running, now()) == (0, 0)

    in_no_time(run())


def test_a_turn_that_comes_just_when_its_caller_gives_up_is_handed_back():
    async def run():
        pacer = pacer_with(concurrency=1, tpm=60, rpm=1e9)
        turn = await pacer.enter()
        late, next_one = await waiting(pacer, tokens=100), await waiting(pacer)
        pacer.leave(turn, TurnResult.ANSWERED)
        late.cancel()
        assert (await next_one).time == pytest.approx(0, abs=1e-3)
        assert late.cancelled() and pacer.running == 1

    in_no_time(run())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(0, 30), max_size=20))
def test_whoever_gives_up_takes_nothing_and_blocks_nobody(patience):
    async def run():
        pacer, served = pacer_with(concurrency=2, rpm=1e9), []

        async def visit(name):
            turn = await pacer.enter()
            try:
                await asyncio.sleep(0)
                served.append(name)
            finally:
                pacer.leave(turn, TurnResult.ANSWERED)

        visits = [asyncio.create_task(visit(name)) for name in range(len(patience))]
        for tick in range(31):
            for task, ticks in zip(visits, patience, strict=True):
                if ticks == tick:
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*visits, return_exceptions=True)
        assert pacer.running == 0
        assert served == [name for name, task in enumerate(visits) if not task.cancelled()]

    in_no_time(run())


def test_first_come_first_served():
    async def run():
        pacer, order = pacer_with(rpm=600, concurrency=3), []

        async def visit(name):
            turn = await pacer.enter()
            order.append(name)
            await asyncio.sleep(random.random())
            pacer.leave(turn, random.choice(list(TurnResult)), wait=0.3)

        await asyncio.gather(*(visit(name) for name in range(50)))
        assert order == list(range(50))

    in_no_time(run())
