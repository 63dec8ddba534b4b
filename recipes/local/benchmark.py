"""The tables of several comparisons in one file, with what they say of the goals that matter."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mifuse_cli.files import atomic_file

OURS, PAPER, UNIFORM = "mifuse-cross-fit", "mifuse-mi", "mifuse-uniform"


def main() -> None:
    """Read EXPDIR/compare/NAME/results.json and write EXPDIR/benchmark.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expdir", type=Path, required=True)
    parser.add_argument("comparisons", nargs="+", help="names below EXPDIR/compare, in order")
    options = parser.parse_args()
    places = {name: options.expdir / "compare" / name for name in options.comparisons}
    missing = [str(place) for place in places.values() if not (place / "results.json").is_file()]
    if missing:
        print(f"error: there is no results.json in {', '.join(missing)}; run stage 3 first", file=sys.stderr)
        sys.exit(3)
    results = {name: json.loads((place / "results.json").read_text()) for name, place in places.items()}
    parts = ["# Benchmark", averages(results), margins(results)]
    for name, place in places.items():
        parts += [f"## {name}", (place / "table.md").read_text(encoding="utf-8").strip()]
    text = "\n\n".join(parts) + "\n"
    with atomic_file(options.expdir / "benchmark.md") as path:
        path.write_text(text, encoding="utf-8")
    print("\n\n".join(parts[1:3]))


def averages(results: dict[str, dict[str, Any]]) -> str:
    """Average UA of every method in every comparison, the highest in bold."""
    rows = {
        name: [one["systems"].get(name) for one in results.values()]
        for name in dict.fromkeys(name for one in results.values() for name in one["systems"])
    }
    rows = {
        name: cells
        for name, cells in rows.items()
        if any(
            cell and cell["group"] in ("teachers", "baselines", "fusion", "cross-fit", "oracle")
            for cell in cells
        )
    }
    best = [
        max(mean(cell) for cell in column if cell and cell["rank"])
        for column in zip(*rows.values(), strict=True)
    ]
    lines = [f"| average UA in % | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name, cells in rows.items():
        texts = []
        for cell, highest in zip(cells, best, strict=True):
            text = f"{mean(cell):.1f} ± {cell['ua']['average']['std']:.1f}" if cell else ""
            texts.append(f"**{text}**" if cell and cell["rank"] and mean(cell) == highest else text)
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def mean(system: dict[str, Any]) -> float:
    """Average UA of a system."""
    return system["ua"]["average"]["mean"]


def margins(results: dict[str, dict[str, Any]]) -> str:
    """How far ours is ahead, with intervals, and in how many transfers it is best or tied."""
    others = {"best baseline": None, "uniform fusion": UNIFORM, "paper's weighting": PAPER, "LALM": "lalm"}
    lines = [
        f"| {OURS} less | {' | '.join(others)} | highest (clearly), tied |",
        "|---" * (len(others) + 2) + "|",
    ]
    for name, one in results.items():
        cells = []
        for other in others.values():
            gap = one["systems"][OURS]["against"][other or one["best_baseline"]]
            suffix = "" if other else f" {one['best_baseline']}"
            cells.append(f"{gap['difference']:+.1f} [{gap['low']:.1f}, {gap['high']:.1f}]{suffix}")
        states = [transfer["state"] for transfer in one["standing"].values()]
        ahead, higher, tied = (states.count(state) for state in ("ahead", "higher", "tied"))
        cells.append(f"{ahead + higher} ({ahead}), {tied} of {len(states)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
