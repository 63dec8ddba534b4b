"""Many times kill -9 on a service full of faults: nothing is lost, and what was paid in vain is known."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import HANG_SECONDS, KEY, start
from scripted import completion, error, serving

from mifuse_cli.artifacts import Lalm

IN_FLIGHT = 8
CLIPS = 24
GOOD = '{"angry": 40, "happy": 30, "neutral": 20, "sad": 10}'

# What takes long is done before the fork: the commands start at once, as processes of their own.
NURSERY = """
import json, os, sys
import h5py, openai, soundfile, scipy.special
from mifuse_cli import cli
from mifuse_cli.lalm.service import live as asking
from mifuse_cli.lalm.service import run as session
asking.FIRST_DELAY = 0.02
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.argv = ["mifuse", *json.loads(line)]
        cli.main()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Service:
    """Answers, or fails in many ways, and keeps its own books; kills its client when told to.

    Attributes:
        calls: requests that came.
        billed: their `Idempotency-Key`, of those on the bill; ``good``, ``dropped``, ``garbage`` among them.
        doomed: pid of the client, number of further requests that it is granted, and seconds from then on.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lock = threading.Lock()
        self.calls = 0
        self.billed: list[str] = []
        self.good: set[str] = set()
        self.dropped: set[str] = set()
        self.garbage: set[str] = set()
        self.doomed: tuple[int, int, float] | None = None

    def __call__(self, request):
        name = request.headers["Idempotency-Key"]
        with self.lock:
            self.calls += 1
            fate, latency = self.rng.random(), self.rng.uniform(0.001, 0.006)
            if self.doomed and self.calls >= self.doomed[1]:
                kill(self.doomed[0], self.doomed[2])
                self.doomed = None
            if fate >= 0.04:
                self.billed.append(name)
                (self.dropped if fate < 0.06 else self.garbage if fate < 0.09 else self.good).add(name)
        threading.Event().wait(latency)
        if fate < 0.04:
            return 503, error("try again")
        if fate < 0.06:
            return "drop"
        if fate < 0.09:
            return 200, b"<html>bad gateway</html>" if fate < 0.075 else {"choices": []}
        return 200, completion("I cannot tell." if fate < 0.15 else f"{GOOD} {name}")


def kill(pid: int, seconds: float) -> None:
    """Kill a process after so many seconds, if it still runs then."""

    def now() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    threading.Timer(seconds, now).start()


@pytest.fixture
def forking(monkeypatch):
    """A process from which others are forked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", NURSERY], **pipes) as process:
        yield process
        process.stdin.close()


def read(path: Path, sql: str) -> list[tuple]:
    """Rows of a database that nobody holds, which stays as it is: what a kill left is undone in a copy."""
    with tempfile.TemporaryDirectory() as place:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, place)
        with closing(sqlite3.connect(Path(place) / path.name)) as db:
            return db.execute(sql).fetchall()


@pytest.mark.parametrize(
    ("wanted", "samples"),
    [pytest.param(10, 15, id="ten"), pytest.param(50, 60, id="fifty", marks=pytest.mark.slow)],
)
def test_kills(corpora, forking, tmp_path, wanted, samples):
    """Ten kills meet every kind of fault; the slow fifty meet what seldom comes together."""
    questions = CLIPS * samples
    out, journal = tmp_path / "l.h5", tmp_path / "l.h5.journal.sqlite"
    rng, service = random.Random(3), Service(4)
    kills = killed_early = unfinished = 0
    kept: dict[tuple[str, int], bytes] = {}

    def check() -> None:
        """What was committed once is there, byte for byte, and the artifact can be read."""
        nonlocal kept, unfinished
        if not journal.exists() or not read(journal, "SELECT 1 FROM sqlite_master WHERE name = 'answer'"):
            assert not kept
            return
        assert read(journal, "PRAGMA integrity_check") == [("ok",)]
        rows = read(journal, "SELECT key, choice, raw, outcome FROM answer WHERE outcome IS NOT 'unusable'")
        there = {(key, choice): raw for key, choice, raw, _ in rows}
        assert kept.items() <= there.items()
        kept = {(key, choice): raw for key, choice, raw, outcome in rows if outcome == "ok"}
        if out.exists():
            made = Lalm.load(out)
            answered = int((made.status != 0).sum())
            assert answered <= len(there)
            assert made.header.parameters["complete"] == (answered == questions)
            unfinished += answered < questions

    with serving(service) as server:
        arguments = ["query-lalm", "--manifest", corpora.target, "--model", "m", "--base-url", server.url]
        arguments += ["--n-samples", samples, "--concurrency", IN_FLIGHT, "--rpm", 1e6, "--out", out]
        arguments += ["--save-minutes", 0.001]
        command = [str(argument) for argument in arguments]
        while kills < wanted:
            forking.stdin.write(json.dumps([*command, "--quiet"]) + "\n")
            pid = int(forking.stdout.readline())
            early = rng.random() < 0.25 or len(kept) == questions
            if early:
                kill(pid, rng.uniform(0, 0.3))
            else:
                with service.lock:
                    service.doomed = pid, service.calls + rng.randint(1, 45), rng.uniform(0, 0.01)
            code = int(forking.stdout.readline())
            service.doomed = None
            # It may have come to its end before, or given up on a question.
            assert code in (-signal.SIGKILL, 0, 5)
            if code == -signal.SIGKILL:
                kills += 1
                killed_early += early
            check()
        assert unfinished >= wanted / 5 and wanted / 10 <= killed_early < 0.6 * wanted
        last = start(*command, "--json")
        printed, told = last.communicate(timeout=HANG_SECONDS)
        assert last.returncode == 0, told
        check()
    assert server.running == 0

    # Complete, and every question answered once.
    made = Lalm.load(out)
    assert made.header.parameters["complete"] and len(kept) == questions
    assert set(Counter(made.status.ravel().tolist())) == {1, 3}  # answers, and refusals
    asked = {name.partition("-")[0] for name in service.billed}
    assert {key for key, _ in kept} == asked and len(asked) == questions

    # The books of the service and ours agree, call by call.
    intents = {
        f"{key}-{number}": status
        for key, number, status in read(journal, "SELECT key, id, http_status FROM intent")
    }
    assert len(service.billed) == len(set(service.billed)) and set(service.billed) <= intents.keys()
    paid = {name for name, status in intents.items() if status == 200}
    unresolved = {name for name, status in intents.items() if status is None}
    arrived = unresolved & set(service.billed)
    assert set(service.billed) == paid | arrived
    assert paid - service.garbage == {
        f"{key}-{number}" for key, number in read(journal, "SELECT key, intent_id FROM answer")
    }
    in_vain = len(service.billed) - questions
    assert in_vain == len(arrived) + len(paid & service.garbage)
    assert service.dropped <= unresolved
    assert 0 < len(arrived - service.dropped) <= len(unresolved - service.dropped) <= wanted * IN_FLIGHT

    # So does what the command says.
    result = json.loads(printed)
    assert result["complete"] and sum(result["statuses"].values()) == questions
    assert result["requests"]["unresolved"] == len(result["unresolved"]) == len(unresolved)
    assert result["requests"]["answered"] == len(paid)
    assert result["requests"]["sent"] == sum(status != 0 for status in intents.values())
    assert made.header.parameters["summary"]["requests"] == result["requests"]
    (note,) = re.findall(r"note: (\d+) requests may have been billed without an answer kept", told)
    assert int(note) == len(unresolved)
    assert list(tmp_path.glob(".*.tmp")) == []
