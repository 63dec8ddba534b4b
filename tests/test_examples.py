"""Commands in README and docs and the examples of --help run as written, on smaller corpora than the demo's."""

import csv
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import mifuse, read_rows

from mifuse_cli.cli import app
from mifuse_cli.demo import __main__ as demo
from mifuse_cli.demo.corpora import make_corpora
from mifuse_cli.demo.standin import StandIn

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("corpora", "asking", "predict", "report", "reference", "python", "extending")
    ),
]
"""Pages whose blocks run one after the other, in the directory that `make demo` leaves."""
TUTORIAL = "docs/tutorial.md"
SYNTHESISED = pytest.mark.skipif(
    find_spec("espeakng_loader") is None,
    reason="needs the package espeakng-loader to synthesise speech: pip install 'mifuse[demo]'",
)

NOT_RUN = {
    ("README.md", "make demo"): "installs packages and runs all tests; the demo's commands run here",
    ("README.md", ". .venv/bin/activate"): "starts a server, which this test does at a free port",
    (TUTORIAL, "python3 -m venv"): "installs packages",
    (TUTORIAL, "python -m mifuse_cli.demo.standin"): "starts a server, which this test does at a free port",
    ("docs/asking.md", "bash recipes/serve_lalm.sh"): "a GPU: tests/test_recipes_serve.py",
    ("docs/asking.md", "mifuse query-lalm --transport vllm-batch"): "a GPU: tests/test_query_vllm_batch.py",
    ("docs/comparing.md", "mifuse compare "): "corpora and hours: tests/test_compare.py",
    ("docs/comparing.md", "mifuse compare-worlds"): "corpora and hours: tests/test_compare_worlds.py",
    ("docs/experiments.md", "bash recipes/run_benchmark.sh"): "corpora and hours: tests/test_benchmark.py",
    ("docs/worlds.md", "bash recipes/run_worlds.sh"): "corpora and hours: tests/test_worlds.py",
    ("docs/performance.md", "torchrun"): "several processes or GPUs: tests/test_processes.py",
    ("docs/performance.md", "mifuse sample-source"): "several machines: tests/test_merge.py",
    ("docs/performance.md", "ray start"): "a cluster: tests/test_ray_engine.py",
    ("CONTRIBUTING.md", "make check"): "installs packages and runs all tests",
    ("docs/artifacts.md", "python -m mifuse_cli.artifacts"): "renews the page: tests/test_docs.py",
    (
        "recipes/README.md",
        "bash recipes/run_all_transfers.sh",
    ): "corpora and hours: tests/test_all_transfers.py",
    ("recipes/README.md", "bash recipes/run_benchmark.sh"): "corpora and hours: tests/test_benchmark.py",
    ("recipes/README.md", "bash recipes/run_worlds.sh"): "corpora and hours: tests/test_worlds.py",
}
"""Blocks, by page and how they begin, that need more than this test has, and where such commands are run."""

