"""The recipes, with a pretended mifuse that is quick, and with the real one where its answer matters."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG_SECONDS, emotional, write_csv
from nursery import Nursery
from soundfile import write as write_audio
from test_recipes_backends import gone
from typer.main import get_command

from mifuse_cli.cli import app

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
URL = "http://127.0.0.1:1/v1"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")


def run(
    *options, cwd, recipe="run_all_transfers.sh", nursery: Nursery | None = None
) -> subprocess.CompletedProcess[str]:
    """A recipe with this interpreter's mifuse first on the PATH, or that of a nursery."""
    binaries = Path(sys.executable).parent
    path = [*([str(nursery.binaries)] if nursery else []), str(binaries), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    command = ["bash", *map(str, ((nursery.recipes if nursery else RECIPES) / recipe, *options))]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def commands(text: str) -> list[list[str]]:
    """Words after ``mifuse`` in every such line."""
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("mifuse ")]


def counts(lines: list[list[str]]) -> dict[str, int]:
    names = [line[0] for line in lines]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def value(line: list[str], flag: str) -> str | None:
    return line[line.index(flag) + 1] if flag in line else None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--bogus 1", "unknown option --bogus"),
        ("--seeds", "--seeds needs a value"),
        ("--seeds '0 1 0' --corpora c --names 'a b'", "--seeds 0 1 0: names 0 more than once"),
        ("--seeds '0 x' --corpora c --names 'a b'", "--seeds 0 x: expected numbers"),
        ("", "two corpora or more are needed, found: none"),
        ("--preset paper --iemocap DIR", "two corpora or more are needed, found: iemocap"),
        ("--corpora c --iemocap DIR", "--corpora: is for prepared corpora, --iemocap for one as unpacked"),
        ("--preset cheap --emodb A --nemo B", "--preset cheap: expected paper or free"),
        ("--preset paper --iemocap A --msp-podcast B", "--lalm-url is missing"),
        ("--preset paper --iemocap A --msp-podcast B --lalm-url U", "--lalm-model is missing"),
        ("--corpora c --names 'a b' --lalm-url U --cmd pbs", "--cmd pbs: expected local or slurm"),
        ("--corpora c --names 'a b' --lalm-url U --shards 0", "--shards 0: expected 1 or more"),
        ("--corpora c --names 'a b' --lalm-url U --stage 8", "--stage and --stop-stage are numbers from 1 to 7"),
        ("--corpora c --names 'a b' --lalm-url U --expdir JOBS", "JOB in it stands for the number of a job"),
        ("--corpora c --names 'a b' --lalm-url U --stage 5 --stop-stage 4", "--stage 5: is above --stop-stage 4"),
        (
            "--corpora c --names 'a a-b b-c c' --lalm-url U",
            "the transfers a>b-c and a-b>c would share the directory a-b-c",
        ),
        ("more --corpora c", "unexpected argument more"),
    ],
)  # fmt: skip
def test_usage_errors_exit_2_with_the_help(options, complaint, tmp_path):
    done = run(*shlex.split(options), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert complaint in done.stderr and "--stop-stage" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "--lalm-url is missing"),
        ("--preset paper --lalm-url U", "--lalm-model is missing"),
        ("--lalm-url U --seeds 'x'", "--seeds x: expected numbers"),
        ("--lalm-url U --stage 1", "--stage and --stop-stage are numbers from 2 to 6"),
        ("--lalm-url U --stage 4 --stop-stage 3", "--stage 4: is above --stop-stage 3"),
        ("--lalm-url U --target 'my b'", "corpus 'my b': a name with white space"),
    ],
)
def test_usage_errors_of_one_transfer(options, complaint, tmp_path):
    recipe = "run_transfer.sh"
    done = run("--source", "a", "--target", "b", *shlex.split(options), cwd=tmp_path, recipe=recipe)
    assert done.returncode == 2 and complaint in done.stderr and list(tmp_path.iterdir()) == []


def test_a_directory_with_white_space_in_its_name_is_no_list_of_corpora(tmp_path):
    for name in ("a", "my b"):
        (tmp_path / "c" / name).mkdir(parents=True)
        (tmp_path / "c" / name / "metadata.csv").write_text("file,emotion\n")
    done = run("--corpora", "c", "--lalm-url", URL, cwd=tmp_path)
    assert done.returncode == 2 and "corpus 'my b': a name with white space" in done.stderr


