"""Totals before a run and after a pilot."""

import json
import random
import tracemalloc
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.lalm.cost.estimate import Observation, Volume, calibrated, estimate, hours_at
from mifuse_cli.lalm.cost.prices import Price, cost_of

PRICE = Price(
    model="m", text_in=2.5, audio_in=32.0, out=10.0, date="2026-01-31", source="s", audio_tokens_per_second=10
)
RATELESS = Price(**{**vars(PRICE), "audio_tokens_per_second": None})


def added(*clips, **sizes):
    total = Volume()
    for seconds, requests, answers in clips:
        total += Volume.of_clip(seconds, requests=requests, answers=answers, **sizes)
    return total


def test_volumes_add_up_over_requests():
    volume = added((2.0, 3, 5), (4.0, 1, 1), (9.0, 0, 0), upload_bytes=100, text_bytes=10)
    assert asdict(volume) == {
        "clips": 2,
        "requests": 4,
        "answers": 6,
        "seconds": 10.0,
        "upload_bytes": 400,
        "text_bytes": 40,
    }


def test_a_tally_does_not_grow():
    total = Volume()
    tracemalloc.start()
    try:
        for _ in range(20_000):
            total += Volume.of_clip(5.0, requests=5, answers=5, upload_bytes=160_044, text_bytes=1200)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert total.seconds == 500_000


def test_estimate_states_three_cases():
    volume = added((10.0, 2, 4), text_bytes=600)
    made = estimate(volume, PRICE, labels=8, max_tokens=256)
    assert asdict(made.prompt_tokens) == {"low": 200 + 240, "expected": 200 + 300, "high": 200 + 400}
    assert asdict(made.completion_tokens) == {"low": 4 * 34, "expected": 4 * 61, "high": 4 * 256}
    assert made.usd.expected == pytest.approx((300 * 2.5 + 200 * 32 + 4 * 61 * 10) / 1e6)
    assert made.hours is None
    assert json.loads(json.dumps(asdict(made))) == asdict(made)


def test_estimate_agrees_with_the_worked_example():
    """300 tokens of prompt and about 60 of answer: $0.0030 a sample, $0.0054 for five at once."""
    single = estimate(added((5.0, 1, 1), text_bytes=1200), PRICE, labels=8, max_tokens=256)
    five = estimate(added((5.0, 1, 5), text_bytes=1200), PRICE, labels=8, max_tokens=256)
    assert single.usd.expected == pytest.approx(0.0030, abs=5e-5)
    assert five.usd.expected == pytest.approx(0.0054, abs=5e-5)
    assert single.usd.low < single.usd.expected < single.usd.high


def test_without_an_audio_rate_the_range_is_wide():
    volume = added((10.0, 1, 1))
    made = estimate(volume, RATELESS, labels=4, max_tokens=9)
    assert asdict(made.prompt_tokens) == {"low": 100, "expected": 250, "high": 500}
    assert made.completion_tokens.low == made.completion_tokens.high == 9
    assert made.usd.low == pytest.approx((100 * 32 + 90) / 1e6)
    assert estimate(volume, None, labels=4, max_tokens=9).prompt_tokens == made.prompt_tokens
    assert estimate(volume, None, labels=4, max_tokens=9).usd is None


def test_batch_mode_has_its_price():
    half = Price(**{**vars(PRICE), "batch_factor": 0.5})
    volume = added((10.0, 1, 1))
    full = estimate(volume, half, labels=4, max_tokens=99)
    assert estimate(volume, half, labels=4, max_tokens=99, batch=True).usd.high == full.usd.high / 2


def test_hours_are_those_of_the_tighter_limit():
    assert hours_at(6000, 1e6, rpm=100, tpm=None) == 1
    assert hours_at(6000, 1.2e6, rpm=100, tpm=1e4) == 2
    assert hours_at(6000, 1e6, rpm=None, tpm=None) is None
    volume = added(*[(10.0, 1, 1)] * 60)
    made = estimate(volume, PRICE, labels=4, max_tokens=20, rpm=600, tpm=100)
    assert made.hours.high == pytest.approx((6000 + 60 * 20) / 100 / 60)


@given(
    st.floats(0.1, 1e3),
    st.integers(1, 10),
    st.integers(0, 10**4),
    st.integers(1, 20),
    st.integers(1, 4096),
    st.sampled_from([PRICE, RATELESS]),
)
def test_low_expected_and_high_are_in_order(seconds, requests, text_bytes, labels, max_tokens, price):
    volume = added((seconds, requests, 2 * requests), text_bytes=text_bytes)
    made = estimate(volume, price, labels=labels, max_tokens=max_tokens, rpm=60, tpm=1000)
    for total in (made.prompt_tokens, made.completion_tokens, made.usd, made.hours):
        assert total.low <= total.expected <= total.high


