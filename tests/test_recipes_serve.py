"""recipes/serve_lalm.sh: a server that lasts as long as the questions."""

import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import HANG_SECONDS, RATE, tone
from servers import missing_to_serve
from tiny_qwen2_audio import make

from mifuse_cli.artifacts import Lalm

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "serve_lalm.sh"


def serve(*arguments, cwd, **env):
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, timeout=HANG_SECONDS, check=False, cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), **env},
    )  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def commands(tmp_path):
    """Commands of this name come first: ``commands(vllm="exit 1")``."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def write(**scripts):
        for name, text in scripts.items():
            (directory / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (directory / name).chmod(0o755)
        return {"PATH": f"{directory}:{os.environ['PATH']}"}

    return write


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model is missing"),
        (["--model", "m", "--engine", "llama"], "expected vllm or transformers"),
        (["--model", "m", "wavs"], "options of query-lalm come behind --"),
    ],
)
def test_what_is_refused(arguments, said, tmp_path):
    done = serve(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr


def test_a_server_that_ends(commands, tmp_path):
    path = commands(vllm='echo "out of memory on $2" >&2; exit 1')
    done = serve("--model", "big", "--port", free_port(), "--", "--out", "x.h5", cwd=tmp_path, **path)
    assert done.returncode == 6
    assert "out of memory on big" in done.stderr and "the server ended" in done.stderr


def test_a_port_that_is_taken(commands, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(
            "--model", "m", "--port", port, "--", "--out", "x.h5", cwd=tmp_path, **commands(vllm="exit 1")
        )
    assert done.returncode == 3 and f"port {port} is taken" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_to_serve()), reason="needs what `transformers serve` needs: pip install 'mifuse[dev]'"
)
def test_a_tiny_model_is_served_asked_and_stopped(tmp_path):
    """Its weights are random: what it says is gibberish, and kept."""
    model, clips, port = make(tmp_path / "tiny model"), tmp_path / "clips", free_port()
    clips.mkdir()
    soundfile.write(clips / "a b.wav", tone(200, 0.3, np.random.default_rng(0), 0.5), RATE)
    arguments = ["--engine", "transformers", "--device", "cpu", "--model", model, "--port", port]
    asked = ["--wav-dir", clips, "--n-samples", 2, "--out", tmp_path / "lalm.h5"]
    done = serve(*arguments, "--", *asked, cwd=tmp_path)
    assert done.returncode == 5 and "no distribution can be read" in done.stderr, done.stderr
    made = Lalm.load(tmp_path / "lalm.h5")
    assert made.raw_answer(0, 0) and made.raw_answer(0, 1)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
