"""Columns that bound a clip within a recording."""

import math

import pytest

from mifuse_cli.errors import InputError
from mifuse_cli.segments import Bounds, Segments, numbering, seconds_of


def bounds(comma=False, **row):
    return Segments.of(list(row), "t.csv", decimal_comma=comma).bounds(row, "t.csv, line 2")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        (" 1.5 ", 1.5),
        ("1.5s", 1.5),
        ("1500 ms", 1.5),
        ("15e-1", 1.5),
        ("1,5", 1.5),
        ("0,500", 0.5),
        ("00:01.5", 1.5),
        ("1:02:03", 3723),
        ("00:16:16,059", 976.059),
        ("0 days 00:00:01.500000", 1.5),
        ("1 days 00:00:01", 86401),
        ("1 day, 0:00:01", 86401),
        ("2 days", 172800),
        ("0:00:01.500000", 1.5),
        ("NaT", None),
        ("nan", None),
        ("", None),
    ],
)
def test_times(text, seconds):
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


def test_a_comma_that_could_be_one_of_thousands():
    assert math.isnan(seconds_of("1,500"))
    assert seconds_of("1,500", decimal_comma=True) == 1.5


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"start": "0.5", "end": "1"}, (0.5, 1, None)),
        ({"begin": "0.5", "end": "1"}, (0.5, 1, None)),
        ({"start": "0.5", "duration": "0.5"}, (0.5, 1, None)),
        ({"offset": "0.5", "duration": "0.5"}, (0.5, 1, None)),
        ({"offset": "0.5", "duration": ""}, (0.5, None, None)),
        ({"onset": "0.5", "offset": "1"}, (0.5, 1, None)),
        ({"onset": "0.5", "duration": "0.5"}, (0.5, 1, None)),
        ({"start_ms": "500", "end_ms": "1000"}, (0.5, 1, None)),
        ({"start_time": "00:00.5", "end_time": "00:01"}, (0.5, 1, None)),
        ({"start": "0 days", "end": ""}, (0, None, None)),
        ({"start": "0 days 00:00:00", "end": "NaT"}, (0, None, None)),
        ({"start": "", "end": "1.0"}, (0, 1, None)),
        ({"end": "1.0"}, (0, 1, None)),
        ({"start": "0.5", "end": "1", "duration": "99"}, (0.5, 1, None)),
        ({"duration": "2.0"}, (0, None, None)),
        ({"onset": "0.5", "duration_s": "0.5"}, (0.5, 1, None)),
        ({"start": "0.5", "end": "", "duration_s": "0.5"}, (0.5, None, None)),
        ({"start": "0.5", "duration": "0.5", "duration_s": "9"}, (0.5, 1, None)),
        ({"duration_s": "2.0"}, (0, None, None)),
        ({"channel": "left"}, (0, None, 0)),
        ({"channel": "R"}, (0, None, 1)),
        ({"channel": "B"}, (0, None, 1)),
        ({"channel": ""}, (0, None, None)),
        ({"channel": "2.0"}, (0, None, 1)),
        ({"channel": "0"}, None),
        ({"channel": "middle"}, None),
        ({"start": "1", "end": "0.5"}, None),
        ({"start": "1", "end": "1"}, None),
        ({"start": "-1", "end": "0.5"}, None),
        ({"start": "soon", "end": "0.5"}, None),
        ({"start": "1,500", "end": "2.5"}, None),
    ],
)
def test_bounds(row, expected):
    if expected is None:
        with pytest.raises(InputError, match=r"t\.csv, line 2: "):
            bounds(**row)
    else:
        assert bounds(**row) == expected


@pytest.mark.parametrize(
    "names", [["start", "begin"], ["start", "offset"], ["end", "stop"], ["start", "start_ms", "end"]]
)
def test_two_columns_for_one_bound(names):
    with pytest.raises(InputError, match="all seem to be the"):
        Segments.of(names, "t.csv")


def test_other_columns_that_sound_like_bounds():
    names = [
        "start",
        "StartTime",
        "segment_end",
        "end-frame",
        "xmin",
        "BEGIN",
        "gender",
        "endearment",
        "restarts",
    ]
    assert Segments.of(names, "t.csv").unread(names) == names[1:6]
    assert Segments.of(["onset", "offset"], "t.csv").unread(["onset", "offset"]) == []


def test_channels_count_from_zero_if_there_is_a_zero():
    assert numbering(["0", "1"]) == numbering(["", "0.0"]) == 0
    assert numbering(["1", "2"]) == numbering(["left"]) == 1


def test_names_of_bounds():
    assert Bounds().name == Bounds(0.0, None).name == ""
    assert Bounds(0.5, 1.25, 1).name == "_0.5-1.25_B"
    assert Bounds(0.5).name == "_0.5-" and Bounds(0.0, None, 0).name == "_A"
