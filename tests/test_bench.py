"""The table of benchmarks: that it is made, not what it says."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("measuring")


@pytest.mark.parametrize(
    ("wanted", "value", "met"),
    [
        ({"least": 3}, 3.0, True),
        ({"least": 3}, 2.9, False),
        ({"most": 1.2}, 1.2, True),
        ({"most": 1.2}, 1.3, False),
        ({}, 1.0, None),
        ({"least": 3}, float("nan"), False),
    ],
)
def test_whether_a_target_is_met(measuring, wanted, value, met):
    row = measuring.Row("fuse", "NumPy", value, "x as fast", **wanted)
    assert row.met is met
    assert ("NO" in measuring.line(row)) is (met is False)


def test_a_process_of_its_own_tells_its_memory_and_time(measuring):
    size = 200 << 20
    found = measuring.apart(lambda: bytearray(b"x") * size)
    assert found.peak_mb > 200 and found.wall_s > 0
    with pytest.raises(SystemExit, match="exit code 3"):
        measuring.apart(lambda: sys.exit(3))


@pytest.mark.slow
@pytest.mark.parametrize("section", ["predicting"])
def test_a_section_makes_rows(section, tmp_path):
    told = tmp_path / "rows.json"
    command = [sys.executable, BENCHMARKS / "run.py", "--only", section, "--json", told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(told.read_text())["rows"]
    assert len(done.stdout.splitlines()) == len(rows) > 2
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in rows)
