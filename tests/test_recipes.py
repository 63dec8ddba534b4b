"""The six-transfer recipe, over two tiny corpora and real HTTP."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "run_all_transfers.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")


def run(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The recipe with this interpreter's mifuse first on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(RECIPE), *options]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def made(done: subprocess.CompletedProcess[str]) -> list[str]:
    return sorted(line.split(" made ")[1] for line in done.stderr.splitlines() if " made " in line)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--bogus", "1"), "unknown option --bogus"),
        (("--seeds",), "--seeds needs a value"),
        (("--encoder", "logmel", "--lalm-url", "http://127.0.0.1:1/v1"), "--corpora is missing"),
    ],
)
def test_usage_errors_exit_2_with_the_help(options, complaint, tmp_path):
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr and "--stop-stage" in done.stderr


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path):
    done = run(
        "--corpora", "none", "--encoder", "logmel", "--lalm-url", "http://127.0.0.1:1/v1", "--names", "a b",
        "--seeds", "0 1", "--dry-run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("mifuse ")]
    # 2 corpora x 2 seeds, 2 corpora, then 2 transfers x 2 seeds of each further step.
    counts = {name: commands.count(name) for name in dict.fromkeys(commands)}
    assert counts == {
        "train-source": 4, "query-lalm": 2, "sample-source": 4, "fuse": 4, "train": 8, "evaluate": 20,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_transfers_end_to_end_then_unchanged_then_only_what_depends(tmp_path, corpora, encoders, serve):
    for name, manifest in {"one": corpora.source, "two": corpora.labels}.items():
        (tmp_path / "corpora" / name).mkdir(parents=True)
        shutil.copytree(manifest.parent / "wav", tmp_path / "corpora" / name / "wav")
        shutil.copy(manifest, tmp_path / "corpora" / name / "metadata.csv")
    lalm = serve()
    options = [
        "--corpora", "corpora", "--names", "one two", "--encoder", str(encoders["whisper"]),
        "--lalm-url", lalm.url, "--seeds", "0", "--n-samples", "2", "--expdir", "out",
    ]  # fmt: skip

    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == ["source-only", "LALM", "fused", "LALM-SFUDA", "MI-Fuse"]
    for row in results["rows"].values():
        assert list(row["transfers"]) == ["one>two", "two>one"]
        means = [cell["mean"] for cell in row["transfers"].values()]
        assert all(0 <= mean <= 100 for mean in means)
        assert row["average"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-3)
    assert results["protocol"]
    assert "| MI-Fuse |" in (tmp_path / "out" / "results.md").read_text()

    torn = tmp_path / "out" / "one-two" / "seed0" / "eval-fused.h5"
    torn.write_bytes(torn.read_bytes()[:1000])
    again = run(*options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert made(again) == ["out/one-two/seed0/eval-fused.h5"]
    assert again.stderr.count(" unchanged ") == 21

    # LALM-SFUDA reads the fused file, so it is trained again; its weights come out the same, so its score stands.
    other = run(*options, "--weighting", "uniform", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert made(other) == [
        f"out/{pair}/seed0/{name}"
        for pair in ("one-two", "two-one")
        for name in ("eval-fused.h5", "eval-mifuse.h5", "fused.h5", "lalm-sfuda", "mifuse")
    ]


def test_a_failing_step_ends_the_recipe_with_its_exit_code(tmp_path, corpora):
    for name in ("one", "two"):
        (tmp_path / "corpora" / name).mkdir(parents=True)
        shutil.copy(corpora.target, tmp_path / "corpora" / name / "metadata.csv")
    done = run(
        "--corpora", "corpora", "--names", "one two", "--encoder", "logmel", "--seeds", "0",
        "--lalm-url", "http://127.0.0.1:1/v1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3
    assert "audio files are missing" in done.stderr
