"""A few inputs of every kind that `fuzz` makes; many are tried by ``python -m tests.reliability.fuzz --count N``."""

import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz

from mifuse_cli.corpora import copies
from mifuse_cli.kaldi import checking
from mifuse_cli.lalm.journal import database
from mifuse_cli.model import store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzz.World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def ended(monkeypatch):
    """How commands ended, in the order in which they were called."""
    ended, mifuse = [], fuzz.mifuse

    def listed(*arguments):
        ended.append(mifuse(*arguments))
        return ended[-1]

    monkeypatch.setattr(fuzz, "mifuse", listed)
    return ended


def refusals(ended):
    """Different errors, names and numbers aside."""
    errors = [line for one in ended if one.exit_code for line in one.stderr.splitlines() if "error: " in line]
    return {" ".join(re.findall(r"\b[a-z]+\b", re.sub(r"\S*/\S*|'.*?'", "", error)))[:60] for error in errors}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_damaged_input_ends_in_an_error_that_tells(world, name):
    assert fuzz.run(name, 12, seed=1, world=world) == []


@pytest.mark.slow  # minutes: a hundred inputs of every kind
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_much_damaged_input_ends_in_an_error_that_tells(world, name):
    assert fuzz.run(name, 100, seed=2, world=world) == []


@pytest.mark.parametrize("name", ["kaldi", "corpora", "databases"])
def test_damage_is_met_in_many_places(world, ended, name):
    fuzz.run(name, 30, seed=3, world=world)
    codes = [one.exit_code for one in ended]
    assert codes.count(0) >= len(codes) / 10 and codes.count(3) >= len(codes) / 10
    assert len(refusals(ended)) >= 5


def crashes(*arguments, **options):
    raise KeyError("planted")


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("kaldi", checking, "_text_faults"),
        ("corpora", copies, "audio_below"),
        ("databases", database, "sqlite_fault"),
        ("databases", store, "sqlite_fault"),
    ],
)
def test_a_planted_fault_is_found(world, monkeypatch, name, module, function):
    monkeypatch.setattr(module, function, crashes)
    faults = fuzz.run(name, 16, seed=4, world=world)
    assert faults and all("KeyError: 'planted'" in fault for fault in faults)


def test_a_crash_is_found(world, monkeypatch):
    monkeypatch.setitem(fuzz.TARGETS, "crashes", crashes)
    (fault,) = fuzz.run("crashes", 1, seed=0, world=world)
    assert "crashes, seed 0, number 0" in fault and "KeyError" in fault


@pytest.mark.parametrize("limit", ["SECONDS", "WAIT"])
def test_a_hang_is_found_though_the_command_catches_it(world, monkeypatch, limit):
    """A command takes every OSError, such as TimeoutError, for a fault of a file."""

    def hangs(path):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if limit == "WAIT":
                time.sleep(1)

    monkeypatch.setattr(fuzz, limit, 0.2)
    monkeypatch.setattr("mifuse_cli.steps.show.artifacts.read", hangs)
    monkeypatch.setitem(
        fuzz.TARGETS, "hangs", lambda world, rng, place: fuzz.mifuse("show", world.root / "lalm.h5")
    )
    (fault,) = fuzz.run("hangs", 1, seed=0, world=world)
    assert "Hang" in fault


def test_a_wrong_exit_code_is_found(world, monkeypatch):
    def ends():
        raise SystemExit(6)

    monkeypatch.setattr(fuzz.cli, "main", ends)
    monkeypatch.setitem(fuzz.TARGETS, "ends", lambda world, rng, place: fuzz.mifuse("show", "x"))
    (fault,) = fuzz.run("ends", 1, seed=0, world=world)
    assert "ended with 6" in fault


def test_too_much_memory_is_found(world, monkeypatch):
    monkeypatch.setattr(fuzz, "MEMORY", 1 << 20)
    monkeypatch.setitem(fuzz.TARGETS, "grows", lambda world, rng, place: None)
    (fault,) = fuzz.run("grows", 1, seed=0, world=world)
    assert "MB of memory" in fault
