"""The table of all transfers, from the scores of each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mifuse_cli.artifacts import Evaluation, Header

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class TestTable:
    NAMES = "iemocap msp-improv msp-podcast"

    def table(self, tmp_path, names, *options):
        """Scores of 25, 50 and so on per cent for the rows, from artifacts."""
        right = {"source-only": 1, "lalm": 2, "fused": 3, "lalm-sfuda": 2, "mifuse": 3, "cross-fit": 4}
        for source in names.split():
            for target in set(names.split()) - {source}:
                for row, n in right.items():
                    parameters = {"metrics": {"ua": n / 4 - (source == "iemocap") / 8}, "signature": "UA|v"}
                    header = Header(tuple("abcd"), seed=0, config={}, parameters=parameters, parents=())
                    (tmp_path / f"{source}-{target}" / "seed0").mkdir(parents=True, exist_ok=True)
                    Evaluation(
                        header=header, utt_id=np.array(["x"]), probs=np.full((1, 4), 0.25, np.float32),
                        truth=np.zeros(1, np.uint8), confusion=np.zeros((4, 5), np.int64),
                    ).save(tmp_path / f"{source}-{target}" / "seed0" / f"eval-{row}.h5")  # fmt: skip
        script = RECIPES / "local" / "results.py"
        command = [sys.executable, script, "--expdir", tmp_path, "--names", names, "--seeds", "0", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (tmp_path / "results.md").read_text() == done.stdout
        return done.stdout, json.loads((tmp_path / "results.json").read_text())

    def test_without_reference(self, tmp_path):
        text, results = self.table(tmp_path, "one iemocap")
        assert "paper" not in text and "reference" not in results
        assert text.splitlines()[0] == "| UA in % | one>iemocap | iemocap>one | average |"
        assert "| cross-fit | **100.0 ± 0.0** | **87.5 ± 0.0** | **93.8 ± 0.0** |" in text
        assert "cross-fit on average: +75.0 over source-only, +50.0 over LALM, +25.0 over fused" in text
        assert results["rows"]["LALM"]["average"] == {"mean": 43.75, "std": 0.0}

    def test_the_paper_s_figures_are_marked(self, tmp_path):
        file = RECIPES / "conf" / "paper-reference.yaml"
        text, results = self.table(tmp_path, self.NAMES, "--reference", file)
        lines = text.splitlines()
        assert lines[0].endswith("| average | paper, average |")
        cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip(" |") for line in lines[2:8]}
        assert cells["MI-Fuse"] == "58.4 [1]" and cells["LALM-SFUDA"] == "54.5 or 56.2 [2]"
        assert cells["LALM"] == cells["source-only"] == cells["cross-fit"] == "-"
        notes = [line for line in lines if line.startswith("- ")]
        known = yaml.safe_load(file.read_text())
        assert len(notes) == len(known["average"]) + len(known["transfers"]) == 5
        assert all("NOT verified; " in note for note in notes)
        assert results["reference"] == {key: known[key] for key in ("paper", "average", "transfers")}

    def test_of_other_transfers_only_what_fits(self, tmp_path):
        file = tmp_path / "reference.yaml"
        one = {"row": "MI-Fuse", "ua": "60.0", "source": "table 1", "verified": True}
        transfers = [{**one, "transfer": "iemocap>msp-improv"}, {**one, "transfer": "iemocap>msp-podcast"}]
        known = {"paper": "P", "corpora": self.NAMES.split(), "average": [one], "transfers": transfers}
        file.write_text(yaml.safe_dump(known))
        text, results = self.table(tmp_path, "iemocap msp-improv", "--reference", file)
        assert "paper, average" not in text and results["reference"]["average"] == []
        assert text.splitlines()[-1] == "- iemocap>msp-improv, MI-Fuse 60.0: verified; table 1."


@pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")
def test_scores_that_are_missing_are_told_and_exit_3(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = ["--stage", "7", "--corpora", "c", "--names", "a b"]
    done = subprocess.run(
        ["bash", RECIPES / "run_all_transfers.sh", *options],
        cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "\nerror: exp/a-b/seed0/eval-source-only.h5" in done.stderr
