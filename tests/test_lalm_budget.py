"""Caps that hold whatever is under way."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.lalm.cost.budget import BLIND, BYTES_PER_TOKEN, FRAME_TOKENS, MARGIN, Budget, Meter
from mifuse_cli.lalm.cost.prices import Price, cost_of

PRICE = Price(
    model="m", text_in=1.0, audio_in=10.0, out=4.0, date="2026-01-31", source="s", audio_tokens_per_second=10
)
SLACK = 1e-12  # a cap is kept in whole picodollars

amounts = st.floats(0, 10)


def usage(prompt, completion, **others):
    return {"prompt": prompt, "completion": completion, "total": -1, "audio": -1, "cached": -1, **others}


@given(
    usd=st.one_of(st.none(), st.floats(0, 100)),
    requests=st.one_of(st.none(), st.integers(0, 80)),
    steps=st.lists(st.tuples(amounts, st.floats(0, 1), st.integers(0, 63)), max_size=150),
)
def test_no_interleaving_passes_a_cap(usd, requests, steps):
    budget = Budget(usd=usd, requests=requests)
    under_way, granted, paid = [], 0, 0.0
    for cost, share, chosen in steps:
        if chosen < len(under_way):
            reserved, actual = under_way.pop(chosen)
            budget.settle(reserved, actual)
            paid += actual
        elif len(under_way) < 64 and budget.reserve(cost):
            under_way.append((cost, cost * share))
            granted += 1
        assert budget.sent == granted <= (granted if requests is None else requests)
        assert budget.in_flight == len(under_way)
        assert usd is None or budget.spent + budget.reserved <= usd + 2 * SLACK
    for reserved, actual in under_way:
        budget.settle(reserved, actual)
        paid += actual
    assert budget.reserved == budget.in_flight == 0
    assert budget.spent == pytest.approx(paid, abs=1e-9)
    assert usd is None or budget.spent <= usd + SLACK


def test_a_cap_is_used_to_the_last_cent():
    budget = Budget(usd=0.3, requests=None)
    assert [budget.reserve(0.1) for _ in range(4)] == [True, True, True, False]


def test_a_refusal_sets_nothing_aside():
    budget = Budget(usd=1, requests=5)
    assert not budget.reserve(1.1)
    assert (budget.spent, budget.reserved, budget.sent, budget.in_flight) == (0, 0, 0, 0)


def test_room_comes_back_when_requests_cost_less():
    budget = Budget(usd=1, requests=None)
    assert budget.reserve(0.6)
    assert not budget.reserve(0.6)
    budget.settle(0.6, 0.2)
    assert budget.reserve(0.6)


def test_a_request_of_unknown_outcome_keeps_its_reservation():
    budget = Budget(usd=1, requests=None)
    assert budget.reserve(0.6)
    budget.settle(0.6, 0.6)
    assert budget.spent == 0.6
    assert not budget.reserve(0.6)


def test_earlier_runs_count():
    budget = Budget(usd=1, requests=10, spent=0.7, sent=9)
    assert not budget.reserve(0.4)
    assert budget.reserve(0.3)
    assert not budget.reserve(0)
    assert budget.sent == 10


def test_a_cap_lower_than_what_is_spent_grants_nothing_but_what_is_free():
    budget = Budget(usd=0.5, requests=None, spent=0.7)
    assert not budget.reserve(0)
    assert budget.spent == 0.7


def test_a_request_dearer_than_reserved_is_counted_in_full():
    budget = Budget(usd=1, requests=None)
    assert budget.reserve(0.5)
    assert budget.reserve(0.5)
    budget.settle(0.5, 0.9)
    assert (budget.spent, budget.reserved) == (0.9, 0.5)
    budget.settle(0.5, 0.05)
    assert budget.spent == 0.95
    assert not budget.reserve(0.06)
    assert budget.reserve(0.05)


@pytest.mark.parametrize("cost", [-0.1, float("nan")])
def test_nonsense_is_no_cost(cost):
    with pytest.raises(ValueError, match="expected 0 or more"):
        Budget(usd=1, requests=None).reserve(cost)


def test_the_first_guess_is_high():
    meter = Meter(PRICE, max_tokens=256)
    text = 400 / BYTES_PER_TOKEN + FRAME_TOKENS
    assert meter.worst(5, 400, 3) == pytest.approx((text + 50 * 10 + 3 * 256 * 4) / 1e6)
    assert not meter.calibrated


def test_a_dearer_prompt_raises_later_guesses():
    meter = Meter(PRICE, max_tokens=10)
    cost = meter.observe(usage(2050, 5, audio=50), 5, 400)
    assert cost == pytest.approx((2000 + 500 + 20) / 1e6)
    assert meter.calibrated
    assert meter.worst(5, 400) == pytest.approx((MARGIN * 2500 + 40) / 1e6)
    before = meter.worst(9, 100)
    meter.observe(usage(60, 5, audio=50), 5, 400)
    assert meter.worst(9, 100) == before  # a cheap one lowers nothing


def test_a_cache_does_not_lower_a_guess():
    price = Price(**{**vars(PRICE), "cached_in": 0.0})
    fresh, cached = Meter(price, max_tokens=10), Meter(price, max_tokens=10)
    assert fresh.observe(usage(2050, 5, audio=50), 5, 400) > cached.observe(
        usage(2050, 5, audio=50, cached=2000), 5, 400
    )
    assert fresh.worst(5, 400) == cached.worst(5, 400)


def test_answers_that_fill_max_tokens_raise_nothing_but_longer_ones_do():
    meter = Meter(PRICE, max_tokens=10)
    before = meter.worst(5, 400, 2)
    meter.observe(usage(60, 20), 5, 400, 2)
    assert meter.worst(5, 400, 2) == before
    meter.observe(usage(60, 40), 5, 400, 2)
    assert meter.worst(5, 400, 2) == pytest.approx(before + (2 * MARGIN - 1) * 80 / 1e6)


def test_without_usage_the_reservation_is_the_cost():
    meter = Meter(PRICE, max_tokens=10)
    for _ in range(BLIND):
        assert not meter.calibrated
        assert meter.observe(usage(-1, -1), 5, 400) == meter.worst(5, 400)
    assert meter.calibrated


@given(
    prompt=st.integers(0, 20_000),
    completion=st.integers(0, 10**5),
    audio=st.integers(-1, 10**6),
    seconds=st.floats(0.1, 600),
    text_bytes=st.integers(0, 10**5),
)
def test_what_was_seen_once_is_covered_from_then_on(prompt, completion, audio, seconds, text_bytes):
    meter = Meter(PRICE, max_tokens=256)
    cost = meter.observe(usage(prompt, completion, audio=audio), seconds, text_bytes)
    assert cost == cost_of(usage(prompt, completion, audio=audio), PRICE, seconds=seconds)
    assert cost <= meter.worst(seconds, text_bytes) * (1 + 1e-9)


@pytest.mark.parametrize(
    "counted", [usage(10**7, 5), usage(400, 10**7), usage(-1, 5, total=10**7), usage(400, 5, total=10**7)]
)
def test_a_usage_that_no_request_can_have_is_not_booked(counted):
    meter = Meter(PRICE, max_tokens=256)
    before = meter.worst(5, 400)
    assert meter.observe(counted, 5, 400) == before == meter.worst(5, 400)
    assert meter.cost_in_batch({**counted, "audio": 100}) is None
    assert meter.observe(usage(400, 5), 5, 400) < before


@pytest.mark.parametrize("true_rate", [5, 10, 80])
def test_64_at_a_time_on_a_server_that_counts_otherwise(true_rate):
    """The rate of the price is wrong by up to eight times, and still the cap holds."""
    chance = random.Random(true_rate)
    meter, budget = Meter(PRICE, max_tokens=256), Budget(usd=2, requests=None)
    under_way, billed, most, refused = [], 0.0, 0, False
    while under_way or not refused:
        limit = 64 if meter.calibrated else 1
        if not refused and len(under_way) < limit and (not under_way or chance.random() < 0.8):
            seconds = chance.uniform(1, 20)
            cost = meter.worst(seconds, 800)
            if budget.reserve(cost):
                under_way.append((seconds, cost))
                most = max(most, budget.in_flight)
                continue
            refused = not under_way
        if under_way:
            seconds, reserved = under_way.pop(chance.randrange(len(under_way)))
            audio = round(seconds * true_rate)
            told = usage(audio + chance.randint(180, 220), chance.randint(30, 256), audio=audio)
            billed += cost_of(told, PRICE, seconds=seconds)
            budget.settle(reserved, meter.observe(told, seconds, 800))
        assert budget.spent <= 2
    assert most == 64
    assert budget.spent == pytest.approx(billed)
    assert billed > 1.95  # and is used up