HELP_NOT_RUN = {"prepare", "compare", "compare-worlds", "merge"}
"""Their examples need corpora, hours or parts, and are run by tests of their own."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page that can be run, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def not_run(page: str, block: str) -> tuple[str, str] | None:
    return next((key for key in NOT_RUN if key[0] == page and block.startswith(key[1])), None)


def lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def test_every_block_is_run_or_says_why_not():
    pages = [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]]
    found = [(page, text) for page in pages for _, text in blocks(page)]
    assert {not_run(page, text) for page, text in found} - {None} == NOT_RUN.keys()
    others = {page for page, text in found if not not_run(page, text)} - {*PAGES, TUTORIAL}
    assert not others, "run these pages here, or say in NOT_RUN why not"


class Shell:
    """Runs blocks in the current directory: those of mifuse in this process, since it takes seconds to start.

    Args:
        standin: the LALM's address, which stands for that of the pages.
        label: writes ``gold.csv`` beside a ``pick.csv``, as a person does with the report.
        instead: words of the pages, each with what is used here.
    """

    def __init__(self, standin: StandIn, label: Callable[[Path], None], **instead: str) -> None:
        self.instead = {"http://127.0.0.1:8322/v1": standin.base_url, **instead}
        self.environment = {"OPENAI_API_KEY": "none-needed", "MIFUSE_BASE_URL": standin.base_url}
        self.label = label

    def run(self, page: str) -> None:
        for language, block in blocks(page):
            if not_run(page, block):
                continue
            if language == "python":
                exec(compile(block, page, "exec"), {})
                continue
            for line in lines(block):
                self.run_line(line)

    def run_line(self, line: str) -> None:
        words = [self.instead.get(word, word) for word in shlex.split(line, comments=True)]
        if words[:1] != ["mifuse"]:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stderr)
            return
        for gold in (Path(word) for word in words if Path(word).name == "gold.csv"):
            if not gold.exists():
                self.label(gold.with_name("pick.csv"))
        done = mifuse(*words[1:], **self.environment)
        if words[1] != "doctor":  # it has an opinion on this machine
            assert done.exit_code == 0, (line, done.stderr)


def label_with(truth: dict[str, str]) -> Callable[[Path], None]:
    """Labels of the clips that were picked, as the report hands them out."""

    def label(picked: Path) -> None:
        rows = [{**row, "emotion": truth[row["utt_id"]]} for row in read_rows(picked)]
        with picked.with_name("gold.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    return label


def classes_of(labels: Path) -> dict[str, str]:
    return {Path(row["file"]).stem: row["emotion"] for row in read_rows(labels)}


@pytest.mark.slow
@SYNTHESISED
def test_pages_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path("exp/demo")
    make_corpora(here, takes=(1, 1))
    with StandIn() as standin:
        for command in demo.commands(here, standin.base_url):
            done = mifuse(*command, OPENAI_API_KEY="none-needed")
            assert done.exit_code == 0, (command, done.stderr)
        shutil.copy(here / "target/audio/target-0000.wav", "clip.wav")
        shell = Shell(standin, label_with(classes_of(here / "target/labels.csv")))
        for page in PAGES:
            shell.run(page)


@pytest.mark.slow
@SYNTHESISED
def test_the_tutorial_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_corpora(Path("made"), takes=(1, 1))
    truth = {}
    for number, row in enumerate(read_rows(Path("made/target/labels.csv"))):
        place = Path("wavs", f"day {number % 2}", f"Call {number} b.wav")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("made/target", row["file"]), place)
        truth[place.stem] = row["emotion"]
    shutil.copytree("wavs/day 0", "tomorrow")
    unpack_as_emodb(Path("made/source"), Path("EMODB/wav"))
    with StandIn() as standin:
        shell = Shell(standin, label_with(truth), **{"openai/whisper-base": "logmel"})
        shell.run(TUTORIAL)
    card = Path("exp/hub/README.md").read_text(encoding="utf-8")
    assert "| target, without labels | calls of 2026 |" in card and "n:40" in card


def unpack_as_emodb(source: Path, wav: Path) -> None:
    """Clips of the demo's source corpus under the names that EMO-DB has."""
    letters = {"angry": "W", "happy": "F", "neutral": "N", "sad": "T"}
    wav.mkdir(parents=True)
    rows = read_rows(source / "manifest.csv")
    speakers = sorted({row["speaker"] for row in rows})
    for number, row in enumerate(rows):
        name = f"{speakers.index(row['speaker']) + 3:02}a{number % 100:02}{letters[row['emotion']]}a.wav"
        shutil.copy(source / row["file"], wav / name)


@pytest.mark.slow
@SYNTHESISED
def test_examples_of_help_as_written(tmp_path, monkeypatch):
    """In the order in which they need each other."""
    found = {}
    for command in app.registered_commands:
        assert command.epilog and command.epilog.startswith("Example: mifuse "), command.name
        if command.name not in HELP_NOT_RUN:
            found[command.name] = command.epilog.removeprefix("Example: ")
    order = ["train-source", "query-lalm", "sample-source", "fuse", "train", "evaluate"]
    monkeypatch.chdir(tmp_path)
    make_corpora(Path("exp/demo"), takes=(1, 1))
    with StandIn() as standin:
        shell = Shell(standin, label_with({}))
        for line in [*(found.pop(name) for name in order), *found.values()]:
            shell.run_line(line)
