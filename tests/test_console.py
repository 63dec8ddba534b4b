"""What a terminal shows: lines of progress for people or for programs, and results within its width."""

import json

import numpy as np
import pytest
import soundfile
from conftest import mifuse
from test_artifacts import MAKERS

from mifuse_cli import artifacts, console
from mifuse_cli.errors import size_of


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


HEADER = ["dataset", "shape", "holds"]
ROWS = [["hidden", "24 x 3", "hidden states of the encoder, from the first to the highest"], ["a", "-", "b"]]


class TestWidth:
    """Nothing but long words is wider than the terminal, and no word is lost."""

    @pytest.mark.parametrize("columns", [30, 44, 80, 200])
    def test_a_table(self, monkeypatch, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = console.table(HEADER, ROWS)
        assert max(map(len, text.splitlines())) <= columns
        words = [word for row in [HEADER, *ROWS] for cell in row for word in cell.split()]
        assert sorted(text.split()) == sorted(words)
        assert (len(text.splitlines()) == 3) == (columns >= 80)

    def test_a_word_that_is_too_long_stays_whole(self, monkeypatch):
        """It can be copied; the words beside it still give way."""
        monkeypatch.setenv("COLUMNS", "40")
        text = console.table(["parent", "path"], [["clips of it", "/" + "x" * 90]])
        assert text.splitlines() == ["parent  path", "clips   /" + "x" * 90, "of it"]
        assert "/" + "x" * 90 in console.describe({"a": "at /" + "x" * 90}).split()

    def test_more_columns_than_there_is_room_for(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        rows = [["mifuse-cross-fit", *["61.2"] * 9]]
        assert len(console.table(["UA %", *["a-to-b"] * 9], rows).splitlines()) == 2

    def test_numbers_stand_right_and_words_left(self):
        text = console.table(["name", "n", "what"], [["a", "10", "../b"], ["b", "9", "-"]])
        assert text.splitlines() == ["name   n  what", "a     10  ../b", "b      9  -"]

    def test_values(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "30")
        text = console.describe(
            {"a": "one two three four five six", "long": None, "c": [], "d": 0, "e": "x" * 40}
        )
        assert text.splitlines() == [
            "a     one two three four five",
            "      six",
            "long  -",
            "c     -",
            "d     0",
            "e     " + "x" * 40,
        ]
        assert console.describe({"a": "x " * 40}, whole=("a",)).count("\n") == 0

    def test_where_there_is_no_terminal(self, monkeypatch):
        monkeypatch.delenv("COLUMNS")
        monkeypatch.setattr(console.shutil.os, "get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError))
        assert max(map(len, console.describe({"a": "word " * 100}).splitlines())) <= 80


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (12_345, "12.3 kB"), (999_600, "1 MB"), (1_300_000, "1.3 MB"), (23_456_000_000, "23.5 GB")],
)
def test_sizes(count, text):
    assert size_of(count) == text


def test_names_of_others_do_not_steer_the_terminal(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(1600) / 5) / 2, 16_000)
    (tmp_path / "t.csv").write_text("file,emotion,\x1b]0;n\x07_start\na.wav,s\x1b[31mad \u00e9,1\n")
    result = mifuse("validate", tmp_path / "t.csv")
    assert "s\\x1b[31mad \u00e9 1" in result.stdout and "\\x1b]0;n\\x07_start" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_show_fits_a_terminal(pipeline, corpora, tmp_path):
    made = tmp_path / "made"
    for command in (
        ("evaluate", "--model", pipeline.student, "--manifest", corpora.labels, "--out", made / "e.h5"),
        ("predict", "--model", pipeline.student, "--wav-dir", corpora.wav_dir, "--out", made / "p.h5"),
        ("fuse", "--lalm", pipeline.lalm, "--source", pipeline.source, "--out", made / "f.h5"),
    ):
        assert mifuse(*command).exit_code == 0
    for kind in ("compared", "target"):
        MAKERS[kind]().save(made / f"{kind}.h5")
    found = [*made.iterdir(), *pipeline.root.glob("*.h5"), pipeline.model, pipeline.student]
    kinds = {artifacts.read_header(path)[0] for path in found if path.is_file()}
    assert kinds == artifacts.KINDS.keys() - {"training"}  # of which checkpoints are
    for path in found:
        told = mifuse("show", path, COLUMNS="80")
        assert told.exit_code == 0, told.stderr
        lines = told.stdout.splitlines()
        assert all(
            len(line) <= 80 or max(map(len, line.split())) > 30 for line in lines if "command " not in line
        )
        assert " None" not in told.stdout


def test_quiet_is_quiet(capsys):
    with console.progress_bar(quiet=True, log_json=True) as progress:
        assert progress is None
    assert capsys.readouterr().err == ""
