"""Options of the recipes' scripts, and where their jobs run."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_SECONDS

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
UTILS = RECIPES / "utils"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")


def bash(*command, **changes) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
        **changes,
    )


def test_shellcheck_has_nothing_to_say():
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (it is in the extra dev)")
    scripts = [
        *sorted(RECIPES.rglob("*.sh")),
        *(RECIPES.with_name(".ci") / name for name in ("run", "check-latest")),
    ]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert len(scripts) > 8 and done.returncode == 0, done.stdout


class TestOptions:
    SCRIPT = f"""
        set -euo pipefail
        some_name=before dry_run=false extra_options= hidden=1
        help_message="Options: --some-name N, --dry-run, --extra-options E (such as '--budget 20')"
        . {UTILS}/parse_options.sh
        echo "$some_name/$dry_run/$extra_options/$*"
    """

    def parse(self, *arguments):
        return bash("-c", self.SCRIPT, "script.sh", *arguments)

    @pytest.mark.parametrize(
        ("arguments", "values"),
        [
            ([], "before/false//"),
            (["--some-name", "a b"], "a b/false//"),
            (["--dry-run", "--some-name", "x"], "x/true//"),
            (["--dry-run", "true", "--dry-run", "false"], "before/false//"),
            (["--dry-run"], "before/true//"),
            (["--extra-options", "--budget 20 --yes"], "before/false/--budget 20 --yes/"),
            (
                ["--extra-options", "--yes", "JOB=1:2", "log", "--some-name", "x"],
                "before/false/--yes/JOB=1:2 log --some-name x",
            ),
            (["--some-name", "", "rest"], "/false//rest"),
        ],
    )
    def test_values(self, arguments, values):
        done = self.parse(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, values + "\n", "")

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--bogus", "1"], "unknown option --bogus"),
            (["--hidden", "2"], "unknown option --hidden"),  # a variable, but no option
            (["--budget", "2"], "unknown option --budget"),  # mentioned, but no option
            (["--some_name", "x"], "unknown option --some_name"),
            (["-x"], "unknown option -x"),
            (["--"], "unknown option --"),
            (["--some-name"], "--some-name needs a value"),
            (["--some-name", "--dry-run"], "--some-name needs a value"),
            (["--some-name=x"], "--some-name=x: write --some-name and its value with a space"),
            (["--dry-run", "maybe"], "--dry-run is true or false, not 'maybe'"),
        ],
    )
    def test_errors_show_the_help_and_exit_2(self, arguments, complaint):
        done = self.parse(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"script.sh: {complaint}") and "Options: --some-name" in done.stderr

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_help(self, flag):
        done = self.parse("--some-name", "x", flag)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Options: ")


@pytest.fixture(params=["local", "slurm"])
def backend(request):
    """Run an array of jobs by either backend, with their logs in the working directory."""
    if request.param == "slurm":
        request.getfixturevalue("slurm")

    def run(*options, array="JOB=1:3", log="logs/a.JOB.log", command, **changes):
        return bash(UTILS / f"{request.param}.sh", *options, array, log, *command, **changes)

    return run


class TestBothBackends:
    def test_jobs_and_their_logs(self, backend, tmp_path):
        script = 'echo "$1 of x"; echo "# remark"'
        done = backend("--nj", "2", command=["bash", "-c", script, "bash", "job JOB"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stderr.splitlines()) == ["job 1 of x", "job 2 of x", "job 3 of x"]
        lines = (tmp_path / "logs" / "a.2.log").read_text().splitlines()
        assert lines[0].startswith("# bash -c ") and lines[0].endswith("bash job\\ 2")
        assert lines[1].startswith("# started 20") and f" on {os.uname().nodename}" in lines[1]
        assert lines[2:4] == ["job 2 of x", "# remark"]
        assert lines[4].startswith("# ended 20") and lines[4].endswith("s with exit code 0")

    def test_the_first_failed_job_gives_the_exit_status(self, backend, tmp_path):
        # Job 3 fails before job 2 does: it is the number that counts.
        os.mkfifo(tmp_path / "gate")
        script = "case $1 in 3) echo > gate; exit 7;; 2) read _ < gate; echo why; exit 5;; esac"
        done = backend("--nj", "3", command=["bash", "-c", script, "bash", "JOB"], cwd=tmp_path)
        assert done.returncode == 5
        assert (
            "2 of 3 jobs failed: 2 3. Job 2 ended with exit code 5; the end of logs/a.2.log:" in done.stderr
        )
        assert "  why\n" in done.stderr

    def test_the_working_directory_may_hold_the_word_that_stands_for_the_number(self, backend, tmp_path):
        place = tmp_path / "JOB %a"
        place.mkdir()
        done = backend(array="JOB=1:2", command=["echo", "job", "JOB"], cwd=place)
        assert (done.returncode, sorted(done.stderr.splitlines())) == (0, ["job 1", "job 2"])
        assert sorted(path.name for path in (place / "logs").iterdir()) == ["a.1.log", "a.2.log"]

    def test_old_logs_are_not_read(self, backend, tmp_path):
        assert backend(command=["false"], cwd=tmp_path).returncode == 1
        assert backend(command=["true"], cwd=tmp_path).returncode == 0
        assert "code 1" not in (tmp_path / "logs" / "a.1.log").read_text()

    def test_no_more_than_nj_at_the_same_time(self, backend, tmp_path):
        # Jobs 1 and 2 meet at the fifo, so two do run together; each job tells how many there are.
        os.mkfifo(tmp_path / "gate")
        (tmp_path / "running").mkdir()
        script = """
            mkdir running/$1; ls running | wc -l
            case $1 in 1) echo > gate;; 2) read _ < gate;; esac
            rmdir running/$1"""
        done = backend(
            "--nj", "2", array="JOB=1:6", command=["bash", "-c", script, "bash", "JOB"], cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        counts = list(map(int, done.stderr.split()))
        assert len(counts) == 6 and max(counts) == 2

    @pytest.mark.parametrize(
        ("options", "array", "log", "complaint"),
        [
            ((), "JOB=0:3", "a.JOB.log", "expected JOB=1:N, found 'JOB=0:3'"),
            ((), "JOB=1:2", "a.log", "would be the log of 2 jobs"),
            (("--nj", "0"), "JOB=1:2", "a.JOB.log", "--nj 0: expected 1 or more"),
            (("--ngpu", "x"), "JOB=1:2", "a.JOB.log", "--ngpu x: expected a number"),
        ],
    )
    def test_usage_errors(self, backend, options, array, log, complaint, tmp_path):
        done = backend(*options, array=array, log=log, command=["true"], cwd=tmp_path)
        assert done.returncode == 2 and complaint in done.stderr and "Usage: " in done.stderr

    def test_nothing_outlives_a_signal(self, tmp_path, request, backend):
        os.mkfifo(tmp_path / "started")
        script = "trap '' INT; echo $$ > started; exec sleep 600"
        name = "slurm" if "slurm" in request.node.name else "local"
        command = [UTILS / f"{name}.sh", "--nj", "2", "JOB=1:3", "logs/a.JOB.log", "bash", "-c", script]
        process = subprocess.Popen(["bash", *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE)
        with open(os.open(tmp_path / "started", os.O_RDWR)) as started:
            pids = [int(started.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 143
        assert all(map(gone, pids))
        assert not (tmp_path / "logs" / "a.3.log").exists()


def gone(pid: int) -> bool:
    """Whether a process has ended, or does so soon."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    return bool(select.select([handle], [], [], HANG_SECONDS)[0])