# Pilots


def seen(seconds, usd=1.0, prompt=10, completion=5):
    return Observation(seconds=seconds, prompt_tokens=prompt, completion_tokens=completion, usd=usd)


def corpus(chance, size, varied=True):
    """Clips with what they take: prompt tokens follow the duration, answers vary."""
    clips = []
    for _ in range(size):
        seconds = chance.lognormvariate(1.4, 0.6) if varied else 5.0
        prompt = round(seconds * 10 * chance.uniform(0.95, 1.05)) + 300
        completion = chance.randint(30, 90)
        usage = {"prompt": prompt, "completion": completion, "audio": prompt - 300}
        clips.append(seen(seconds, cost_of(usage, PRICE, seconds=seconds), prompt, completion))
    return clips


def volume_of(clips):
    return added(*((clip.seconds, 1, 1) for clip in clips))


@pytest.mark.parametrize(("varied", "size"), [(True, 3), (True, 12), (True, 60), (False, 2), (False, 12)])
def test_the_interval_covers_the_truth_as_often_as_it_says(varied, size):
    chance = random.Random(5)
    clips = corpus(chance, 150, varied)
    volume, truth = volume_of(clips), sum(clip.usd for clip in clips)
    hits = 0
    for _ in range(600):
        usd = calibrated(chance.sample(clips, size), volume).usd
        hits += usd.low <= truth <= usd.high
    assert 0.90 <= hits / 600 <= 0.985


def test_durations_narrow_the_interval():
    chance = random.Random(6)
    clips = corpus(chance, 200)
    pilot, volume = chance.sample(clips, 20), volume_of(clips)
    fitted = calibrated(pilot, volume).usd
    blind = calibrated([Observation(5.0, o.prompt_tokens, 0, o.usd) for o in pilot], volume).usd
    assert fitted.high - fitted.low < 0.5 * (blind.high - blind.low)


def test_costs_on_a_line_are_projected_exactly():
    clips = [seen(x, usd=1 + 2 * x, prompt=int(100 * x), completion=7) for x in (1, 2, 3, 5, 8, 13, 21, 34)]
    made = calibrated(clips[:5], volume_of(clips))
    assert made.usd.low == pytest.approx(made.usd.high) == pytest.approx(sum(c.usd for c in clips))
    assert made.prompt_tokens.expected == pytest.approx(8700)
    assert made.completion_tokens.expected == pytest.approx(56)


def test_one_clip_gives_no_interval():
    made = calibrated([seen(2.0, usd=0.5)], added(*[(2.0, 1, 1)] * 10), rpm=1)
    assert asdict(made.usd) == {"low": None, "expected": 5.0, "high": None}
    assert made.hours.expected == pytest.approx(10 / 60)
    assert made.hours.low is None


def test_the_whole_corpus_is_exact():
    clips = corpus(random.Random(7), 9)
    total = sum(clip.usd for clip in clips)
    usd = calibrated(clips, volume_of(clips)).usd
    assert usd.low == usd.expected == usd.high == pytest.approx(total)


def test_the_interval_closes_as_the_corpus_gets_known():
    clips = corpus(random.Random(8), 100)
    widths = []
    for size in (10, 50, 90, 99):
        usd = calibrated(clips[:size], volume_of(clips)).usd
        widths.append(usd.high - usd.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 10


def test_no_total_is_lower_than_what_the_pilot_took():
    wild = [seen(5.0, usd=usd) for usd in (0.0, 0.0, 9.0)]
    usd = calibrated(wild, added(*[(5.0, 1, 1)] * 4)).usd
    assert usd.low == 9.0 <= usd.expected < usd.high


def test_what_is_not_known_is_not_projected():
    pilot = [seen(1.0, usd=None), seen(2.0, usd=None, completion=None)]
    made = calibrated(pilot, added(*[(2.0, 1, 1)] * 10), rpm=60)
    assert (made.usd, made.completion_tokens, made.hours) == (None, None, None)
    assert made.prompt_tokens.expected == 100


@pytest.mark.parametrize("size", [0, 3])
def test_a_pilot_fits_into_its_corpus(size):
    with pytest.raises(ValueError, match=f"pilot of {size} of 2"):
        calibrated([seen(1.0)] * size, added((1.0, 1, 1), (1.0, 1, 1)))
