"""Progress where there is no terminal: a line now and then, for people or for programs."""

import json

import pytest

from mifuse_cli import console


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as told."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def lines(capsys, log_json, calls, clock):
    with console.progress_bar(quiet=False, log_json=log_json) as progress:
        for seconds, *call in calls:
            clock(seconds)
            progress(*call)
    return capsys.readouterr().err.splitlines()


def test_short_work_is_not_told(capsys, clock):
    assert lines(capsys, False, [(0.01, "encoding", done, 100) for done in range(101)], clock) == []


def test_long_work_is_told_in_sentences(capsys, clock):
    told = lines(capsys, False, [(3, "encoding", done, 100, {"padding": 0.03}) for done in range(101)], clock)
    assert told[0] == "progress: encoding 10 of 100 after 0:00:30, padding 3.0%"
    assert told[-1] == "progress: encoding 100 of 100 after 0:05:00, padding 3.0%" and len(told) == 10


def test_work_that_stalls_is_told_once_a_minute(capsys, clock):
    told = lines(capsys, False, [(5, "asking", 1, 100) for _ in range(60)], clock)
    assert len(told) == 4 and told[-1] == "progress: asking 1 of 100 after 0:04:00"


def test_programs_read_ten_lines(capsys, clock):
    told = lines(capsys, True, [(0.01, "encoding", done, 100) for done in range(101)], clock)
    assert [json.loads(one)["done"] for one in told] == list(range(10, 101, 10))


def test_quiet_is_quiet(capsys):
    with console.progress_bar(quiet=True, log_json=True) as progress:
        assert progress is None
    assert capsys.readouterr().err == ""
