"""A few trials of every attack; ``python -m tests.reliability`` makes many, of every command, and writes the table."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import attacks
import commands
from attacks import Attack
from file_faults import KILL, FileFaults

QUICK = ("prepare", "pick", "sample-source")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    commands.load()
    root = tmp_path_factory.mktemp("reliability").resolve()
    with commands.steady_lalm() as url:
        made = commands.World(root, url)
        made.build()
        yield made


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in commands.COMMANDS],
)
def attack(world, request):
    return Attack(world, commands.COMMANDS[request.param])


def _needs_calls(attack):
    if attack.command.name == "cache":
        pytest.skip("all that `mifuse cache` does to its files is done by SQLite, below Python's calls")


def test_killed(attack):
    tried = attacks.killed(attack, 2, random.Random(1))
    assert (tried.trials, tried.faults) == (2, [])


def test_killed_at_calls(attack):
    """The last one among them, when all is written but what is under way is not yet cleared."""
    _needs_calls(attack)
    tried = attacks.killed_at_calls(attack, 4, random.Random(1))
    assert (tried.trials, tried.faults) == (4, [])


def test_failing_files(attack):
    _needs_calls(attack)
    tried = attacks.failing(attack, 6, random.Random(1))
    assert (tried.trials, tried.faults) == (6, [])


def test_files_that_cannot_grow(attack):
    tried = attacks.limited(attack, 2, random.Random(1))
    assert (tried.trials, tried.faults) == (2, [])


def test_two_at_once(attack):
    tried = attacks.at_once(attack, 2)
    assert (tried.trials, tried.faults) == (2, [])


class TestFaultsAreFound:
    """That the attacks are no attacks in name only."""

    @pytest.fixture
    def attack(self, world):
        return Attack(world, commands.COMMANDS["pick"])

    def test_half_a_file(self, attack):
        with attack.trial(replaces=False) as place:
            assert attack.start(place).wait().code == 0 and not attack.partial(place, replaces=False)
            (place / "out.csv").write_text((place / "out.csv").read_text()[:-9])
            assert attack.partial(place, replaces=False) and attack.strange(place, replaces=False)

    def test_a_result_that_is_another(self, attack, monkeypatch):
        monkeypatch.setattr(attack, "new", {"out.csv": {"out.csv": "0f"}})
        with attack.trial(replaces=False) as place:
            assert attack.then(place, replaces=False) == ["the next call made another out.csv"]

    def test_every_call_comes_to_its_kill(self, attack):
        with attack.trial(replaces=False) as place:
            fault = FileFaults(attack.world.root, 0, KILL)
            assert attack.start(place, before=fault).wait().code == -9 and fault.calls == 1

    def test_a_crash(self, attack, monkeypatch):
        monkeypatch.setattr(attacks, "TOLD", ())
        assert attacks.limited(attack, 1, random.Random(1)).faults
