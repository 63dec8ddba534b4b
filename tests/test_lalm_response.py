"""What bodies say: text and tokens of a response."""

import json

import pytest

from mifuse_cli.lalm.answers.response import MOST_TOKENS, Response, decode


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "sad"}, "sad"),
        ({"content": [{"type": "text", "text": "sa"}, {"type": "text", "text": "d"}]}, "sad"),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": ["sa", "d"]}, "sad"),
        ({"content": {"type": "text", "text": "sad"}}, "sad"),
        ({"content": [{"type": "text", "text": {"value": "sad"}}]}, "sad"),
        ({"content": [{"type": "message", "content": [{"type": "output_text", "text": "sad"}]}]}, "sad"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"text": "sad"},
                ]
            },
            "sad",
        ),
        ({"content": [{"type": "reasoning", "text": "happy"}, {"type": "text", "text": "sad"}]}, "sad"),
        ({"content": {"sad": 100}}, '{"sad": 100}'),
        ({"content": {"type": "image", "url": "x"}}, ""),
        ({"content": None, "audio": {"id": "a", "transcript": "sad"}}, "sad"),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"sad": 100}'}}]},
            '{"sad": 100}',
        ),
        ({"content": None, "function_call": {"arguments": {"sad": 100}}}, '{"sad": 100}'),
        ({"content": None, "tool_calls": [7]}, ""),
        ({"content": None, "reasoning_content": "sad"}, ""),
        ({"content": None}, ""),
        ("sad", ""),
        (None, ""),
    ],
)
def test_a_response_gives_the_text(message, text):
    raw = json.dumps({"choices": [{}, {"message": message}]}).encode()
    assert (decode(raw).choice(1).text, decode(raw).usage) == (
        text,
        dict.fromkeys(("prompt", "completion", "total", "audio", "cached"), -1),
    )
    assert decode(raw).choice(0).text == decode(raw).choice(2).text == decode(raw).choice(-1).text == ""


@pytest.mark.parametrize("choice", [{"text": "sad"}, {"delta": {"content": "sad"}}])
def test_a_choice_of_another_form_gives_its_text(choice):
    assert Response.of({"choices": [choice]}).choice(0).text == "sad"


def test_parts_without_end_give_no_text():
    parts = "sad"
    for _ in range(500):
        parts = [{"content": parts}]
    assert Response.of({"choices": [{"message": {"content": parts}}]}).choice(0).text == ""


def test_a_response_gives_the_token_numbers():
    details = {"audio_tokens": 60, "cached_tokens": 5}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": details}
    expected = {"prompt": 1, "completion": 2, "total": 3, "audio": 60, "cached": 5}
    assert decode(json.dumps({"usage": usage}).encode()).usage == expected
    usage["prompt_tokens_details"] = {"multimodal_tokens": {"audio": 60}, "cached_tokens": True}
    assert decode(json.dumps({"usage": usage}).encode()).usage == {**expected, "cached": -1}


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"null", b"[]", b'{"choices": 3}', b'{"usage": []}', b"[" * 99999]
)
def test_decode_never_raises(raw):
    text, usage = decode(raw).choice(0).text, decode(raw).usage
    assert text == ""
    assert set(usage.values()) == {-1}


ANSWER = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"sad": 100}'}}
MUTE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
ERROR = {"code": 502, "message": "upstream failed"}


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({"error": ERROR}, {"error": ERROR}),
            ({"error": ERROR, "choices": [MUTE]}, ERROR),
            ({"error": ERROR, "choices": None}, {"error": ERROR, "choices": None}),
            ({"choices": [{**MUTE, "error": ERROR}]}, ERROR),
            ({"choices": [{**ANSWER, "finish_reason": "error", "error": ERROR}]}, ERROR),
            ({"choices": [{**ANSWER, "finish_reason": "error"}], "error": ERROR}, ERROR),
            ({"choices": [{**ANSWER, "finish_reason": "error"}]}, {"message": "finish_reason: error"}),
            ({"choices": [{**MUTE, "message": {"content": "", "error": ERROR}}]}, ERROR),
            ({**ERROR, "choices": [MUTE]}, {**ERROR, "choices": [MUTE]}),
            ({"object": "error", "choices": [MUTE]}, {"object": "error", "choices": [MUTE]}),
        ],
    )
    def test_instead_of_an_answer_are_none(self, body, error):
        response = Response.of(body)
        assert (response.choices, response.error) == ((), error)
        assert response.begun == bool(body.get("choices"))

    @pytest.mark.parametrize(
        "body",
        [
            {"choices": [ANSWER], "error": None},
            {"choices": [ANSWER], "error": {"code": 0, "message": "ok"}},
            {"choices": [{**ANSWER, "error": {"code": "200"}}]},
            {"choices": [ANSWER], "error": {"message": "no usage"}},
            {"choices": [ANSWER], "code": 200},
            {"choices": [MUTE]},
            {"choices": [{**MUTE, "finish_reason": "length"}], "code": 0},
            {"choices": [{**MUTE, "finish_reason": "content_filter"}], "error": ERROR},
        ],
    )
    def test_beside_an_answer_leave_it(self, body):
        assert len(Response.of(body).choices) == 1

    def test_of_some_choices_leave_the_others(self):
        body = {"choices": [{**MUTE, "error": ERROR}, ANSWER, {**ANSWER, "finish_reason": "error"}]}
        (choice,) = Response.of(body).choices
        assert choice.text == '{"sad": 100}'

    def test_in_a_stream_end_it(self):
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": '{"sad": 1'}}]},
            {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], "error": ERROR},
        ]
        raw = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
        assert (decode(raw).choices, decode(raw).error, decode(raw).begun) == ((), ERROR, True)
        # Broken off in the middle, with a status of its own.
        raw = raw.replace(b'"finish_reason": "error"', b'"finish_reason": null')
        assert (decode(raw).choices, decode(raw).begun) == ((), True)
        assert decode(raw).error["error"] == ERROR


class TestNumbers:
    @pytest.mark.parametrize("number", [-1, -5, MOST_TOKENS + 1, 2**31, 2**63, 10**400, 1.5, "7", True, None])
    def test_that_are_no_counts_of_tokens_are_not_known(self, number):
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        details = {"audio_tokens": number, "cached_tokens": number}
        body = {"usage": dict.fromkeys(names, number) | {"prompt_tokens_details": details}}
        assert set(Response.of(body).usage.values()) == {-1}

    def test_of_any_length_spoil_nothing_else(self):
        raw = json.dumps({"choices": [ANSWER], "usage": {"prompt_tokens": 7}}).encode()
        raw = raw.replace(b"7}", b"7, " + b'"completion_tokens": ' + b"9" * 5000 + b"}")
        assert decode(raw).choice(0).text == '{"sad": 100}'
        assert (decode(raw).usage["prompt"], decode(raw).usage["completion"]) == (7, -1)


def test_a_body_of_choices_without_end_is_read_to_a_bound():
    assert len(Response.of({"choices": [{}] * 100_000}).choices) == 4096


def test_bytes_that_are_no_utf_8_spoil_no_answer():
    raw = json.dumps({"choices": [ANSWER], "model": "m"}).encode()
    assert decode(raw.replace(b'"m"', b'"m\xff\xfe"')).choice(0).text == '{"sad": 100}'
    assert decode(b"data: " + raw.replace(b"message", b"delta").replace(b'"m"', b'"\xff"')).choices
