"""The recipe of worlds: what a dry run prints, what worlds share, and from corpora to the one table."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import CLASSES, make_corpus, read_rows, write_csv
from test_recipes import RECIPES, commands, counts, run, value

RECIPE = "run_worlds.sh"
TABLE = """# name, targets, sources, LALM
home\tCORPORA\tCORPORA\t1
stubborn\tCORPORA\tCORPORA\t2
half\tWORLDS/half\tCORPORA\t1

foreign\tCORPORA\tWORLDS/foreign\t1
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")


@pytest.fixture
def place(tmp_path) -> Path:
    """Corpora a and b, a list of half of the clips of each, a foreign source c, and a table; its name has a space."""
    root = tmp_path / "my work"
    for name, seed in (("corpora/a", 1), ("corpora/b", 2), ("worlds/foreign/c", 3)):
        write_csv(root / name / "metadata.csv", make_corpus(root / name, seed))
    for name in ("a", "b"):
        rows = read_rows(root / "corpora" / name / "metadata.csv")[::2]
        rows = [{**row, "file": f"../../../corpora/{name}/{row['file']}"} for row in rows]
        (root / "worlds/half" / name).mkdir(parents=True)
        write_csv(root / "worlds/half" / name / "metadata.csv", rows)
    (root / "worlds.tsv").write_text(TABLE)
    return root


PLACES = "--table worlds.tsv --corpora corpora --worlds worlds/"
LALMS = "--lalm-url U --lalm-url2 V --lalm-model m"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--encoder E", "--lalm-url is missing"),
        (f"{LALMS} --encoder E", "the world home needs --corpora"),
        (f"{LALMS} --encoder E --corpora nowhere", "the world home: nowhere is no directory"),
        (f"{PLACES} --encoder E --lalm-url U", "the world stubborn has another LALM: --lalm-url2 is missing"),
        (
            f"{PLACES} {LALMS} --encoder E --names 'home hmoe'",
            "--names hmoe: is no world of worlds.tsv, which has home",
        ),
        (f"{PLACES} {LALMS} --encoder E --names 'home home'", "--names home home: names home more than once"),
        (f"{PLACES} {LALMS} --encoder E --seeds 'x'", "--seeds x: expected numbers"),
        (f"{PLACES} {LALMS} --encoder E --stage 5", "--stage and --stop-stage are numbers from 1 to 4"),
        (f"{PLACES} {LALMS} --encoder E --nj 0", "--nj 0: expected 1 or more"),
        (f"{PLACES} {LALMS} --encoder E --bogus 1", "unknown option --bogus"),
        (f"{LALMS} --encoder E --table nowhere.tsv", "--table nowhere.tsv: no such file"),
        (f"{PLACES} {LALMS} --encoder E --protocol both", "--protocol"),
        (
            f"{PLACES} {LALMS} --encoder E --systems mifsue",
            "--systems 'mifsue': no system or group is called so",
        ),
        (f"{PLACES} {LALMS} --encoder E --normalize all", "--normalize"),
    ],
)
def test_usage_errors(place, options, complaint):
    before = sorted(place.rglob("*"))
    done = run(*shlex.split(options), cwd=place, recipe=RECIPE)
    assert done.returncode == 2 and complaint in done.stderr
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("home CORPORA CORPORA 1", "line 2: expected four columns between tabs"),
        ("home\tCORPORA\tCORPORA\t1\tmore", "line 2: expected four columns between tabs"),
        ("my home\tCORPORA\tCORPORA\t1", "line 2: 'my home' is no name of a directory"),
        ("home\tCORPORA\tCORPORA\t3", "line 2: LALM 3, expected 1 or 2"),
        ("a\tCORPORA\tCORPORA\t1\na\tCORPORA\tCORPORA\t2", "line 3: names a a second time"),
        (
            "home\tcorpora/a\tCORPORA\t1",
            "there is no source in corpora and target in corpora/a with different names",
        ),
        ("# nothing", "worlds.tsv: names no world"),
    ],
)
def test_faults_of_a_table_are_named(place, row, complaint):
    (place / "worlds.tsv").write_text(f"# a comment\n{row}\n")
    done = run(*shlex.split(f"{PLACES} {LALMS} --encoder E --dry-run"), cwd=place, recipe=RECIPE)
    assert done.returncode == 2 and complaint in done.stderr


