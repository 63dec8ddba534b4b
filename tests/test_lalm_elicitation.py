"""Ways of asking: what the request holds, and what is read out of the answer."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.elicitation import LETTERS, MODES, read_answer
from mifuse_cli.lalm.answers.parsing import Status, parse_answer
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.questions.prompts import Wording, label_order
from mifuse_cli.lalm.questions.question_options import QuestionOptions

CLASSES = ("angry", "happy", "neutral", "sad")
ORDER = (2, 0, 3, 1)
FULL = '{"angry": 70, "happy": 10, "neutral": 15, "sad": 5}'


def body(text="", *, finish="stop", message=None, logprobs=None):
    """A chat completion whose second choice is the one of interest."""
    message = {"role": "assistant", "content": text, "refusal": None, **(message or {})}
    choices = [
        {"index": 0, "message": {"content": "I cannot help."}, "finish_reason": "stop"},
        {"index": 1, "message": message, "finish_reason": finish, "logprobs": logprobs},
    ]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 90}}).encode()


def read(mode, text="", *, accept_label_only=False, **parts):
    response = decode(body(text, **parts))
    return read_answer(mode, response, 1, CLASSES, ORDER, accept_label_only=accept_label_only).parsed


def alternatives(tokens, drawn=None):
    """Log-probabilities of a first token, given as probabilities."""
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in tokens.items()]
    return {"content": [{**(drawn or top[0]), "top_logprobs": top}]}


def letters(tokens, **parts):
    return read("logprob", "A", finish="length", logprobs=alternatives(tokens, **parts))


def fields_of(mode, classes, **options):
    return QuestionOptions("h", "m", Wording(), tuple(classes), elicit=mode, **options).fields()


# --- requests ---------------------------------------------------------------------------------------------


def test_fields_of_each_mode():
    plain = {"temperature": 1.0, "max_completion_tokens": 256}
    assert fields_of("verbalized", CLASSES, temperature=1.0) == plain
    assert fields_of("label", CLASSES, temperature=1.0) == plain
    fields = fields_of("logprob", CLASSES, temperature=0.5)
    assert fields == {"temperature": 0.5, "max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20}
    for mode in MODES:
        fields = fields_of(mode, CLASSES, temperature=1.0, max_tokens=4000)
        assert fields["max_completion_tokens"] == 4000


def test_a_schema_admits_what_the_parser_reads():
    def schema(mode):
        form = fields_of(mode, CLASSES, temperature=1, json_schema=True)["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
        one = form["json_schema"]["schema"]
        assert one["additionalProperties"] is False and one["required"] == list(one["properties"])
        return one["properties"]

    values = dict.fromkeys(schema("verbalized"), 25)
    assert read("verbalized", json.dumps(values)).probs == (0.25,) * 4
    (name,) = schema("label")
    for k, label in enumerate(schema("label")[name]["enum"]):
        assert read("label", json.dumps({name: label})).probs[k] == 1


def test_logprob_has_its_limits():
    names = [f"emotion {k}" for k in range(len(LETTERS) + 1)]
    assert fields_of("logprob", names[:-1], temperature=1)
    with pytest.raises(UsageError, match="21 classes"):
        fields_of("logprob", names, temperature=1)
    with pytest.raises(UsageError, match="json-schema"):
        fields_of("logprob", CLASSES, temperature=1, json_schema=True)


# --- answers ----------------------------------------------------------------------------------------------


def test_a_verbalized_answer_is_parsed():
    answered = read_answer("verbalized", decode(body(FULL)), 1, CLASSES, ORDER)
    assert answered.parsed == parse_answer(FULL, CLASSES)
    assert (answered.text, answered.usage["prompt"], answered.usage["total"]) == (FULL, 90, -1)


@pytest.mark.parametrize("mode", ["verbalized", "label"])
@pytest.mark.parametrize("text", ["", "<think>angry or", '{"angry": 70, "hap', "The labels angry and sad"])
def test_an_unreadable_answer_at_the_token_limit_is_truncated(mode, text):
    assert read(mode, text, finish="length", accept_label_only=True).status is Status.TRUNCATED
    assert read(mode, text).status not in (Status.OK, Status.TRUNCATED)


def test_a_readable_answer_at_the_token_limit_is_read():
    assert read("verbalized", FULL + " The voice is", finish="length").status is Status.OK
    assert read("label", "Angry. The voice is", finish="length").status is Status.OK
    assert read("verbalized", "I cannot determine", finish="length").status is Status.REFUSED
    # Further labels may have followed.
    assert read("verbalized", "Angry", finish="length", accept_label_only=True).status is Status.TRUNCATED


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "parts",
    [
        {"finish": "content_filter"},
        {"message": {"content": None, "refusal": "No."}},
        {"message": {"content": [{"type": "refusal", "refusal": "No."}]}},
    ],
)
def test_a_refusal_by_the_server_is_refused(mode, parts):
    assert read(mode, "angry", **parts).status is Status.REFUSED


def test_a_lone_label_counts_where_it_is_accepted():
    assert read("verbalized", "Sad.").status is Status.LABEL_ONLY
    accepted = read("verbalized", "Sad.", accept_label_only=True)
    assert (accepted.probs, accepted.status, accepted.flags) == ((0, 0, 0, 1), Status.OK, ("label-only",))
    asked = read("label", "Sad.")
    assert (asked.probs, asked.status, asked.flags) == ((0, 0, 0, 1), Status.OK, ())
    assert read("verbalized", FULL, accept_label_only=True) == parse_answer(FULL, CLASSES)


@pytest.mark.parametrize(
    ("text", "probs", "flags", "status"),
    [
        ("angry (confidence: 80%)", (1, 0, 0, 0), set(), Status.OK),
        (FULL, (1, 0, 0, 0), {"argmax", "percent"}, Status.OK),
        ('{"angry": 0.4, "happy": 0.4, "neutral": 0.1, "sad": 0.1}', None, {"tie"}, Status.UNPARSED),
        ("angry or sad", None, set(), Status.UNPARSED),
        ("I cannot tell.", None, set(), Status.REFUSED),
        (" ", None, set(), Status.EMPTY),
    ],
)
def test_a_label_is_all_or_nothing(text, probs, flags, status):
    answer = read("label", text)
    assert (answer.probs, set(answer.flags), answer.status) == (probs, flags, status)


# --- letters ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.integers(0, 100), st.floats(0.99, 1))
def test_probabilities_of_letters_go_to_their_classes(weights, sample, mass):
    order = label_order("ab", sample, 4)
    probs = [weight / sum(weights) for weight in weights]
    tokens = {LETTERS[i]: probs[k] * mass for i, k in enumerate(order)}
    raw = body(logprobs=alternatives(tokens), finish="length")
    answer = read_answer("logprob", decode(raw), 1, CLASSES, order).parsed
    assert (answer.status, answer.flags) == (Status.OK, ())
    assert answer.probs == pytest.approx(probs)
    assert answer.total == pytest.approx(mass)


def test_every_way_to_write_a_letter_counts():
    answer = letters(
        {"A": 0.2, " A": 0.1, "a": 0.1, "A.": 0.1, "▁B": 0.2, '"B': 0.2, "(C)": 0.05, "D\n": 0.05}
    )
    assert answer.status is Status.OK
    by_letter = dict(zip(ORDER, (0.5, 0.4, 0.05, 0.05), strict=True))
    assert answer.probs == pytest.approx([by_letter[k] for k in range(4)])


def test_mass_elsewhere_is_noted_or_too_much():
    answer = letters({"A": 0.6, "B": 0.2, "I": 0.1, "<think>": 0.1})
    assert (answer.status, answer.flags) == (Status.OK, ("filled", "renorm"))
    assert answer.total == pytest.approx(0.8)
    assert answer.probs == pytest.approx((0.25, 0, 0.75, 0))
    answer = letters({"<think>": 0.6, "A": 0.2, "AB": 0.1, "E": 0.1})
    assert (answer.status, answer.probs) == (Status.INCOMPLETE, None)
    assert answer.total == pytest.approx(0.2)
    assert letters({"A": 0.9, " A": 0.9}).status is Status.BAD_SUM


def test_the_token_drawn_counts_once():
    tokens = {"A": 0.5, "B": 0.25}
    outside = letters(tokens, drawn={"token": "D", "logprob": math.log(0.25)})
    assert outside.probs == pytest.approx((0.25, 0.25, 0.5, 0))
    inside = letters(tokens, drawn={"token": "B", "logprob": math.log(0.25)})
    assert inside.total == pytest.approx(0.75)


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, [], {"content": None}, {"content": []}, {"content": [{"token": "A", "top_logprobs": []}]}],
)
def test_without_logprobs_a_letter_says_nothing(logprobs):
    answer = read("logprob", "A", logprobs=logprobs)
    assert (answer.status, answer.flags, answer.probs) == (Status.UNPARSED, ("no-logprobs",), None)


# --- anything ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "refusal", "text", "finish_reason", "logprobs"])
            | st.sampled_from(
                ["top_logprobs", "token", "logprob", "usage", "prompt_tokens_details", "audio_tokens"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
TOKENS = st.lists(
    st.fixed_dictionaries(
        {"token": st.sampled_from(["A", " b", "C.", "x", None, 3])},
        optional={"logprob": JSON | st.floats() | st.sampled_from([0, -1, 10**400, -(10**400)])},
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MODES),
    st.one_of(
        st.binary(),
        JSON.map(lambda value: json.dumps(value).encode()),
        JSON.map(lambda value: body("Sad.", message={"content": value}, logprobs=value)),
        TOKENS.map(lambda top: body(logprobs={"content": [{"token": "A", "top_logprobs": top}]})),
        st.text().map(body),
    ),
    st.integers(-1, 2),
)
def test_no_body_makes_it_raise(mode, raw, choice):
    response = decode(raw)
    answered = read_answer(mode, response, choice, CLASSES, ORDER)
    assert (answered.text, answered.usage) == (response.choice(choice).text, response.usage)
    parsed = answered.parsed
    assert (parsed.status is Status.OK) == (parsed.probs is not None)
    if parsed.probs is not None:
        assert len(parsed.probs) == 4 and min(parsed.probs) >= 0
        assert math.fsum(parsed.probs) == pytest.approx(1, abs=1e-6)
