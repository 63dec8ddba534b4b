"""Try what mifuse promises when it is killed, its disk fails, its input is damaged or its servers are hostile.

    python -m tests.reliability --out docs/reliability.md

It takes under 30 minutes on two idle cores. Exits with 1 if a promise is not met.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["OMP_NUM_THREADS"] = "1"

import attacks
import commands
from attacks import Attack, Tried

ROOT = Path(__file__).parents[2]
PROCESSES = 2
SEED = 0


@dataclass(frozen=True)
class Promise:
    """A row of the table: what is promised, and how it is tried.

    Attributes:
        tests: arguments of pytest, where existing tests try it; each test is a trial.
    """

    text: str
    way: str
    tests: tuple[str, ...] = ()


PROMISES = {
    "killed": Promise(
        "A command that is killed leaves nothing partial under a final name; the next run finishes by itself, and its "
        "result equals the undisturbed one, weights of models included.",
        "`kill -9` at random instants of a run; every second run replaces an earlier output with `--force`",
    ),
    "killed_at_calls": Promise(
        "The same, where a kill is least welcome.",
        "`kill -9` right before calls that open, write, sync, link, rename or delete files, spread over all such calls "
        "of a run, the last one included",
    ),
    "failing": Promise(
        "Where files fail, a command ends with exit code 3 and an error that tells, or well; else as above.",
        "full disk, exceeded quota, I/O error, read-only: raised by calls spread over all calls on files of a run, "
        "by one or by all from then on",
    ),
    "limited": Promise(
        "The same below the level of Python: libraries that write themselves.",
        "files cannot grow beyond a random size (`RLIMIT_FSIZE`)",
    ),
    "at_once": Promise(
        "Of two runs on one output at once, one is refused, or both make the same; who reads meanwhile finds whole "
        "files, old or new.",
        "two processes started together, and a reader; every second time with `--force`",
    ),
    "locks": Promise(
        "Locks of dead processes hold nobody up, those of live ones hold; two experiments can use one cache.",
        "tests of locks, leftovers and shared caches",
        (
            "tests/test_artifacts.py::TestAtomicWriting",
            "tests/test_artifacts.py::TestLocks",
            "tests/test_cache.py",
            "tests/test_lalm_database.py",
            "tests/reliability/test_hostile_files.py::test_two_steps_at_once_on_one_output_are_not_both_kept",
        ),
    ),
    "recipes": Promise(
        "Recipes that are killed at every stage, or two on one experiment, end with all whole, nothing asked twice. "
        "A failing step ends them with its exit code.",
        "the paper preset over small corpora, all its processes killed four times, and twice at once; tests of signals "
        "and failures",
        (
            "tests/test_all_transfers.py::test_four_jobs_at_a_time_killed_at_every_stage_then_changed[forked]",
            "tests/test_all_transfers.py::test_two_recipes_on_one_experiment[forked]",
            "tests/test_recipes.py::TestRun",
        ),
    ),
    "paid": Promise(
        "No paid answer is lost or asked for twice, however often `query-lalm` is killed.",
        "100 kills of one run on a service full of faults, whose books are compared with the journal",
        ("tests/test_query_kill.py",),
    ),
    "fuzzing": Promise(
        "Damaged and foreign input ends in an error that tells: no traceback, at most 10 s and 2 GB, no code run.",
        "inputs damaged at random",
    ),
    "files": Promise(
        "Files that are made to do harm are refused.",
        "HDF5 that hangs or crashes its library, code and devices in model directories, YAML bombs",
        ("tests/reliability/test_hostile_files.py",),
    ),
    "servers": Promise(
        "Hostile servers get neither key nor audio to another host, nor time, memory or answers.",
        "endless, dripping, packed, cut off and huge bodies, redirects, secrets sent back, absurd headers and tokens",
        ("tests/test_lalm_hostile.py", "tests/test_lalm_failures.py", "tests/test_lalm_response.py"),
    ),
    "wrongness": Promise(
        "Degenerate data give a correct result or a true message.",
        "constant, silent, single and missing answers, absent classes, one clip, one voice, fewer clips than "
        "neighbours, NaN, permuted classes",
        (
            "tests/test_cli_bad_input.py",
            "tests/test_evaluation.py",
            "tests/test_fusion_estimators.py",
            "tests/test_fusion_properties.py",
            "tests/test_methods_nrc.py",
            "tests/test_methods_t3a.py",
            "tests/test_ridge.py",
            "tests/test_steps_lineage.py",
            "tests/test_steps_teachers.py",
            "tests/test_voices.py",
        ),
    ),
    "names": Promise(
        "Names are data: nothing in them is run, split or taken for an option.",
        "names with spaces, quotes, newlines, dashes, `$(...)` and other scripts through recipes, jobs and Kaldi files",
        ("tests/reliability/test_names.py", "tests/test_recipes_backends.py", "tests/test_kaldi.py"),
    ),
    "links": Promise(
        "Nothing is written through links, and nothing but mifuse's own output of the same kind is replaced.",
        "links and foreign files at and below outputs",
        ("tests/test_artifacts.py", "tests/test_road.py", "tests/test_manifest.py"),
    ),
}

INPUTS = {"answers": 62_000, "sounds": 33_000, "prices": 3_000, "prompts": 3_000, "kaldi": 2_000, "corpora": 2_000,
          "manifests": 1_500, "databases": 1_000, "checkpoints": 600, "options": 600, "hdf5": 300}  # fmt: skip
"""Inputs of every kind of `fuzz`: those that take least, most."""

Found = list[tuple[str, str, Tried]]
"""Key of the promise, what was tried, what was found."""


def attack(root: Path, url: str, trials: int, name: str) -> Found:
    """All attacks on one command."""
    commands.load()  # once in a process
    one, rng = Attack(commands.World(root, url), commands.COMMANDS[name]), random.Random(f"{name} {SEED}")
    ways: dict[str, Callable[[], Tried]] = {
        "killed": lambda: attacks.killed(one, trials, rng),
        "killed_at_calls": lambda: attacks.killed_at_calls(one, trials // 3, rng),
        "failing": lambda: attacks.failing(one, 2 * trials // 3, rng),
        "limited": lambda: attacks.limited(one, trials - 2 * trials // 3, rng),
        "at_once": lambda: attacks.at_once(one, max(2, trials // 7)),
    }
    return [(key, name, way()) for key, way in ways.items()]


def fuzz(kind: str, count: int) -> Found:
    """Damaged inputs of one kind."""
    command = [sys.executable, "-m", "tests.reliability.fuzz", "--only", kind, "--count", str(count)]
    done = subprocess.run(
        [*command, "--seed", str(SEED)], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    told = re.search(rf"^{kind}: (\d+) inputs, (\d+) faults", done.stdout, re.MULTILINE)
    if told is None:
        return [
            (
                "fuzzing",
                kind,
                Tried(0, faults=[f"{kind}: ended with {done.returncode}: {done.stderr[-500:]}"]),
            )
        ]
    faults = re.findall(rf"^{kind}, seed .*", done.stderr, re.MULTILINE)
    return [("fuzzing", kind, Tried(int(told[1]), faults=faults or [f"{kind}: a fault"] * int(told[2])))]


def test(key: str) -> Found:
    """Existing tests; each is a trial."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-rfE", *PROMISES[key].tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    counts = Counter(
        {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    )
    faults = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    if done.returncode:  # the summary has the first line of every message only
        print(done.stdout[-20_000:], done.stderr[-2_000:], file=sys.stderr, flush=True)
    if done.returncode and not faults:
        faults = [f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}"]
    trials = counts["passed"] + counts["failed"] + counts["error"]
    return [(key, "tests", Tried(trials, Counter({"skipped": counts["skipped"]}), faults))]


def run(trials: int, share: float) -> Iterator[Found]:
    """Everything, in two processes; what was found, as it comes."""
    with tempfile.TemporaryDirectory() as temporary, commands.steady_lalm() as url:
        root = Path(temporary).resolve()
        with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
            pool.submit(build, root, url).result()
            work = [partial(attack, root, url, trials, name) for name in commands.COMMANDS]
            work += [partial(test, key) for key, one in PROMISES.items() if one.tests]
            work += [partial(fuzz, kind, max(1, round(count * share))) for kind, count in INPUTS.items()]
            for done in as_completed([pool.submit(attempt, one) for one in work]):
                yield done.result()


def build(root: Path, url: str) -> None:
    """Make what commands read."""
    commands.load()
    commands.World(root, url).build()


def attempt(work: partial[Found]) -> Found:
    """What it finds; that it could not be done at all is a fault, too."""
    try:
        return work()
    except Exception:
        key = work.args[0] if work.func is test else "fuzzing" if work.func is fuzz else "killed"
        return [(key, str(work.args[-1]), Tried(0, faults=[traceback.format_exc()]))]


def page(found: dict[str, dict[str, Tried]], minutes: float, load: float) -> str:
    """The table as Markdown."""
    lines = [
        "# Reliability",
        "",
        "What mifuse promises when it is killed, its disk fails, its input is damaged or its servers are hostile, how "
        "that was tried, and what was found. The tables are written by `python -m tests.reliability --out "
        "docs/reliability.md` (`make reliability`).",
        "",
        "| Promise | How it was tried | Trials | Found |",
        "| --- | --- | ---: | --- |",
    ]
    for key, promise in PROMISES.items():
        total = Tried()
        for tried in found[key].values():
            total.add(tried)
        lines.append(f"| {promise.text} | {promise.way} | {total.trials:,} | {verdict(total)} |")
    lines += [
        "",
        "## By command",
        "",
        "Trials of the first five rows; in brackets those that failed, if any.",
        "",
    ]
    keys = ("killed", "killed_at_calls", "failing", "limited", "at_once")
    heads = ("killed", "killed at calls", "failing calls", "limited sizes", "two at once")
    lines += ["| Command | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(keys)]
    for name in commands.COMMANDS:
        cells = [cell(found[key].get(name, Tried())) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Damaged inputs by kind", "", "| Kind | Inputs |", "| --- | ---: |"]
    lines += [f"| {kind} | {cell(found['fuzzing'].get(kind, Tried()))} |" for kind in INPUTS]
    lines += ["", f"Commit {commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}; {minutes:.0f} minutes in two "
              f"processes on {os.cpu_count()} cores with a load of {load:.1f} over the last 15."]  # fmt: skip
    return "\n".join(lines) + "\n"


def verdict(tried: Tried) -> str:
    """Met or not, and what else there is to know."""
    told = [f"{what}: {number:,}" for what, number in sorted(tried.seen.items()) if number]
    if not tried.faults and tried.trials:
        return "met" + (f" ({'; '.join(told)})" if told else "")
    first = (
        " ".join(tried.faults[0].split())[:200].replace("|", "\\|") if tried.faults else "nothing was tried"
    )
    return f"**NOT met**: {len(tried.faults):,} faults, the first: {first}"


def cell(tried: Tried) -> str:
    return f"{tried.trials:,}" + (f" ({len(tried.faults)})" if tried.faults else "")


def commit() -> str:
    """Short name of what was tried."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/reliability.md")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{' with changes' if changed else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument(
        "--trials", type=int, default=30, help="kills, and failures of files, of every command"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the damaged inputs")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    found: dict[str, dict[str, Tried]] = defaultdict(dict)
    for some in run(given.trials, given.share):
        for key, what, tried in some:
            found[key][what] = tried
            print(f"{key}, {what}: {tried.trials} trials, {len(tried.faults)} faults", flush=True)
            for fault in tried.faults:
                print(f"  {fault}", flush=True)
        given.out.write_text(page(found, (time.monotonic() - start) / 60, os.getloadavg()[2]))
    return 1 if any(tried.faults for one in found.values() for tried in one.values()) else 0
