"""The figures of a comparison as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from mifuse_cli.evaluation import DECISIONS, METRICS
from mifuse_cli.steps.compare.systems import LALM, MAIN, OURS, PAPER, UNIFORM

_HEADINGS = {
    "main": "Methods",
    "weightings": "Other weightings, pools, estimators and temperatures of the paper's student",
    "ablations": "Ablations",
    "oracle": "Upper bound: trained on target labels, no adaptation",
}


def markdown(results: dict[str, Any]) -> str:
    """All tables, with an explanation of their figures."""
    parts = [f"Protocol: `{results['protocol']}`. {_about(results)}"]
    for heading, about, (header, *body) in _tables(results):
        lines = [header, ["---"] * len(header), *body]
        parts += [f"### {heading}", *([about] if about else [])]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, *_standings(results)]) + "\n"


def latex(results: dict[str, Any]) -> str:
    """The same as LaTeX tables for the package booktabs."""
    parts = [f"% {results['protocol']}"]
    for heading, about, lines in _tables(results):
        header, *body = ([_tex(cell) for cell in line] for line in lines)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_tex(heading)}. {_tex(about or _about(results))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                    r"\toprule",
                    " & ".join(header) + r" \\",
                    r"\midrule",
                    *(" & ".join(line) + r" \\" for line in body),
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def as_csv(results: dict[str, Any]) -> str:
    """All single scores: one line for every system, transfer and seed; rates in [0, 1]."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["protocol", *results["scores"][0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"protocol": results["protocol"], **row} for row in results["scores"])
    return text.getvalue()


def _tables(results: dict[str, Any]) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Heading, explanation if it is not that of all tables, and header and rows of every table."""
    for part, heading in _HEADINGS.items():
        if rows := _rows(results, part):
            yield heading, "", _cells(results, part, rows)
    if rows := _rows(results, "main"):
        about = (
            "Averages over transfers in %, mean and standard deviation over seeds. WA, macro F1 and ECE are of the "
            "decision argmax p; a lower ECE (expected calibration error) is better. Differences, with intervals as "
            "above, are to the baseline with the best average of the metric."
        )
        yield "All metrics of the methods", about, _metrics(results, rows)


def _metrics(results: dict[str, Any], rows: list[str]) -> list[list[str]]:
    """Header and rows of the table of all metrics."""
    header = ["system"]
    for metric, title in METRICS.items():
        best = results["best_baselines"][metric]
        header += [title, *([f"less {best}"] if best else [])]
    lines = [header]
    for name in rows:
        one, line = results["systems"][name], [name]
        for metric in METRICS:
            line.append(_mean(one[metric]["average"]))
            if results["best_baselines"][metric]:
                gap = one["against_best"].get(metric)
                line.append(_difference(gap) if gap else "")
        lines.append(line)
    return lines


def _mean(values: dict[str, Any]) -> str:
    return f"{values['mean']:.1f} ± {values['std']:.1f}"


def _about(results: dict[str, Any]) -> str:
    clips = ", ".join(f"{name} {count}" for name, count in results["clips"].items())
    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"Unweighted accuracy (UA) of the decision {DECISIONS[0]} in %, mean and standard deviation over seeds "
        f"{seeds}; differences of averages with 95 % intervals, paired bootstrap over "
        f"{results['drawn'].replace('+', ' or ')}. Clips: {clips}."
    )


def _rows(results: dict[str, Any], part: str) -> list[str]:
    groups = MAIN if part == "main" else (part,)
    return [name for name, one in results["systems"].items() if one["group"] in groups]


def _cells(results: dict[str, Any], part: str, rows: list[str]) -> list[list[str]]:
    """Header and rows of a table; in that of the methods the highest mean of each column is bold."""
    columns = [*results["transfers"], "average"]
    systems = results["systems"]
    against = _references(results, part)
    header = ["system", *columns, *(f"less {one}" for one in against.values())]
    if part == "main":
        header.append("rank")
    lines = [header]
    for name in rows:
        one = systems[name]
        line = [name]
        for column in columns:
            text = _mean(one["ua"][column])
            if part == "main" and one["rank"] is not None and name == _highest(systems, column):
                text = f"**{text}**"
            line.append(text)
        for other in against:
            line.append(_difference(one["against"][other]) if other in one["against"] else "")
        if part == "main":
            line.append("" if one["rank"] is None else f"{one['rank']:.1f}")
        lines.append(line)
    return lines


def _references(results: dict[str, Any], part: str) -> dict[str, str]:
    """Systems that the rows of a table are compared with, by the title of the column."""
    wanted = {
        "main": {LALM: "LALM", results["best_baseline"]: f"best baseline ({results['best_baseline']})"},
        "weightings": {PAPER: PAPER, UNIFORM: UNIFORM},
        "ablations": {PAPER: PAPER, OURS: OURS},
        "oracle": {OURS: OURS},
    }[part]
    return {name: title for name, title in wanted.items() if name in results["systems"]}


def _highest(systems: dict[str, Any], column: str) -> str:
    ranked = [name for name, one in systems.items() if one["rank"] is not None]
    return max(ranked, key=lambda name: systems[name]["ua"][column]["mean"])


def _difference(gap: dict[str, float]) -> str:
    return f"{gap['difference']:+.1f} [{gap['low']:.1f}, {gap['high']:.1f}]"


def _standings(results: dict[str, Any]) -> list[str]:
    """Result of our method against the best other method, for every transfer."""
    standing = results["standing"]
    if not standing:
        return []
    states = [one["state"] for one in standing.values()]
    highest = states.count("ahead") + states.count("higher")
    lines = [
        f"- {column}: {one['state']}, {_difference(one)} against {one['best_other']}"
        for column, one in standing.items()
    ]
    about = (
        f"`{OURS}` against the best other method of each of {len(standing)} transfers: the highest mean in {highest} "
        f"(in {states.count('ahead')} with an interval above 0), tied in {states.count('tied')} more (a lower mean, "
        "but the interval of the difference holds 0):"
    )
    return [about, "\n".join(lines)]


_TEX = {"\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "±": r"$\pm$", ">": r"$\to$"}


def _tex(text: str) -> str:
    """``text`` with LaTeX's special characters escaped and Markdown bold converted."""
    bold = text.startswith("**") and text.endswith("**")
    escaped = "".join(_TEX.get(letter, letter) for letter in (text.strip("*") if bold else text))
    return rf"\textbf{{{escaped}}}" if bold else escaped
