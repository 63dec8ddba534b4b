"""Lines of a batch file, and the names by which their answers are found again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import read

from mifuse_cli.lalm.questions.plan import Request
from mifuse_cli.lalm.service.batch import BatchFile, asked_for, custom_id, line

KEY = "0123456789abcdef" * 2


@given(st.text("0123456789abcdef", min_size=32, max_size=32), st.sets(st.integers(0, 40), min_size=1))
def test_a_name_tells_key_and_choices(key, choices):
    name = custom_id(key, tuple(choices))
    assert len(name) <= 64
    assert asked_for(name) == (key, tuple(sorted(choices)))


@given(st.text(max_size=20) | st.from_regex(r".*\.[0-9a-fA-F]{1,8}", fullmatch=True))
def test_a_name_is_read_as_what_it_says_or_not_at_all(name):
    key, choices = asked_for(name)
    assert custom_id(key, choices) == name if choices else key == ""


@pytest.mark.parametrize(
    "name", ["", "a", ".1", "a.", "a.0", "a.-1", "a.0x1", "a.1_0", "a. 1", "a.g", "None"]
)
def test_the_name_of_somebody_else_asks_for_nothing(name):
    assert asked_for(name) == ("", ())


@pytest.mark.parametrize(("choices", "name", "n"), [((0,), "1", {}), ((1, 3), "a", {"n": 2})])
def test_a_line_is_the_request_that_would_be_sent(choices, name, n):
    messages = [{"role": "user", "content": "Für\n\u2028wen?"}]
    fields = {"temperature": 1}
    text = line(Request(KEY, "clip", choices, 1.0, 9, lambda: messages, fields, read), "m")
    assert text.count(b"\n") == 1 and text.endswith(b"\n") and text.isascii()
    assert json.loads(text) == {
        "custom_id": f"{KEY}.{name}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages, "temperature": 1, **n},
    }


def test_a_file_takes_what_is_within_its_limits_and_no_key_twice(tmp_path):
    file = BatchFile(tmp_path, max_requests=3, max_bytes=10)
    file.add("a", b"1234", None)
    assert not file.takes("a", b"1")
    assert file.takes("b", b"123456") and not file.takes("b", b"1234567")
    file.add("b", b"56", None)
    file.add("c", b"7", None)
    assert not file.takes("d", b"8")
    file.content.seek(0)
    assert file.content.read() == b"1234567"
    assert list(tmp_path.iterdir()) == []
    assert file.tag != BatchFile(tmp_path, 3, 10).tag
