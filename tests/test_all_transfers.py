"""The paper preset over small corpora in their real layouts: two killed on their way, continued and changed, three by
way of Slurm.

Everything is real but the sounds, the size of the encoder, the language model and Slurm.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import trees
import yaml
from conftest import HANG_SECONDS
from nursery import Nursery

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
BINARIES = Path(sys.executable).parent
CORPORA = ("iemocap", "msp-improv", "msp-podcast")
ROWS = ["source-only", "LALM", "fused", "LALM-SFUDA", "MI-Fuse", "cross-fit"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash"),
]


@pytest.fixture(params=["forked", "started"])
def place(request, tmp_path, encoders):
    """Three unpacked corpora, the settings of the preset with fewer epochs, and a way to run the recipe.

    Its commands are forked from a process that has imported everything, which kills and gets to more of them, or are
    started as users start them: that each step finds what it needs by itself, and that nothing of a killed one is
    left but files. Quick tests are those of test_recipes.py, where mifuse is pretended, and of test_benchmark.py.
    """
    trees.iemocap(tmp_path / "IEMOCAP_full_release")
    trees.msp_improv(tmp_path / "MSP-IMPROV")
    trees.msp_podcast(tmp_path / "MSP-Podcast")
    shutil.copytree(RECIPES / "conf" / "paper", tmp_path / "conf")
    change(tmp_path / "conf/train-source.yaml", encoder=str(encoders["wavlm"]), epochs=1)
    change(tmp_path / "conf/train.yaml", epochs=1)
    change(tmp_path / "conf/query-lalm.yaml", **{"n-samples": 2})
    (tmp_path / "conf/evaluate.yaml").write_text("resamples: 100\n")
    nursery = request.getfixturevalue("nursery") if request.param == "forked" else None
    return Place(tmp_path, nursery)


def change(path: Path, **values):
    path.write_text(yaml.safe_dump({**(yaml.safe_load(path.read_text()) or {}), **values}))


class Place:
    """Runs the recipe in a directory; what it says is gathered in ``said``."""

    def __init__(self, root: Path, nursery: Nursery | None):
        self.root, self.nursery = root, nursery
        self.said = root / "said"
        self.corpora = CORPORA

    @property
    def transfers(self) -> set[tuple[str, str]]:
        return {(a, b) for a in self.corpora for b in self.corpora if a != b}

    @property
    def everything(self) -> set[str]:
        """All that a run makes."""
        return (
            {f"data/{name}" for name in (*self.corpora, "msp-podcast-target")}
            | {f"models/{name}/seed0" for name in self.corpora}
            | {f"lalm/{name}.h5" for name in self.corpora}
            | of_transfers(self.transfers, *LABELS, *STUDENTS, *SCORES)
        )

    def start(self, url: str, *options: str) -> subprocess.Popen:
        roots = {"iemocap": "IEMOCAP_full_release", "msp-improv": "MSP-IMPROV", "msp-podcast": "MSP-Podcast"}
        given = [word for name in self.corpora for word in (f"--{name}", roots[name])]
        recipes = self.nursery.recipes if self.nursery else RECIPES
        command = ["bash", recipes / "run_all_transfers.sh", "--preset", "paper", "--conf", "conf", *given]
        command += ["--lalm-url", url, "--lalm-model", "pretended", "--seeds", "0", *options]
        binaries = [self.nursery.binaries, BINARIES] if self.nursery else [BINARIES]
        path = os.pathsep.join([*map(str, binaries), os.environ["PATH"]])
        with self.said.open("w") as said:
            return subprocess.Popen(
                command, cwd=self.root, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def run(self, url: str, *options: str) -> Counter[str]:
        """Run to the end; what was made and what was unchanged."""
        running = self.start(url, *options)
        assert running.wait(timeout=HANG_SECONDS) == 0, self.said.read_text()
        return self.done()

    def kill(self, url: str, when, *options: str):
        """Run until ``when()``, then kill every process of the recipe."""
        running = self.start(url, *options)
        self.wait(running, when)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        if self.nursery:
            self.nursery.wait_until_idle()

    def wait(self, running: subprocess.Popen, when):
        """Wait until ``when()``, which comes before the recipe ends."""
        while not when():
            assert running.poll() is None, self.said.read_text()
            time.sleep(0.02)

    def says(self, pattern: str, times: int = 1):
        return lambda: len(re.findall(pattern, self.said.read_text(), re.MULTILINE)) >= times

    def done(self) -> dict[str, set[str]]:
        found = re.findall(r"^\d\d:\d\d:\d\d (made|unchanged) exp/(\S+)", self.said.read_text(), re.MULTILINE)
        return {state: {what for s, what in found if s == state} for state in ("made", "unchanged")}


def of_transfers(transfers, *names: str) -> set[str]:
    return {f"{a}-{b}/seed0/{name}" for a, b in transfers for name in names}


LABELS = ("source.h5", "fused.h5", "cross-fit.h5")
STUDENTS = ("lalm-sfuda", "mifuse", "cross-fit")
SCORES = tuple(f"eval-{row}.h5" for row in ("source-only", "lalm", "fused", *STUDENTS))


def check_table(place: Place):
    results = json.loads((place.root / "exp/results.json").read_text())
    assert list(results["rows"]) == ROWS
    for row in results["rows"].values():
        assert set(row["transfers"]) == {f"{a}>{b}" for a, b in place.transfers}
        assert all(0 <= cell["mean"] <= 100 for cell in row["transfers"].values())
    table = (place.root / "exp/results.md").read_text()
    assert "| MI-Fuse |" in table and ("58.4" in table) == (place.corpora == CORPORA)
    assert place.corpora != CORPORA or "NOT verified" in table


def nothing_half_written(root: Path):
    """What stands under a final name is whole: validate finds no fault in it."""
    made = [*root.glob("exp/data/*"), *root.glob("exp/models/*/*"), *root.glob("exp/lalm/*.h5")]
    made += [*root.glob("exp/*-*/seed0/*")]
    made = [path for path in made if not path.name.startswith(".") and path.suffix != ".partial"]
    import mifuse_cli as m

    findings = m.validate(m.ValidateConfig(paths=tuple(made))).findings if made else ()
    assert [one for one in findings if one.faults] == []


def test_four_jobs_at_a_time_killed_at_every_stage_then_changed(place, serve):
    lalm, jobs = serve(), ("--nj", "4")
    place.corpora = ("iemocap", "msp-podcast")
    place.kill(lalm.url, place.says(" made exp/data/"), *jobs)
    nothing_half_written(place.root)
    place.kill(lalm.url, place.says(" made exp/models/"), *jobs)
    nothing_half_written(place.root)
    place.kill(lalm.url, lambda: len(lalm.asked) > 20, *jobs)
    asked = len(lalm.asked)
    place.kill(lalm.url, place.says(r" made exp/\S+/eval-source-only.h5"), *jobs)
    nothing_half_written(place.root)
    before = place.done()["made"]

    done = place.run(lalm.url, *jobs)
    assert done["made"] | done["unchanged"] == place.everything
    assert before <= done["unchanged"]
    check_table(place)
    # Two answers for each of 32 + 8 clips; what was under way when the run was killed is asked again.
    assert 80 <= len(lalm.asked) <= 80 + 16 and asked <= 60

    # Other clips of MSP-Podcast as the target: new answers to them, and anew what they go into.
    change(place.root / "conf/prepare-msp-podcast-target.yaml", partitions="development")
    done = place.run(lalm.url, *jobs)
    to_podcast = {("iemocap", "msp-podcast")}
    assert done["made"] == {"data/msp-podcast-target", "lalm/msp-podcast.h5"} | of_transfers(
        to_podcast, *LABELS, *STUDENTS, *SCORES
    )
    assert done["unchanged"] == place.everything - done["made"]
    check_table(place)


def test_two_recipes_on_one_experiment(place, serve):
    """What one makes the other takes, or is refused; nothing is asked twice, and a third run finds all made."""
    lalm, jobs = serve(), ("--nj", "2")
    place.corpora = ("iemocap", "msp-podcast")
    first = place.start(lalm.url, *jobs)
    other = Place(place.root, place.nursery)
    other.corpora, other.said = place.corpora, place.root / "said of the other"
    second = other.start(lalm.url, *jobs)
    ends = [running.wait(timeout=HANG_SECONDS) for running in (first, second)]
    assert sorted(ends) in ([0, 0], [0, 3], [3, 3]), (place.said.read_text(), other.said.read_text())
    nothing_half_written(place.root)
    done = place.run(lalm.url, *jobs)
    assert done["made"] | done["unchanged"] == place.everything
    check_table(place)
    assert len(lalm.asked) == 80


def test_the_same_through_slurm(place, serve, slurm):
    """From scratch through arrays of jobs; in the quick tests of test_recipes_backends.py mifuse is pretended."""
    lalm, jobs = serve(), ("--cmd", "slurm", "--nj", "4", "--slurm-options", "-p short --mem 4G")
    running = place.start(lalm.url, *jobs)
    place.wait(running, (place.root / "exp/models/iemocap/seed0/train.h5").exists)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(timeout=HANG_SECONDS) == 143
    nothing_half_written(place.root)

    done = place.run(lalm.url, *jobs)
    assert (
        done["made"] | done["unchanged"] == place.everything and "models/iemocap/seed0" in done["unchanged"]
    )
    check_table(place)
    arrays = [(one["array"], one["partition"]) for one in slurm.submitted]
    assert arrays[-3:] == [("1-4%4", "short"), ("1-3%4", "short"), ("1-6%4", "short")]
    log = (place.root / "exp/logs/stage4-6.1.log").read_text()
    assert log.startswith("# ") and re.search(r"^# ended .* with exit code 0$", log, re.MULTILINE)
