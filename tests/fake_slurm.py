"""A pretended Slurm for tests of the recipes: `slurm` puts its sbatch and scancel on the PATH.

Tasks run on this machine, at most as many at the same time as the array's limit says. As with the real one, they
outlive an sbatch that is killed, and options that it does not know are an error.
"""

import argparse
import json
import os
import pwd
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Slurm:
    """Its state directory: ``submitted``, and one file for every task that was started."""

    state: Path

    @property
    def submitted(self) -> list[dict]:
        """Options of every job array, in order."""
        file = self.state / "submitted"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    """Commands of the test, and what they start, find a Slurm."""
    state, binaries = tmp_path / "slurm", tmp_path / "slurm" / "bin"
    binaries.mkdir(parents=True)
    for name in ("sbatch", "scancel"):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return Slurm(state)


def sbatch(arguments: list[str], state: Path) -> int:
    """Submit the script on stdin or in a file, and with ``--wait`` run its tasks; the highest exit status."""
    parser = argparse.ArgumentParser(prog="sbatch", allow_abbrev=False)
    for flag in ("--wait", "--parsable"):
        parser.add_argument(flag, action="store_true", required=True)
    for flag in ("--array", "--output", "--job-name"):
        parser.add_argument(flag, required=True)
    for flags in (
        ("--gres",),
        ("--partition", "-p"),
        ("--time", "-t"),
        ("--cpus-per-task", "-c"),
        ("--mem",),
    ):
        parser.add_argument(*flags)
    parser.add_argument("script", nargs="?", type=argparse.FileType(), default=sys.stdin)
    options = parser.parse_args(arguments)
    text = options.script.read()
    if not text.startswith("#!"):
        sys.exit("sbatch: error: This does not look like a batch script.")
    array = re.fullmatch(r"(\d+)-(\d+)%([1-9]\d*)", options.array)
    if not array:
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    first, last, limit = map(int, array.groups())
    with (state / "submitted").open("a") as file:
        file.write(json.dumps({key: value for key, value in vars(options).items() if key != "script"}) + "\n")
    number = len((state / "submitted").read_text().splitlines())
    script = state / f"script.{number}"
    script.write_text(text)

    def task(index: int) -> int:
        marks = {"%A": str(number), "%a": str(index), "%%": "%"}
        output = re.sub("%[Aa%]", lambda found: marks[found.group()], options.output)
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_CPUS_ON_NODE": "1"}
        note = ["bash", "-c", 'echo $$ > "$0"; exec bash "$1"', state / f"task.{number}.{index}", script]
        with open(output, "w") as log:
            status = subprocess.run(
                note, env=environment, stdout=log, stderr=log, start_new_session=True
            ).returncode
        return 1 if status < 0 else status

    with ThreadPoolExecutor(limit) as pool:
        status = max(pool.map(task, range(first, last + 1)))
    # Into a file the real one prints its number through a buffer: it is there at the end, and lost after a signal.
    print(number)
    return status


def scancel(arguments: list[str], state: Path) -> int:
    """End the tasks of the jobs of a name."""
    parser = argparse.ArgumentParser(prog="scancel", allow_abbrev=False)
    parser.add_argument("--name", required=True)
    parser.add_argument("--user", required=True, choices=[pwd.getpwuid(os.getuid()).pw_name])
    name = parser.parse_args(arguments).name
    for number, one in enumerate(Slurm(state).submitted, 1):
        for file in state.glob(f"task.{number}.*") if one["job_name"] == name else ():
            with suppress(ProcessLookupError):
                os.killpg(int(file.read_text()), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    command = {"sbatch": sbatch, "scancel": scancel}[sys.argv[1]]
    sys.exit(command(sys.argv[2:], Path(os.environ["FAKE_SLURM"])))
