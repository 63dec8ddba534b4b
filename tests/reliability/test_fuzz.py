"""A few inputs of every kind that `fuzz` makes; many are tried by ``python -m tests.reliability.fuzz --count N``."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzz.World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_damaged_input_ends_in_an_error_that_tells(world, name):
    assert fuzz.run(name, 12, seed=1, world=world) == []


@pytest.mark.slow  # minutes: a hundred inputs of every kind
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_much_damaged_input_ends_in_an_error_that_tells(world, name):
    assert fuzz.run(name, 100, seed=2, world=world) == []


def test_a_crash_is_found(world, monkeypatch):
    def crashes(world, rng, place):
        raise KeyError("x")

    monkeypatch.setitem(fuzz.TARGETS, "crashes", crashes)
    (fault,) = fuzz.run("crashes", 1, seed=0, world=world)
    assert "crashes, seed 0, number 0" in fault and "KeyError" in fault
