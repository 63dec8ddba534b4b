"""The figures over several worlds as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mifuse_cli.evaluation import METRICS, best_of
from mifuse_cli.steps.compare_worlds.reading import World
from mifuse_cli.steps.compare_worlds.scoring import TEACHERS


def markdown(results: dict[str, Any]) -> str:
    """A table of worlds and systems for every metric, with an explanation of its figures."""
    parts = [_about(results)]
    for metric, title in METRICS.items():
        header, *body = _cells(results, metric)
        lines = [header, ["---"] * len(header), *body]
        parts += [f"### {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join([*parts, _protocols(results)]) + "\n"


def as_csv(worlds: Sequence[World], systems: Sequence[str]) -> str:
    """All single scores: one line for every world, system, transfer and seed; rates in [0, 1]."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["world", "protocol", *worlds[0].scores[0]], lineterminator="\n")
    writer.writeheader()
    for world in worlds:
        rows = (row for row in world.scores if row["system"] in systems)
        writer.writerows({"world": world.name, "protocol": world.protocol, **row} for row in rows)
    return text.getvalue()


def difference(gap: dict[str, float]) -> str:
    """A difference in points with its interval."""
    return f"{gap['difference']:+.1f} [{gap['low']:.1f}, {gap['high']:.1f}]"


def harmed(one: dict[str, Any]) -> str:
    """In how many transfers a system does harm; nothing where that is not known."""
    return "" if one["harm"] is None else f"{one['harm']['transfers']} of {one['harm']['of']}"


def _about(results: dict[str, Any]) -> str:
    number = sum(len(world["transfers"]) for world in results["worlds"].values())
    teachers = " and ".join(TEACHERS)
    if any(one["harm"] for one in results["systems"].values()):
        harm = (
            f"Harm: in how many transfers UA is below that of the better of {teachers}, with the 95 % interval of the "
            "difference below 0."
        )
    else:
        harm = f"Harm is not counted, since not every world has the rows {teachers}."
    units = results["drawn"].replace("+", " or ")
    return (
        f"{len(results['worlds'])} worlds with {number} transfers. Averages over the transfers of a world and over "
        "seeds, in %; in the column mean every world counts the same. The last row is the difference to the baseline "
        f"with the best mean of the metric, with its 95 % interval: paired bootstrap over {units}, each drawn equally "
        f"often for all systems and in all worlds. Rank: mean over transfers, by UA, of the methods. {harm} A lower "
        "ECE (expected calibration error) is better."
    )


def _cells(results: dict[str, Any], metric: str) -> list[list[str]]:
    """Header and rows of the table of a metric; the best of each column among the methods is bold."""
    worlds, systems = list(results["worlds"]), results["systems"]
    columns = [*worlds, None]  # None: the mean over worlds
    ranked = [name for name, one in systems.items() if one["rank"] is not None]

    def value(name: str, column: str | None) -> float:
        of = systems[name][metric]
        return of["mean"] if column is None else of["worlds"][column]

    best = [
        best_of(metric, {name: value(name, column) for name in ranked}) if ranked else None
        for column in columns
    ]
    lines = [["system", *worlds, "mean", *(["rank", "harm"] if metric == "ua" else [])]]
    for name, one in systems.items():
        texts = [f"{value(name, column):.1f}" for column in columns]
        line = [
            name,
            *(f"**{text}**" if name == top else text for text, top in zip(texts, best, strict=True)),
        ]
        if metric == "ua":
            line += ["" if one["rank"] is None else f"{one['rank']:.1f}", harmed(one)]
        lines.append(line)
    if gap := results["against_best"].get(metric):
        line = [
            f"{results['ours']} less {gap['baseline']}",
            *(difference(gap["worlds"][world]) for world in worlds),
            difference(gap["mean"]),
        ]
        lines.append([*line, *[""] * (len(lines[0]) - len(line))])
    return lines


def _protocols(results: dict[str, Any]) -> str:
    lines = [
        f"- {name}: {', '.join(world['transfers'])}; `{world['protocol']}`"
        for name, world in results["worlds"].items()
    ]
    return "\n".join(["Worlds:", "", *lines])