class TestLocal:
    SEES = ("bash", "-c", 'echo "${CUDA_VISIBLE_DEVICES-all}"')

    def local(self, *arguments, **environment):
        inherited = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        return bash(UTILS / "local.sh", *arguments, env={**inherited, **environment})

    @pytest.mark.parametrize(
        ("options", "environment", "seen"),
        [
            ((), {}, {"all"}),
            (("--ngpu", "0"), {}, {""}),
            (("--ngpu", "2"), {}, {"0", "1"}),
            (("--ngpu", "2"), {"CUDA_VISIBLE_DEVICES": "5,7"}, {"5", "7"}),
            ((), {"CUDA_VISIBLE_DEVICES": "5,7"}, {"5,7"}),
        ],
    )
    def test_every_running_job_sees_a_gpu_of_its_own(self, options, environment, seen, tmp_path):
        # Two jobs that meet at a fifo run at the same time.
        os.mkfifo(tmp_path / "gate")
        script = f"case $1 in 1) echo > {tmp_path}/gate;; 2) read _ < {tmp_path}/gate;; esac; {self.SEES[2]}"
        array = ("--nj", "2", *options, "JOB=1:2", tmp_path / "JOB.log", "bash", "-c", script, "bash", "JOB")
        done = self.local(*array, **environment)
        assert done.returncode == 0
        assert set(done.stderr.splitlines()) == seen

    def test_no_job_is_started_after_a_failure(self, tmp_path):
        command = ("bash", "-c", "echo JOB; [ JOB != 2 ]")
        done = self.local("JOB=1:4", tmp_path / "JOB.log", *command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[:2] == ["1", "2"] and not (tmp_path / "3.log").exists()

    def test_jobs_that_could_not_be_started_have_failed(self, tmp_path):
        (tmp_path / "mkfifo").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "mkfifo").chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = self.local("--nj", "2", "JOB=1:3", tmp_path / "JOB.log", "true", PATH=path)
        assert done.returncode == 1 and "3 of 3 jobs failed: 1 2 3." in done.stderr

    def test_a_job_whose_worker_is_killed_and_those_it_leaves_have_failed(self, tmp_path):
        script = "read -r _ _ _ worker _ < /proc/$PPID/stat; [ JOB != 2 ] || kill -KILL $worker"
        done = self.local("JOB=1:4", tmp_path / "JOB.log", "bash", "-c", script)
        assert (
            done.returncode == 1 and "3 of 4 jobs failed: 2 3 4. Job 2 ended with exit code 1" in done.stderr
        )

    def test_what_a_job_prints_comes_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "gate")
        command = [
            "bash",
            UTILS / "local.sh",
            "JOB=1:1",
            tmp_path / "log",
            "bash",
            "-c",
            "echo now; read _ < gate",
        ]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline() == "now\n"
            (tmp_path / "gate").write_text("go on\n")
        assert process.returncode == 0