def test_dry_run(place):
    options = f"{PLACES} {LALMS} --encoder E --seeds '0 1' --systems lalm,shot --n-answers 3 --dry-run"
    done = run(*shlex.split(options), cwd=place, recipe=RECIPE)
    assert done.returncode == 0, done.stderr
    lines = commands(done.stdout)
    # Two corpora at home, by both LALMs, and half of each; models of a, b and c.
    assert counts(lines) == {"query-lalm": 6, "train-source": 6, "compare": 4, "compare-worlds": 1}
    asked = {value(line, "--out"): line for line in lines if line[0] == "query-lalm"}
    assert value(asked["exp/worlds/lalm/home/a.h5"], "--base-url") == "U"
    assert value(asked["exp/worlds/lalm/stubborn/a.h5"], "--base-url") == "V"
    assert value(asked["exp/worlds/lalm/half/b.h5"], "--manifest") == "worlds/half/b/metadata.csv"
    assert {value(line, "--n-samples") for line in asked.values()} == {"3"}
    copies = [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("cp ")]
    assert copies == [
        [f"exp/worlds/lalm/{world}/{name}.h5.journal.sqlite" for world in ("home", "half")]
        for name in ("a", "b")
    ]
    compared = {Path(value(line, "--out")).name: line for line in lines if line[0] == "compare"}
    assert list(compared) == ["home", "stubborn", "half", "foreign"]
    places = [
        [value(line, flag) for flag in ("--data", "--models", "--lalm", "--sources", "--targets")]
        for line in compared.values()
    ]
    assert places == [
        ["corpora", "exp/worlds/models/home", "exp/worlds/lalm/home", "a,b", "a,b"],
        ["corpora", "exp/worlds/models/home", "exp/worlds/lalm/stubborn", "a,b", "a,b"],
        ["worlds/half", "exp/worlds/models/home", "exp/worlds/lalm/half", "a,b", "a,b"],
        ["corpora", "exp/worlds/models/foreign", "exp/worlds/lalm/home", "c", "a,b"],
    ]
    assert {value(line, "--normalize") for line in compared.values()} == {"target"}
    assert lines[-1][:5] == ["compare-worlds", *(f"exp/worlds/compare/{name}" for name in compared)]
    assert not (place / "exp").exists()


def test_the_table_that_is_included_is_understood(place):
    for name in ("skew-neutral", "skew-happy", "confounded", "bad-source"):
        shutil.copytree(place / "worlds/half", place / f"worlds/{name}")
    (place / "worlds/foreign").rename(place / "worlds/foreign-source")
    options = f"--corpora corpora --worlds worlds {LALMS} --encoder E --seeds 0 --dry-run"
    done = run(*shlex.split(options), cwd=place, recipe=RECIPE)
    assert done.returncode == 0, done.stderr
    assert counts(commands(done.stdout)) == {
        "query-lalm": 10, "train-source": 5, "compare": 7, "compare-worlds": 1
    }  # fmt: skip


class Pretended:
    """A copy of the recipes, and a mifuse that notes how it is called and leaves a journal and a table."""

    TEXT = """#!/usr/bin/env bash
        { printf '%q ' mifuse "$@"; echo; } >> "$CALLS"
        [ "$1" != "${FAIL-}" ] || exit 4
        command=$1
        while [ $# -gt 1 ]; do [ "$1" != --out ] || out=$2; shift; done
        mkdir -p "$out"
        case $command in
          query-lalm) [ -e "$out.journal.sqlite" ] || echo "$out" > "$out.journal.sqlite" ;;
          compare-worlds) echo "the table" > "$out/table.md" ;;
        esac
        """

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.calls_file = root, root / "calls"
        shutil.copytree(RECIPES, root / "recipes")
        (root / "bin").mkdir()
        (root / "bin/mifuse").write_text(self.TEXT)
        (root / "bin/mifuse").chmod(0o755)
        monkeypatch.setenv("CALLS", str(self.calls_file))
        monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        settings = shlex.split(f"{PLACES} {LALMS} --encoder E --seeds 0 --nj 2")
        command = ["bash", str(self.root / "recipes" / RECIPE), *settings, *options]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[list[str]]:
        """Calls so far, which are forgotten."""
        lines = commands(self.calls_file.read_text())
        self.calls_file.unlink()
        return lines