def test_a_file_in_conf_that_no_step_reads_is_an_error(tmp_path):
    (tmp_path / "conf").mkdir()
    for name in ("fuse.yaml", "prepare-emodb-target.yaml", "prepare-emobd.yaml"):
        (tmp_path / "conf" / name).write_text("")
    done = run("--conf", "conf", "--corpora", "c", "--names", "a b", cwd=tmp_path)
    assert (
        done.returncode == 2 and "conf/prepare-emobd.yaml: no step reads a file of this name" in done.stderr
    )


@pytest.mark.slow
class TestDryRun:
    """With the real mifuse, which has to understand every line; quick tests are with a pretended one."""

    def test_of_prepared_corpora(self, tmp_path, corpora, nursery):
        for name in ("a", "b", "a-target"):
            (tmp_path / "c" / name).mkdir(parents=True)
        shutil.copy(corpora.labels, tmp_path / "c" / "b" / "metadata.csv")
        for directory in ("a", "a-target"):
            manifest = [{"file": str(corpora.wav_dir / f"{n:02}-2.wav")} for n in (0, 1)]
            write_csv(tmp_path / "c" / directory / "manifest.csv", manifest)
        done = run(
            "--corpora", "c", "--lalm-url", URL, "--seeds", "0 1", "--dry-run", cwd=tmp_path, nursery=nursery
        )
        assert done.returncode == 0, done.stderr
        lines = commands(done.stdout)
        assert counts(lines) == {
            "train-source": 4, "query-lalm": 2, "sample-source": 4, "fuse": 8, "train": 12, "evaluate": 24,
        }  # fmt: skip
        assert all("--update" in line for line in lines)
        sources = {value(line, "--manifest") for line in lines if line[0] == "train-source"}
        assert sources == {"c/a/labels.csv", "c/b/metadata.csv"}
        targets = {value(line, "--manifest") for line in lines if line[0] in ("query-lalm", "train")}
        assert targets == {"c/a-target/manifest.csv", "c/b/metadata.csv"}
        assert "# a:\n" in done.stdout and "#   requests  10 for 10 answers" in done.stdout
        assert "# b: the cost is not known: error: " in done.stdout and "files are missing" in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["c"]

    def test_of_corpora_as_unpacked(self, tmp_path, nursery):
        rng, wav = np.random.default_rng(0), tmp_path / "emodb" / "wav"
        wav.mkdir(parents=True)
        for n, letter in enumerate("WFNT"):
            write_audio(wav / f"03a01{letter}a.wav", emotional("sad", n % 3, rng), 16_000)
        # Data of an earlier run count only if they are what the run would go on with.
        (tmp_path / "exp" / "data" / "emodb").mkdir(parents=True)
        write_csv(tmp_path / "exp" / "data" / "emodb" / "manifest.csv", [{"file": str(wav / "03a01Wa.wav")}])
        options = ["--emodb", "emodb", "--nemo", "nowhere", "--lalm-url", URL, "--seeds", "0", "--dry-run"]
        done = run("--preset", "free", *options, cwd=tmp_path, nursery=nursery)
        assert done.returncode == 0, done.stderr
        assert commands(done.stdout)[0] == ["prepare", "emodb", "emodb", "exp/data/emodb", "--update"]
        assert "#   requests  20 for 20 answers" in done.stdout
        assert re.search(
            "^# nemo: the cost is not known: error: .*nowhere: no such dir", done.stdout, re.MULTILINE
        )
        later = run(
            "--preset", "free", *options, "--stage", "3", "--stop-stage", "3", cwd=tmp_path, nursery=nursery
        )
        assert "#   requests  5 for 5 answers" in later.stdout
        assert sorted(path.name for path in tmp_path.rglob("*.csv")) == ["manifest.csv"]

    @pytest.mark.parametrize(
        ("roots", "partitions"),
        [
            ("--preset free --ravdess R --crema-d C --emodb E --nemo N", []),
            ("--iemocap I --msp-podcast P", [None, None]),
            ("--preset paper --iemocap I --msp-improv M --msp-podcast P", [None, None]),
            (
                "--preset paper --iemocap I --msp-podcast P --podcast-target development",
                [None, "development"],
            ),
        ],
    )
    def test_every_command_line_and_file_of_the_presets_is_understood(
        self, roots, partitions, tmp_path, nursery
    ):
        options = "--seeds 0 --lalm-model m --encoder E --layers all --normalize target --n-samples 3 --weighting mi "
        options += "--speaker-encoder V"
        more = ["--dry-run", "--lalm-options", "--rpm 500 --yes", "--lalm-url", URL]
        done = run(*roots.split(), *options.split(), *more, cwd=tmp_path, nursery=nursery)
        assert done.returncode == 0, done.stderr
        lines = commands(done.stdout)
        for line in lines:
            get_command(app).commands[line[0]].make_context(line[0], line[1:])
        podcast = [value(line, "--partitions") for line in lines if line[:2] == ["prepare", "msp-podcast"]]
        assert podcast == partitions
        targets = {line[line.index("--manifest") + 1] for line in lines if line[0] == "sample-source"}
        assert ("exp/data/msp-podcast-target/manifest.csv" in targets) == ("msp-podcast" in roots)