class TestSlurm:
    def test_what_is_asked_of_it(self, slurm, tmp_path):
        options = ["--nj", "4", "--ngpu", "2", "--options", "-p gpu --time 8:00:00"]
        for log in ("l%g.x/stage2.JOB.log", "./stage3.JOB.log"):
            done = bash(UTILS / "slurm.sh", *options, "JOB=1:6", log, "true", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        asked, other = slurm.submitted
        assert asked["array"] == "1-6%4" and asked["gres"] == "gpu:1"
        assert asked["partition"] == "gpu" and asked["time"] == "8:00:00"
        logs = sorted(path.name for path in (tmp_path / "l%g.x").iterdir())
        assert logs == [f"stage2.{n}.log" for n in range(1, 7)]
        for one, stage in ((asked, "stage2"), (other, "stage3")):
            assert re.fullmatch(rf"{stage}-{re.escape(os.uname().nodename)}-\d+", one["job_name"])

    @pytest.mark.parametrize("options", [[], ["--ngpu", "0"]])
    def test_no_gpu_is_asked_for_without_ngpu(self, slurm, tmp_path, options):
        assert bash(UTILS / "slurm.sh", *options, "JOB=1:1", tmp_path / "log", "true").returncode == 0
        assert slurm.submitted[0]["gres"] is None

    def test_a_refused_submission_fails(self, slurm, tmp_path):
        done = bash(UTILS / "slurm.sh", "--options", "--bogus", "JOB=1:2", tmp_path / "JOB.log", "true")
        assert done.returncode == 2
        assert (
            "unrecognized arguments: --bogus" in done.stderr
            and "sbatch took no jobs (exit code 2)" in done.stderr
        )

    def test_a_job_that_is_killed_has_failed(self, slurm, tmp_path):
        script = "[ JOB != 2 ] || kill -KILL $PPID"
        done = bash(UTILS / "slurm.sh", "JOB=1:2", tmp_path / "JOB.log", "bash", "-c", script)
        assert done.returncode == 1 and "1 of 2 jobs failed: 2." in done.stderr

    def test_without_sbatch(self, tmp_path):
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("bash", "dirname", "mkdir", "rm"):
            (tools / name).symlink_to(shutil.which(name))
        done = bash(UTILS / "slurm.sh", "JOB=1:1", tmp_path / "log", "true", env={"PATH": str(tools)})
        assert done.returncode == 6 and "no sbatch on the PATH" in done.stderr