@pytest.fixture
def pretended(place, monkeypatch) -> Pretended:
    return Pretended(place, monkeypatch)


class TestRun:
    def test_worlds_share_answers_and_models(self, pretended):
        done = pretended.run()
        assert done.returncode == 0, done.stderr
        assert counts(pretended.calls) == {
            "query-lalm": 6, "train-source": 3, "compare": 4, "compare-worlds": 1
        }  # fmt: skip
        assert done.stdout == "the table\n"
        lalm = pretended.root / "exp/worlds/lalm"
        # The questions that home asked are known to half, whose list is of the same clips; stubborn asked another LALM.
        journals = {path.parent.name: path.read_text() for path in lalm.glob("*/b.h5.journal.sqlite")}
        assert journals == {
            "home": "exp/worlds/lalm/home/b.h5\n",
            "half": "exp/worlds/lalm/home/b.h5\n",
            "stubborn": "exp/worlds/lalm/stubborn/b.h5\n",
        }

    def test_one_world_leaves_its_share_where_others_look_for_it(self, pretended):
        assert pretended.run("--names", "foreign").returncode == 0
        calls = pretended.calls
        assert counts(calls) == {"query-lalm": 2, "train-source": 1, "compare": 1, "compare-worlds": 1}
        assert value(calls[0], "--out") == "exp/worlds/lalm/home/a.h5"
        assert pretended.run("--names", "half", "--stop-stage", "1").returncode == 0
        lalm = pretended.root / "exp/worlds/lalm"
        assert (lalm / "half/a.h5.journal.sqlite").read_text() == "exp/worlds/lalm/home/a.h5\n"

    def test_a_journal_that_is_in_use_is_not_copied(self, pretended):
        assert pretended.run("--names", "home", "--stop-stage", "1").returncode == 0
        lalm = pretended.root / "exp/worlds/lalm"
        (lalm / "home/a.h5.journal.sqlite-wal").touch()
        assert pretended.run("--names", "half", "--stop-stage", "1").returncode == 0
        assert (lalm / "half/a.h5.journal.sqlite").read_text() == "exp/worlds/lalm/half/a.h5\n"
        assert (lalm / "half/b.h5.journal.sqlite").read_text() == "exp/worlds/lalm/home/b.h5\n"

    def test_a_failure_ends_it(self, pretended, monkeypatch):
        monkeypatch.setenv("FAIL", "compare")
        done = pretended.run()
        assert done.returncode == 4 and "failed: mifuse compare" in done.stderr
        assert "compare-worlds" not in counts(pretended.calls)


@pytest.mark.slow
def test_from_corpora_to_the_table(place, serve, nursery, encoders):
    """By commands that are forked; no clip is asked about twice by the same LALM."""
    first, second = serve(), serve()
    (place / "conf").mkdir()
    (place / "conf/train-source.yaml").write_text(f"encoder: {encoders['whisper']}\nepochs: 2\n")
    (place / "conf/compare.yaml").write_text("epochs: 1\nn-samples: 2\nresamples: 100\n")
    (place / "conf/compare-worlds.yaml").write_text("resamples: 100\n")
    lalms = f"--lalm-url {first.url} --lalm-url2 {second.url} --lalm-model m --n-answers 2"
    systems = "source-only,lalm,shot,mifuse-cross-fit"
    options = shlex.split(f"{PLACES} {lalms} --conf conf --seeds 0 --nj 1 --systems {systems}")
    done = run(*options, cwd=place, recipe=RECIPE, nursery=nursery)
    assert done.returncode == 0, done.stderr
    assert len(first.asked) == len(second.asked) == len(set(first.asked)) == 2 * 24 * 2
    found = json.loads((place / "exp/worlds/tables/results.json").read_text())
    assert list(found["worlds"]) == ["home", "stubborn", "half", "foreign"] and found["classes"] == list(
        CLASSES
    )
    assert found["worlds"]["foreign"]["transfers"] == ["c>a", "c>b"]
    assert found["systems"]["mifuse-cross-fit"]["harm"]["of"] == 8
    assert "| mifuse-cross-fit less " in done.stdout
    again = run(*options, cwd=place, recipe=RECIPE, nursery=nursery)
    assert again.returncode == 0 and " made " not in again.stderr
