"""Prices and the bill of one request."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.errors import InputError
from mifuse_cli.lalm.cost.prices import AUDIO_RATE, Price, cost_of, price_of, read_prices

PRICES = read_prices()
GPT_AUDIO = PRICES["gpt-audio"]
UNKNOWN = {"prompt": -1, "completion": -1, "total": -1, "audio": -1, "cached": -1}


def made(**changes):
    fields = {"text_in": 1.0, "audio_in": 10.0, "out": 4.0, "date": "2026-01-31", "source": "here"}
    return Price(model="m", **{**fields, **changes})


def usage(prompt, completion, **others):
    return {**UNKNOWN, "prompt": prompt, "completion": completion, **others}


def test_the_worked_example_of_five_seconds():
    single = cost_of(usage(350, 60), GPT_AUDIO, seconds=5)
    five = cost_of(usage(350, 5 * 60), GPT_AUDIO, seconds=5)
    assert (single, 5 * single, five) == pytest.approx((0.0030, 0.0148, 0.0054), rel=0.02)


def test_each_kind_of_token_has_its_price():
    price = made(cached_in=0.5)
    assert cost_of(usage(1000, 100, audio=200), price, seconds=9) == pytest.approx(
        (800 + 200 * 10 + 100 * 4) / 1e6
    )
    # 900 tokens from the cache: all 800 of text, then 100 of audio.
    assert cost_of(usage(1000, 100, audio=200, cached=900), price, seconds=9) == pytest.approx(
        (900 * 0.5 + 100 * 10 + 100 * 4) / 1e6
    )


def test_without_a_cached_price_the_cache_saves_nothing():
    assert cost_of(usage(1000, 0, audio=200, cached=900), made(), seconds=9) == cost_of(
        usage(1000, 0, audio=200), made(), seconds=9
    )


@pytest.mark.parametrize("told", [-1, 0])
def test_audio_that_is_not_counted_is_estimated(told):
    slow = made(audio_tokens_per_second=10)
    assert cost_of(usage(500, 0, audio=told), slow, seconds=8.01) == pytest.approx(
        cost_of(usage(500, 0, audio=81), slow, seconds=8.01)
    )
    assert made().audio_rate == AUDIO_RATE
    assert cost_of(usage(500, 0, audio=told), made(), seconds=8) == pytest.approx(
        cost_of(usage(500, 0, audio=400), made(), seconds=8)
    )


def test_there_is_no_more_audio_than_prompt():
    assert cost_of(usage(100, 0, audio=900), made(), seconds=1) == pytest.approx(100 * 10 / 1e6)
    assert cost_of(usage(100, 0), made(), seconds=1000) == pytest.approx(100 * 10 / 1e6)


def test_reasoning_that_only_the_total_counts_is_billed():
    hidden = cost_of(usage(100, 20, total=920), made(), seconds=0)
    assert hidden == cost_of(usage(100, 820), made(), seconds=0)
    assert cost_of(usage(100, 20, total=120), made(), seconds=0) == cost_of(usage(100, 20), made(), seconds=0)


def test_no_cost_without_numbers():
    assert cost_of(UNKNOWN, GPT_AUDIO, seconds=5) is None
    assert cost_of(usage(5, -1), GPT_AUDIO, seconds=5) is None
    assert cost_of({}, GPT_AUDIO, seconds=5) is None


def test_batch_mode_has_its_share():
    full = cost_of(usage(300, 60), GPT_AUDIO, seconds=5)
    assert cost_of(usage(300, 60), GPT_AUDIO, seconds=5, batch=True) == full * GPT_AUDIO.batch_factor < full
    assert cost_of(usage(9, 9), made(), seconds=0, batch=True) == cost_of(usage(9, 9), made(), seconds=0)


tokens = st.integers(-1, 10**6)


@given(
    st.fixed_dictionaries(dict.fromkeys(UNKNOWN, tokens)),
    st.floats(0, 1e4),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_the_bill_lies_between_all_cached_and_all_audio(numbers, seconds, cached_in):
    price = made(cached_in=cached_in)
    cost = cost_of(numbers, price, seconds=seconds)
    if cost is not None:
        out = max(numbers["completion"], numbers["total"] - numbers["prompt"]) * price.out
        lowest = price.text_in if cached_in is None else cached_in
        slack = 1e-12
        assert (numbers["prompt"] * lowest + out) / 1e6 - slack <= cost
        assert cost <= (numbers["prompt"] * price.audio_in + out) / 1e6 + slack


def test_built_in_prices_are_dated_and_have_a_source():
    assert PRICES
    for name, price in PRICES.items():
        assert price.model == name
        assert datetime.date.fromisoformat(price.date) > datetime.date(2026, 1, 1)
        assert price.source.startswith("https://")
        assert 0 < price.batch_factor <= 1


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpt-audio", "gpt-audio"),
        ("gpt-audio-2025-08-28", "gpt-audio"),
        ("gpt-audio-1.5", "gpt-audio-1.5"),
        ("gpt-audio-1.5-2026-02-23", "gpt-audio-1.5"),
        ("gpt-audio-2025-18-28", None),
        ("gpt-audio-2", None),
        ("gpt-audio-mini", None),
        ("gpt-audio-preview-2025-08-28", None),
        ("openai/gpt-audio", None),
        ("gpt", None),
        ("-2025-08-28", None),
    ],
)
def test_price_of_never_guesses(name, found):
    price = price_of(name, PRICES)
    assert (price and price.model) == found


def test_a_dated_price_of_its_own_comes_first():
    dated = made(text_in=7.0)
    assert price_of("gpt-audio-2025-08-28", {**PRICES, "gpt-audio-2025-08-28": dated}) is dated


ENTRY = "text_in: 1\n  audio_in: 2\n  out: 3\n  date: 2026-01-31\n"


def test_a_file_replaces_and_extends(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(f"gpt-audio:\n  {ENTRY}\nmine:\n  {ENTRY}  cached_in: null\n  source: the bill\n")
    prices = read_prices(path)
    assert prices.keys() == PRICES.keys() | {"mine"}
    assert prices["gpt-audio"] == Price(
        model="gpt-audio", text_in=1, audio_in=2, out=3, date="2026-01-31", source=str(path)
    )
    assert prices["mine"].source == "the bill"
    assert prices["gemini-2.5-flash"] == PRICES["gemini-2.5-flash"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["NoneType", "mapping"]),
        ("- 1", ["list", "mapping"]),
        ("a: {", ["YAML"]),
        ("mine: 3", ["mine", "found 3"]),
        ("mine:\n  text_in: 1\n  out: 3\n  date: 2026-01-31", ["mine", "no audio_in"]),
        (f"mine:\n  {ENTRY}  tekst_in: 2", ["mine", "'tekst_in'", "did you mean text_in"]),
        (f"mine:\n  {ENTRY}  model: other", ["mine", "'model'"]),
        (f"mine:\n  {ENTRY}  3: other", ["mine", "unknown field 3"]),
        (f"mine:\n  {ENTRY}  cached_in: -1", ["mine", "cached_in -1"]),
        (f"mine:\n  {ENTRY}  cached_in: .nan", ["mine", "cached_in nan"]),
        (f"mine:\n  {ENTRY}  cached_in: .inf", ["mine", "cached_in inf"]),
        (f"mine:\n  {ENTRY}  cached_in: true", ["mine", "cached_in True"]),
        (f"mine:\n  {ENTRY}  cached_in: '1'", ["mine", "cached_in '1'"]),
        (f"mine:\n  {ENTRY}  batch_factor: null", ["mine", "batch_factor None"]),
        (f"mine:\n  {ENTRY}  source: 3", ["mine", "source 3"]),
        ("mine:\n  " + ENTRY.replace("2026-01-31", "soon"), ["mine", "date 'soon'"]),
        ("mine:\n  " + ENTRY.replace("2026-01-31", "2026"), ["mine", "date 2026"]),
    ],
)
def test_a_bad_file_is_named_with_model_and_field(tmp_path, text, words):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_prices(path)
    assert [word for word in [str(path), *words] if word not in str(caught.value)] == []


def test_an_unreadable_file_is_an_input_error(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"m: \xff")
    for name in ("absent.yaml", "latin.yaml"):
        with pytest.raises(InputError, match=name):
            read_prices(tmp_path / name)
