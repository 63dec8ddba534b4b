"""``python -m mifuse_cli.demo``: the whole method on two small synthetic corpora, without GPU, key or network.

Makes the corpora, starts the stand-in for a language model on this machine, runs the real ``mifuse`` commands,
prints a table, draws a picture and writes a report.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mifuse_cli import console
from mifuse_cli.artifacts import Evaluation
from mifuse_cli.demo.corpora import make_corpora
from mifuse_cli.demo.picture import draw
from mifuse_cli.demo.standin import StandIn

ROWS = {
    "source-only": "eval-source.h5",
    "LALM (stand-in)": "eval-lalm.h5",
    "MI-fused labels": "eval-fused.h5",
    "LALM-only student": "eval-lalm-sfuda.h5",
    "MI-Fuse student": "eval-mifuse.h5",
    "cross-fit labels": "eval-cross-fit-labels.h5",
    "cross-fit student": "eval-cross-fit.h5",
}
STUDENTS = {
    "LALM-only student": ("lalm-sfuda", "--method lalm-sfuda --fused {mi}"),
    "MI-Fuse student": ("mifuse", "--fused {mi}"),
    "cross-fit student": ("cross-fit", "--fused {cross_fit}"),
}


def commands(out: Path, base_url: str) -> list[list[str]]:
    """The ``mifuse`` commands of the demo, in order."""
    target, labels = str(out / "target" / "manifest.csv"), str(out / "target" / "labels.csv")
    source, lalm, samples = (str(out / name) for name in ("source-model", "lalm.h5", "source.h5"))
    fused = {"mi": str(out / "fused.h5"), "cross_fit": str(out / "cross-fit.h5")}
    train_source = f"train-source --manifest {out}/source/manifest.csv --encoder logmel --out {source}"
    lines = [
        f"{train_source} --cache-dir {out}/cache",
        f"query-lalm --manifest {target} --n-samples 5 --base-url {base_url} --model standin --out {lalm}",
        f"sample-source --model {source} --manifest {target} --n-samples 10 --normalize target "
        f"--out {samples} --cache-dir {out}/cache",
        f"fuse --lalm {lalm} --source {samples} --weighting mi --out {fused['mi']}",
        f"fuse --lalm {lalm} --source {samples} --out {fused['cross_fit']}",
    ]
    for name, how in STUDENTS.values():
        lines.append(
            f"train {how.format(**fused)} --model {source} --manifest {target} "
            f"--out {out}/{name} --cache-dir {out}/cache"
        )
    scored = {
        "source": f"--model {source} --normalize target",
        "lalm": f"--predictions {lalm}",
        "fused": f"--predictions {fused['mi']}",
        "cross-fit-labels": f"--predictions {fused['cross_fit']}",
        **{name: f"--model {out}/{name}" for name, _ in STUDENTS.values()},
    }
    for name, what in scored.items():
        lines.append(
            f"evaluate {what} --manifest {labels} --out {out}/eval-{name}.h5 --cache-dir {out}/cache"
        )
    lines.append(f"report {out} --embed-audio 24 --title 'mifuse demo' --out {out}/report.html")
    return [shlex.split(line) for line in lines]


def run(out: Path) -> int:
    """Run the demo in the directory ``out``; returns the exit code."""
    shutil.rmtree(out, ignore_errors=True)
    print(f"Making two corpora of synthetic emotional speech in {out} ...", flush=True)
    make_corpora(out)
    # Sums of several threads are rounded in another order, which is enough for a network trained to other weights.
    environment = {**os.environ, "OPENAI_API_KEY": "none-needed", "OMP_NUM_THREADS": "1"}
    with StandIn() as standin:
        for command in commands(out, standin.base_url):
            print(f"\n$ mifuse {shlex.join(command)}", flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "mifuse_cli", *command], env=environment, check=False
            )
            if done.returncode:
                return done.returncode
    scores = {row: Evaluation.load(out / file) for row, file in ROWS.items()}
    picture = out / "demo.png"
    draw(picture, scores, {row: out / name for row, (name, _) in STUDENTS.items()})
    print("\nUnweighted accuracy (UA) on the target corpus; labels were read by evaluate only.\n")
    print(table(scores))
    print(
        "\nThe corpora are synthetic and the LALM is a stand-in: the figures show the mechanism, no more.\n"
    )
    print(f"Picture: {picture}")
    print(f"Report:  {out / 'report.html'} (open it in a browser: all figures, and every clip to be heard)")
    metrics = {row: score.header.parameters["metrics"]["ua"] for row, score in scores.items()}
    teachers = max(metrics["source-only"], metrics["LALM (stand-in)"])
    behind = [row for row in list(STUDENTS)[1:] if metrics[row] <= teachers]
    if behind:
        print(f"Does not beat both teachers here: {', '.join(behind)}.", file=sys.stderr)
        return 1
    return 0


def table(scores: dict[str, Evaluation]) -> str:
    """UA with its interval, weighted accuracy and macro F1 of every row, in per cent."""
    rows = []
    for row, score in scores.items():
        m = score.header.parameters["metrics"]
        interval = f"[{100 * m['ua_low']:.1f}, {100 * m['ua_high']:.1f}]"
        rows.append(
            [row, f"{100 * m['ua']:.1f}", interval, f"{100 * m['wa']:.1f}", f"{100 * m['macro_f1']:.1f}"]
        )
    return console.table(["", "UA %", "95 % interval", "WA %", "macro F1 %"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("exp/demo"), help="directory, emptied first")
    sys.exit(run(parser.parse_args().out))
