"""Collect the scores of all transfers into results.json and results.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml

from mifuse_cli.artifacts import Evaluation
from mifuse_cli.errors import MifuseError
from mifuse_cli.files import atomic_file

ROWS = {
    "source-only": "source-only",
    "LALM": "lalm",
    "fused": "fused",
    "LALM-SFUDA": "lalm-sfuda",
    "MI-Fuse": "mifuse",
    "cross-fit": "cross-fit",
}
OURS = "cross-fit"


def main() -> None:
    """Read EXPDIR/SOURCE-TARGET/seedN/eval-ROW.h5 and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expdir", type=Path, required=True)
    parser.add_argument("--names", required=True, help="corpora, separated by spaces")
    parser.add_argument("--seeds", required=True, help="seeds, separated by spaces")
    parser.add_argument("--reference", type=Path, help="YAML file of published figures to show beside ours")
    options = parser.parse_args()
    names, seeds = options.names.split(), options.seeds.split()
    transfers = [(a, b) for a in names for b in names if a != b]
    rows = {}
    for row, file in ROWS.items():
        found = [
            [
                Evaluation.load(options.expdir / f"{a}-{b}" / f"seed{seed}" / f"eval-{file}.h5")
                for seed in seeds
            ]
            for a, b in transfers
        ]
        ua = [[one.header.parameters["metrics"]["ua"] for one in column] for column in found]
        rows[row] = summary(transfers, 100 * np.array(ua))
        signature = found[0][0].header.parameters["signature"]
    protocol = (
        f"unweighted accuracy in per cent, mean and standard deviation over seeds {' '.join(seeds)}; students: "
        f"transductive, last epoch; one evaluation reads: {signature}"
    )
    results = {"protocol": protocol, "rows": rows}
    if options.reference:
        results["reference"] = reference(options.reference, names)
    with atomic_file(options.expdir / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n")
    text = markdown(results)
    with atomic_file(options.expdir / "results.md") as path:
        path.write_text(text)
    print(text, end="")


def summary(transfers: list[tuple[str, str]], ua: np.ndarray) -> dict:
    """Mean and deviation over seeds of every transfer and of their average, from UA in per cent (transfers, seeds)."""

    def both(values: np.ndarray) -> dict[str, float]:
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return {"mean": round(float(values.mean()), 4), "std": round(std, 4)}

    return {
        "transfers": {f"{a}>{b}": both(values) for (a, b), values in zip(transfers, ua, strict=True)},
        "average": both(ua.mean(axis=0)),
    }


def reference(file: Path, names: list[str]) -> dict:
    """What is published of the transfers between ``names``; its average only if they are the same corpora."""
    known = yaml.safe_load(file.read_text(encoding="utf-8"))
    ours = {f"{a}>{b}" for a in names for b in names if a != b}
    return {
        "paper": known["paper"],
        "average": known["average"] if set(names) == set(known["corpora"]) else [],
        "transfers": [one for one in known["transfers"] if one["transfer"] in ours],
    }


def markdown(results: dict) -> str:
    """The table as Markdown, the best mean of each column in bold, and what is published beside it."""
    rows = results["rows"]
    columns = [*next(iter(rows.values()))["transfers"], "average"]
    cells = {row: {**values["transfers"], "average": values["average"]} for row, values in rows.items()}
    best = {column: max(cell[column]["mean"] for cell in cells.values()) for column in columns}
    known = results.get("reference", {"average": [], "transfers": []})
    marks = {one["row"]: f"{one['ua']} [{n}]" for n, one in enumerate(known["average"], 1)}
    header = [*columns, "paper, average"] if marks else columns
    lines = ["| UA in % | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
    for row, cell in cells.items():
        texts = []
        for column in columns:
            text = f"{cell[column]['mean']:.1f} ± {cell[column]['std']:.1f}"
            texts.append(f"**{text}**" if cell[column]["mean"] == best[column] else text)
        lines.append(f"| {row} | " + " | ".join([*texts, *([marks.get(row, "-")] if marks else [])]) + " |")
    ours = rows[OURS]["average"]["mean"]
    gains = ", ".join(
        f"{ours - values['average']['mean']:+.1f} over {row}" for row, values in rows.items() if row != OURS
    )
    parts = ["\n".join(lines), f"{OURS} on average: {gains}.", f"Protocol: {results['protocol']}."]
    return "\n\n".join([*parts, *published(known)]) + "\n"


def published(known: dict) -> list[str]:
    """Where each published figure is from, and whether it was verified; no paragraph if there is none."""

    def origin(one: dict) -> str:
        return f"{'verified' if one['verified'] else 'NOT verified'}; {one['source']}"

    notes = [f"[{n}] {one['row']} {one['ua']}: {origin(one)}." for n, one in enumerate(known["average"], 1)]
    notes += [f"{one['transfer']}, {one['row']} {one['ua']}: {origin(one)}." for one in known["transfers"]]
    if not notes:
        return []
    about = (
        f"Figures of {known['paper']}, whose model, LALM, class set and splits are not known: not comparable "
        "number by number."
    )
    return ["\n".join([about, "", *(f"- {note}" for note in notes)])]


if __name__ == "__main__":
    try:
        main()
    except MifuseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
