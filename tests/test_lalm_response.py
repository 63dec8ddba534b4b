"""What bodies say: text and tokens of a response."""

import json

import pytest

from mifuse_cli.lalm.answers.response import decode


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "sad"}, "sad"),
        ({"content": [{"type": "text", "text": "sa"}, {"type": "text", "text": "d"}]}, "sad"),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
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
