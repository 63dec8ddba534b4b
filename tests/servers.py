"""Servers that are not ours, started for tests: real processes on ports of their own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from conftest import HANG_SECONDS

STOP_SECONDS = 30
SERVE_NEEDS = ("accelerate", "fastapi", "soundfile", "soxr", "uvicorn")


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        url: base address up to and with ``/v1``.
        model: the name under which its model is asked.
        log: its lines so far, growing.
    """

    url: str
    model: str
    log: list[str] = field(default_factory=list)


@contextmanager
def running(
    command: Sequence[str], ready: str, *, env: Mapping[str, str] | None = None
) -> Iterator[tuple[re.Match[str], list[str]]]:
    """Start a process, wait until a line of its output matches ``ready``; stop it in the end.

    Yields:
        The match, and the list that its output goes to line by line.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    log: list[str] = []
    found: list[re.Match[str]] = []
    settled = threading.Event()  # it is ready, or its output has ended

    output = process.stdout
    assert output is not None

    def read() -> None:
        for line in output:
            log.append(line)
            if not found and (match := re.search(ready, line)):
                found.append(match)
                settled.set()
        settled.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        settled.wait(HANG_SECONDS)
        if not found:
            process.kill()
            reader.join(STOP_SECONDS)
            raise RuntimeError(f"{command[:4]} did not start:\n{''.join(log[-30:])}")
        yield found[0], log
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(STOP_SECONDS)
        output.close()


def missing_to_serve() -> list[str]:
    """Packages that ``transformers serve`` needs for audio and that are not installed."""
    return [name for name in SERVE_NEEDS if find_spec(name) is None]


@contextmanager
def transformers_serve(model: Path, home: Path) -> Iterator[Server]:
    """``transformers serve`` with the model in a directory, on the CPU, offline, with an empty cache."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", "0"]
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with running(command, r"running on (http://127\.0\.0\.1:\d+)", env=env) as (match, log):
        yield Server(f"{match[1]}/v1", str(model), log)
