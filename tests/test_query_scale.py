"""Memory of query-lalm does not grow with the corpus, whether it asks or only estimates."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import KEY
from querying import GOOD
from scripted import completion, serving

from mifuse_cli.audio import RATE, wav_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]

HIGHEST = """
import gc, json, sys
from pathlib import Path

def highest():
    "Peak of this process in kB."
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
ASKING = """
import mifuse_cli as m

blocks, calls, peak = [], 0, 0

def look(what, done, total, facts=None):
    global calls, peak
    if what == "asking":
        calls, peak = calls + 1, highest()
        if calls % 50 == 0:
            gc.collect()
            blocks.append(sys.getallocatedblocks())

manifest, url = sys.argv[1:]
config = m.QueryLalmConfig(
    manifest=Path(manifest), out=Path(manifest).with_name("l.h5"), model="m", base_url=url, n_samples=1,
    concurrency=8, rpm=1e6,
)
result = m.query_lalm(config, progress=look)
print(json.dumps({"asked": result.asked, "blocks": blocks, "peak": peak}))
"""
DRY_RUN = """
from mifuse_cli import cli

sys.argv[0] = "mifuse"
try:
    cli.main()
finally:
    print(json.dumps({"peak": highest()}))
"""


def child(code, *arguments):
    """What a process of its own prints, line by line."""
    command = [sys.executable, "-c", HIGHEST + code, *map(str, arguments)]
    env = {**os.environ, "OPENAI_API_KEY": KEY}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_while_it_asks(tmp_path):
    few, many, seconds = 200, 2000, 1.25
    rng, found = np.random.default_rng(0), []
    for clips in (few, many):
        root = tmp_path / str(clips)
        root.mkdir()
        files = [f"{number:04}.wav" for number in range(clips)]
        for file in files:
            (root / file).write_bytes(wav_bytes(rng.uniform(-0.1, 0.1, int(seconds * RATE))))
        (root / "manifest.csv").write_text("\n".join(["file", *files]) + "\n")
        with serving((200, completion(GOOD))) as server:
            (told,) = child(ASKING, root / "manifest.csv", server.url)
            assert told["asked"] == len(server.requests) == clips
        found.append(told)
    small, large = found
    # Whatever is kept of a clip takes one block or more, and its audio alone 2 * RATE bytes a second.
    # Caches and queues fill up during the first clips: the later half is measured by the earlier one.
    blocks = large["blocks"][few // 50 : -1]
    half = len(blocks) // 2
    grown = statistics.median(blocks[half:]) - statistics.median(blocks[:half])
    assert grown < 50 * half / 2
    assert 1024 * (large["peak"] - small["peak"]) < (many - few) * seconds * 2 * RATE / 2


def test_while_it_estimates(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(np.zeros(160)))
    peaks = []
    for clips in (1_000, 100_000):
        rows = [f"a.wav,clip{number},{number % 7 + 1}" for number in range(clips)]
        manifest = tmp_path / f"{clips}.csv"
        manifest.write_text("\n".join(["file,utt_id,duration_s", *rows]) + "\n")
        flags = ["query-lalm", "--manifest", manifest, "--model", "m", "--dry-run", "--json", "--quiet"]
        told, memory = child(DRY_RUN, *flags, "--n-samples", 2, "--out", tmp_path / "l.h5")
        volume = told["volume"]
        assert (volume["clips"], volume["requests"]) == (clips, 2 * clips)
        assert volume["seconds"] == 2 * sum(number % 7 + 1 for number in range(clips))
        peaks.append(memory["peak"])
    assert peaks[1] - peaks[0] < 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000.csv", "100000.csv", "a.wav"]
