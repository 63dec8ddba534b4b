import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.lalm.parsing import Status, parse_answer

CLASSES = ("angry", "happy", "neutral", "sad")

READ = [
    # text, probabilities, flags
    ('{"angry": 70, "happy": 10, "neutral": 15, "sad": 5}', (0.7, 0.1, 0.15, 0.05), {"percent"}),
    ('{"sad": 0.05, "neutral": 0.15, "angry": 0.7, "happy": 0.1}', (0.7, 0.1, 0.15, 0.05), set()),
    ('\ufeff```json\n{"angry": 1, "happy": 0, "neutral": 0, "sad": 0}\n```', (1, 0, 0, 0), set()),
    (
        'The tone suggests this:\n{"angry": 0.5, "happy": 0.5, "neutral": 0, "sad": 0}\nAsk me for more.',
        (0.5, 0.5, 0, 0),
        set(),
    ),
    ('{"angry": "20%", "happy": "30 %", "neutral": "0%", "sad": "50%"}', (0.2, 0.3, 0, 0.5), {"percent"}),
    ('{"Angry": 0.2, "HAPPY ": 0.3, "Neutral": 0, "Sad": 0.5}', (0.2, 0.3, 0, 0.5), set()),
    ('{"Happy": 0.4, "Sad": 0.6}', (0, 0.4, 0, 0.6), {"filled"}),
    ('{"sad": 0.95}', (0, 0, 0, 1), {"filled", "renorm"}),
    # repaired
    ("{'angry': 20, 'happy': 30, 'neutral': 0, 'sad': 50}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ("{“angry”: 20, “happy”: 30, “neutral”: 0, “sad”: 50,}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ("{angry: 20%, happy: 30%, neutral: 0%, sad: 50%}", (0.2, 0.3, 0, 0.5), {"percent", "repaired"}),
    ('{"angry": 0,2, "happy": 0,3, "neutral": 0, "sad": 0,5}', (0.2, 0.3, 0, 0.5), {"repaired"}),
    (
        '{"angry": 20, "happy": 30, "neutral": 0, "sad": 50',
        (0.2, 0.3, 0, 0.5),
        {"percent", "repaired", "unclosed"},
    ),
    ('{"angry": NaN, "happy": 0, "neutral": 0, "sad": 1.0}', (0, 0, 0, 1), {"filled", "invalid"}),
    ('{"angry": None, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), {"filled", "invalid", "repaired"}),
    # other shapes
    ('{"emotions": {"angry": 0.2, "happy": 0.3, "neutral": 0, "sad": 0.5}}', (0.2, 0.3, 0, 0.5), set()),
    (
        '{"label": "sad", "scores": {"angry": 20, "happy": 30, "neutral": 0, "sad": 50}}',
        (0.2, 0.3, 0, 0.5),
        {"percent"},
    ),
    ('[["angry", 0.2], ["happy", 0.3], ["neutral", 0], ["sad", 0.5]]', (0.2, 0.3, 0, 0.5), set()),
    ('[{"angry": 0.2}, {"happy": 0.3}, {"neutral": 0}, {"sad": 0.5}]', (0.2, 0.3, 0, 0.5), set()),
    (
        '[{"label": "sad", "score": 0.5}, {"label": "joy", "score": 0.3}, {"label": "anger", "score": 0.2}]',
        (0.2, 0.3, 0, 0.5),
        {"filled"},
    ),
    ('{"reason": "a } in a string", "angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    ('[note] {"angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    # other words
    ('{"anger": 10, "Joy": 20, "neutrality": 30, "Sadness": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"Wut": 10, "Freude": 20, "neutral": 30, "Trauer": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"colère": 10, "joie": 20, "neutre": 30, "tristesse": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"enojo": 10, "alegría": 20, "neutro": 30, "tristeza": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"złość": 10, "radość": 20, "neutralny": 30, "smutek": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    ('{"愤怒": 10, "高兴": 20, "中性": 30, "悲伤": 40}', (0.1, 0.2, 0.3, 0.4), {"percent"}),
    # sums and labels that are not classes
    ('{"angry": 0.3, "happy": 0.3, "neutral": 0.2, "sad": 0.21}', None, set()),
    ('{"angry": 30, "happy": 30, "neutral": 30, "sad": 30}', (0.25,) * 4, {"percent", "renorm"}),
    (
        '{"angry": 48, "happy": 48, "neutral": 0, "sad": 0, "bored": 4}',
        None,
        {"percent", "dropped", "renorm"},
    ),
    ('{"angry": 1, "happy": 0, "neutral": 0, "sad": 0, "confidence": 0.9}', (1, 0, 0, 0), set()),
    # thoughts
    (
        '<think>{"angry": 1}, or not?</think>{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}',
        (0, 0, 0, 1),
        set(),
    ),
    ('maybe {"angry": 1}</think>\n{"angry": 0, "happy": 0, "neutral": 0, "sad": 1}', (0, 0, 0, 1), set()),
    # no JSON
    ("Angry: 0.7\nHappy: 0.1\nNeutral: 0.15\nSad: 0.05", (0.7, 0.1, 0.15, 0.05), {"lines"}),
    ("- **Angry**: 70%\n- **Happy**: 30%\n- Neutral: 0%\n- Sad: 0%", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("| angry | 70 |\n| happy | 30 |\n| neutral | 0 |\n| sad | 0 |", (0.7, 0.3, 0, 0), {"lines", "percent"}),
    ("Most likely angry (70%), happy (30%)", (0.7, 0.3, 0, 0), {"filled", "lines", "percent"}),
    ('{"angry": 70 "happy": 30, "neutral": 0, "sad": 0}', (0.7, 0.3, 0, 0), {"lines", "percent"}),
]


@pytest.mark.parametrize(("text", "probs", "flags"), READ)
def test_reads(text, probs, flags):
    answer = parse_answer(text, CLASSES)
    assert answer.status is Status.OK
    assert set(answer.flags) == flags
    assert sum(answer.probs) == pytest.approx(1, abs=1e-9)
    if probs is not None:
        assert answer.probs == pytest.approx(probs, abs=1e-9)


NOT_READ = [
    ("", Status.EMPTY),
    (" \ufeff\n", Status.EMPTY),
    ("<think>Well, the pitch is high", Status.EMPTY),
    ("The emotion is most likely sad.", Status.LABEL_ONLY),
    ('{"emotion": "angry", "confidence": 0.9}', Status.LABEL_ONLY),
    ("**Happy**", Status.LABEL_ONLY),
    ("说话者很生气。", Status.LABEL_ONLY),
    ("I'm sorry, but I can't determine a person's emotional state from this recording.", Status.REFUSED),
    ("As an AI, I do not hear.", Status.REFUSED),
    ("I cannot tell whether the speaker is sad.", Status.REFUSED),
    ("Either angry or sad.", Status.UNPARSED),
    ("A door closes, then silence.", Status.UNPARSED),
    ("[1, 2, 3]", Status.UNPARSED),
    ('{"angry": 60, "angry": 40, "happy": 0, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": 60, "anger": 40, "happy": 0, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": "60%", "happy": 0.4, "neutral": 0, "sad": 0}', Status.UNPARSED),
    ('{"angry": 0.5, "happy": 0.4}', Status.INCOMPLETE),
    ('{"angry": 50, "happy": 30, "neutral": 0, "sad": 0, "bored": 20}', Status.INCOMPLETE),
    ('{"angry": Infinity, "happy": 0.5, "neutral": 0, "sad": 0}', Status.INCOMPLETE),
    ('{"angry": -0.5, "happy": 0.5, "neutral": 0, "sad": 0.4}', Status.INCOMPLETE),
    ('{"angry": 0, "happy": 0, "neutral": 0, "sad": 0}', Status.BAD_SUM),
    ('{"angry": 7, "happy": 2, "neutral": 1, "sad": 0}', Status.BAD_SUM),
    ('{"angry": 100, "happy": 100, "neutral": 0, "sad": 0}', Status.BAD_SUM),
    # cut off within the last number
    ('{"angry": 40, "happy": 5, "neutral": 10, "sad": 4', Status.BAD_SUM),
    ('{"angry": 1e308, "happy": 1e308, "neutral": 1e308, "sad": 1e308}', Status.BAD_SUM),
    ("{" * 70_000, Status.UNPARSED),
]


@pytest.mark.parametrize(("text", "status"), NOT_READ)
def test_gives_no_distribution(text, status):
    answer = parse_answer(text, CLASSES)
    assert answer.status is status
    assert answer.probs is None


def test_total_is_the_sum_before_renormalisation():
    assert parse_answer('{"angry": 30, "happy": 30, "neutral": 0, "sad": 0}', CLASSES).total == 0.6
    assert parse_answer('{"angry": 7, "happy": 2, "neutral": 1, "sad": 0}', CLASSES).total == 10


def test_an_endless_answer_is_not_read():
    answer = parse_answer('{"sad": 1}' + " and so on" * 7000, CLASSES)
    assert (answer.status, answer.flags) == (Status.UNPARSED, ("oversize",))
    thoughts = "<think>" + "hm " * 50_000 + "</think>"
    assert parse_answer(thoughts + '{"sad": 1}', CLASSES).status is Status.OK


def test_exact_class_names_win_over_synonyms():
    answer = parse_answer('{"happy": 20, "joy": 80}', ("joy", "happy"))
    assert answer.probs == (0.8, 0.2)
    assert parse_answer('{"Sad": 20, "sad": 80}', ("sad", "Sad")).probs == (0.8, 0.2)
    # Two classes for one emotion: a third word for it is neither.
    assert parse_answer('{"happiness": 100}', ("joy", "happy")).status is not Status.OK


def test_synonyms_lead_to_the_class_of_the_same_emotion_only():
    assert parse_answer('{"angry": 30, "happy": 70}', ("anger", "joy")).probs == (0.3, 0.7)
    assert parse_answer('{"fear": 50, "angry": 50}', CLASSES).status is Status.INCOMPLETE


def test_hostile_text_takes_no_time():
    pieces = (
        '{"a":',
        "{'a",
        '\\"',
        "{ ",
        "[",
        "```",
        "<think>",
        "a: ",
        "{,\n",
        "| a ",
        "I can not ",
        "9",
        "\ufdfa",
    )
    for piece in pieces:
        start = time.perf_counter()
        parse_answer("{" + piece * (65_000 // len(piece)), CLASSES)
        assert time.perf_counter() - start < 5, piece


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet=st.characters(codec=None)),
        st.text(alphabet="{}[]\":,.%'“0123456789eE+-naIfylsdrghp \n\\<>/`"),
        st.lists(
            st.sampled_from([*READ[0][0].split(), *READ[8][0].split(), "{", "}", "[", "%", "NaN", "é"])
        ).map(" ".join),
    )
)
def test_no_text_makes_it_raise(text):
    answer = parse_answer(text, CLASSES)
    assert (answer.status is Status.OK) == (answer.probs is not None)
    if answer.probs is not None:
        assert len(answer.probs) == 4
        assert all(math.isfinite(p) and p >= 0 for p in answer.probs)
        assert math.fsum(answer.probs) == pytest.approx(1, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any),
    order=st.permutations(range(4)),
    percent=st.booleans(),
    style=st.sampled_from(
        [
            "%s",
            "```json\n%s\n```",
            "Here you are: %s Anything else?",
            "<think>angry: 100</think>%s",
            '{"emotions": %s}',
        ]
    ),
    single=st.booleans(),
    capital=st.booleans(),
)
def test_a_written_distribution_comes_back(weights, order, percent, style, single, capital):
    probs = [weight / sum(weights) for weight in weights]
    names = [name.title() if capital else name for name in CLASSES]
    written = json.dumps({names[k]: probs[k] * (100 if percent else 1) for k in order})
    if single:
        written = written.replace('"', "'")
    answer = parse_answer(style.replace("%s", written), CLASSES)
    assert answer.status is Status.OK
    assert answer.probs == pytest.approx(probs, abs=1e-9)
    assert ("percent" in answer.flags) == percent
    assert answer.total == pytest.approx(1)