class Stub:
    """A copy of the recipes, and a mifuse that notes how it is called and makes an empty output."""

    TEXT = """#!/usr/bin/env bash
        echo "mifuse $*" >> "$CALLS"
        [ "$1" != "${BLOCK-}" ] || { echo $$ > "$STARTED"; exec sleep 600; }
        [ "$1" != "${FAIL%:*}" ] || { echo "error: no luck" >&2; exit "${FAIL#*:}"; }
        while [ $# -gt 1 ]; do [ "$1" != --out ] || out=$2; shift; done
        [ -z "${out-}" ] || if [ -e "$out" ]; then echo "note: $out is up to date" >&2; else mkdir -p "$out"; fi
        """

    def __init__(self, root, monkeypatch):
        self.root, self.calls_file = root, root / "calls"
        shutil.copytree(RECIPES, root / "recipes")
        (root / "bin").mkdir()
        (root / "bin" / "mifuse").write_text(self.TEXT)
        (root / "bin" / "mifuse").chmod(0o755)
        for name in ("a", "b", "c"):
            (root / "corpora" / name).mkdir(parents=True)
            (root / "corpora" / name / "metadata.csv").write_text("file,emotion\r\nx.wav,sad\r\n")
        for name, text in {"CALLS": str(self.calls_file), "FAIL": "", "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, text)
        monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
        self.recipe = ["bash", str(root / "recipes" / "run_all_transfers.sh")]
        self.options = ["--corpora", "corpora", "--lalm-url", URL, "--seeds", "0 1", "--stop-stage", "6"]

    def run(self, *options, command=None):
        command = command or [*self.recipe, *self.options]
        return subprocess.run(
            [*command, *options], cwd=self.root, capture_output=True, text=True, check=False
        )

    @property
    def calls(self) -> list[list[str]]:
        """Calls so far, which are forgotten."""
        lines = commands(self.calls_file.read_text())
        self.calls_file.unlink()
        return lines


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Stub:
    return Stub(tmp_path, monkeypatch)


COUNTS = {
    "train-source": 6, "query-lalm": 3, "sample-source": 12, "fuse": 24, "train": 36, "evaluate": 72,
}  # fmt: skip
"""Commands of three corpora and two seeds."""


class TestRun:
    @pytest.mark.parametrize("options", [[], ["--nj", "4"]])
    def test_three_corpora_two_seeds(self, stub, options):
        done = stub.run(*options)
        assert done.returncode == 0, done.stderr
        calls = stub.calls
        assert counts(calls) == COUNTS
        assert len({value(call, "--out") for call in calls}) == len(calls)
        assert done.stderr.count(" made ") == len(calls)
        logs = {path.name for path in (stub.root / "exp" / "logs").iterdir()}
        assert {"stage2.3.log", "stage3.3.log", "stage4-6.12.log", "lalm-a.h5.log"} <= logs
        log = (stub.root / "exp" / "logs" / "a-b-seed0-mifuse.log").read_text().splitlines()
        assert log[0].startswith("# mifuse train --fused exp/a-b/seed0/fused.h5 ") and log[-1].endswith(
            "with exit code 0"
        )
        assert stub.run(*options).stderr.count(" unchanged ") == len(calls)

    def test_flags_go_beside_the_file_of_the_step(self, stub):
        conf = stub.root / "conf"
        conf.mkdir()
        (conf / "fuse.yaml").write_text("tau: 0.2")
        (conf / "query-lalm.yaml").write_text("base_url: http://127.0.0.1/v1\nmodel: m")
        flags = [
            "--encoder",
            "E",
            "--speaker-encoder",
            "V",
            "--weighting",
            "z-mi",
            "--lalm-options",
            "--rpm 5 --yes",
        ]
        stub.run("--conf", "conf", *flags)
        made = stub.calls
        calls = {call[0]: call for call in made}
        weighed, crossed, *_ = (call for call in made if call[0] == "fuse")
        assert value(weighed, "--config") == "conf/fuse.yaml" and value(weighed, "--weighting") == "z-mi"
        assert "--config" not in crossed and value(crossed, "--weighting") == "cross-fit"
        assert value(calls["query-lalm"], "--rpm") == "5" and "--model" not in calls["query-lalm"]
        assert value(calls["sample-source"], "--speaker-encoder") == "V"
        assert value(calls["train-source"], "--encoder") == "E" and "--config" not in calls["train"]

    def test_run_sh_repeats_the_run_from_anywhere(self, stub):
        stub.run("--expdir", "my exp", "--stop-stage", "3")
        before, text = stub.calls, (stub.root / "my exp" / "run.sh").read_text()
        elsewhere = subprocess.run(["bash", stub.root / "my exp" / "run.sh"], cwd="/", check=False)
        assert elsewhere.returncode == 0 and sorted(stub.calls) == sorted(before)
        stub.run("--stop-stage", "2", command=["bash", "my exp/run.sh"])
        assert counts(stub.calls) == {"train-source": 6}
        assert (stub.root / "my exp" / "run.sh").read_text() == text

    def test_one_transfer_has_the_same_places(self, stub):
        shutil.copytree(stub.root / "corpora" / "b", stub.root / "corpora" / "b-target")
        settings = ["--preset", "paper", "--lalm-model", "m"]
        stub.run(*settings)
        calls = [" ".join(call) for call in stub.calls]
        one = ["bash", "recipes/run_transfer.sh", "--source", "corpora/a", "--target", "corpora/b-target/"]
        done = stub.run(*settings, command=[*one, "--seeds", "0 1", "--lalm-url", URL])
        assert done.returncode == 0, done.stderr
        again = [" ".join(call) for call in stub.calls]
        assert len(again) == 2 + 1 + 2 * 12 and set(again) <= set(calls)
        assert " made " not in done.stderr

    def test_a_failing_step_ends_the_recipe_with_its_exit_code(self, stub, monkeypatch):
        monkeypatch.setenv("FAIL", "query-lalm:5")
        done = stub.run()
        assert done.returncode == 5
        assert counts(stub.calls) == {"train-source": 6, "query-lalm": 1}
        assert "failed: mifuse query-lalm " in done.stderr and "error: no luck" in done.stderr
        assert (stub.root / "exp/logs/lalm-a.h5.log").read_text().endswith("with exit code 5\n")

    def test_slurm_takes_all_but_the_questions(self, stub, slurm):
        done = stub.run("--cmd", "slurm", "--nj", "3", "--ngpu", "1", "--slurm-options", "-p gpu")
        assert done.returncode == 0, done.stderr
        assert counts(stub.calls) == COUNTS
        assert [
            (one["job_name"].rsplit(f"-{os.uname().nodename}-")[0], one["array"], one["gres"])
            for one in slurm.submitted
        ] == [
            ("stage2", "1-3%3", "gpu:1"),
            ("stage4-6", "1-12%3", "gpu:1"),
        ]
        assert done.stderr.count(" made ") == sum(COUNTS.values())

    def test_parts_are_jobs_and_are_joined(self, stub, slurm):
        options = ["--cmd", "slurm", "--nj", "8", "--shards", "2", "--seeds", "0"]
        done = stub.run(*options)
        assert done.returncode == 0, done.stderr
        calls = stub.calls
        expected = {"train-source": 3, "query-lalm": 6, "merge": 9, "sample-source": 12}
        assert {name: counts(calls)[name] for name in expected} == expected
        jobs = [
            (one["job_name"].rsplit(f"-{os.uname().nodename}-")[0], one["array"]) for one in slurm.submitted
        ]
        assert jobs == [
            ("stage2", "1-3%8"), ("stage3-parts", "1-6%8"), ("stage4-parts", "1-12%8"), ("stage4-6", "1-6%8"),
        ]  # fmt: skip
        made = {value(call, "--out"): call for call in calls}
        for out in ("exp/lalm/a.h5", "exp/b-c/seed0/source.h5"):
            parts = [part for part in made[out] if part.endswith(".h5") and "/parts/" in part]
            assert [value(made[part], "--shard") for part in parts] == ["1/2", "2/2"]
            assert made[out][0] == "merge" and {made[part][0] for part in parts} <= {
                "query-lalm",
                "sample-source",
            }
        assert " made " not in stub.run(*options).stderr

    def test_answers_that_were_got_at_once_are_not_asked_for_in_parts(self, stub):
        (stub.root / "exp/lalm").mkdir(parents=True)
        (stub.root / "exp/lalm/b.h5.journal.sqlite").touch()
        stub.run("--stage", "3", "--stop-stage", "3", "--shards", "2")
        calls = [
            call
            for call in stub.calls
            if value(call, "--out").startswith("exp/lalm/b") or "/b." in value(call, "--out")
        ]
        assert [(call[0], value(call, "--shard")) for call in calls] == [("query-lalm", None)]

    REMOTE = "--stage 3 --stop-stage 3 --lalm-url https://lalm.invalid/v1"

    @pytest.mark.parametrize(
        ("options", "conf", "status"),
        [
            (REMOTE, "", 3),
            ("--stop-stage 3 --lalm-url ''", "base_url: 'https://lalm.invalid/v1' # far", 3),
            (f"{REMOTE} --lalm-options '--yes --api-key-file key'", "", 0),
            (REMOTE, "api-key-file: key", 0),
            (f"{REMOTE} --dry-run", "", 0),
            (f"{REMOTE} --stage 2 --stop-stage 2", "", 0),
            ("--stage 3 --stop-stage 3 --lalm-url ''", "base-url: http://[::1]:8000/v1", 0),
        ],
    )
    def test_a_key_that_is_missing_is_missed_at_once(self, stub, monkeypatch, options, conf, status):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        (stub.root / "conf").mkdir()
        (stub.root / "conf" / "train-source.yaml").write_text("encoder: E")
        (stub.root / "conf" / "query-lalm.yaml").write_text(f"model: m\n{conf}\n")
        given = ["--conf", "conf", *shlex.split(options)]
        one = ["bash", "recipes/run_transfer.sh", "--source", "corpora/a", "--target", "corpora/b"]
        for command in ([*stub.recipe, "--corpora", "corpora"], one):
            done = stub.run(*given, command=command)
            assert done.returncode == status, done.stderr
            complaint = "there is no API key for https://lalm.invalid/v1: set OPENAI_API_KEY"
            assert (complaint in done.stderr) == (status == 3)
            assert status == 0 or not stub.calls_file.exists()
            stub.calls_file.unlink(missing_ok=True)

    def test_answers_that_are_there_need_no_key(self, stub, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "some")
        options = [*self.REMOTE.split(), "--corpora", "corpora"]
        assert stub.run(*options, command=stub.recipe).returncode == 0
        monkeypatch.delenv("OPENAI_API_KEY")
        assert stub.run(*options, command=stub.recipe).returncode == 0
        shutil.rmtree(stub.root / "exp" / "lalm" / "c.h5")
        assert stub.run(*options, command=stub.recipe).returncode == 3

    @pytest.mark.parametrize("backend", ["local", "slurm"])
    @pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_ends_all_jobs(self, stub, slurm, monkeypatch, backend, sent, status):
        os.mkfifo(stub.root / "started")
        monkeypatch.setenv("STARTED", str(stub.root / "started"))
        monkeypatch.setenv("BLOCK", "train-source")
        command = [*stub.recipe, *stub.options, "--cmd", backend, "--nj", "2"]
        # Where tests run in the background of a shell, they and what they start ignore SIGINT.
        heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        with subprocess.Popen(command, cwd=stub.root, stderr=subprocess.PIPE, **heed) as process:
            with open(os.open(stub.root / "started", os.O_RDWR)) as started:
                pids = [int(started.readline()) for _ in range(2)]
            process.send_signal(sent)
            process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == status
        assert all(map(gone, pids))


def test_bad_input_is_told_and_exits_3(tmp_path, corpora):
    for name in ("one", "two"):
        (tmp_path / "corpora" / name).mkdir(parents=True)
        shutil.copy(corpora.labels, tmp_path / "corpora" / name / "metadata.csv")
    done = run("--corpora", "corpora", "--encoder", "logmel", "--lalm-url", URL, cwd=tmp_path)
    assert done.returncode == 3 and "audio files are missing" in done.stderr
    (tmp_path / "corpora" / "one" / "metadata.csv").write_text("file\nx.wav\n")
    done = run("--corpora", "corpora", "--encoder", "logmel", "--lalm-url", URL, cwd=tmp_path)
    assert done.returncode == 3 and "corpora/one: found no manifest with a column 'emotion'" in done.stderr
