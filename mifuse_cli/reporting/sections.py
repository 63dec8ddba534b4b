"""What the page shows of a run, as plain values for its template: numbers are written here, words stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any

import numpy as np

from mifuse_cli import evaluation
from mifuse_cli.artifacts import Header
from mifuse_cli.reporting import charts
from mifuse_cli.reporting.predictors import Listed, Predictor, Run, agreements

_COLUMNS = ("UA %", "prior-corrected", "WA %", "macro F1 %", "ECE")


@dataclass(frozen=True)
class ComparisonTable:
    """What compare or compare-worlds found.

    Attributes:
        name: of its directory.
        results: content of its ``results.json``.
    """

    name: str
    results: Mapping[str, Any]


def sections_of(run: Run) -> dict[str, Any]:
    """All sections of a run; those for which nothing is known are empty."""
    return {
        "name": run.name,
        "story": " ".join(_story(run)),
        "results": _results(run),
        "confusions": [_confusion(one, run.classes) for one in run.predictors if one.score],
        "agreement": _agreement(run),
        "reliability": [_reliability(one, run) for one in run.predictors if one.score],
        "uncertainty": [_uncertainty(one, run) for one in run.predictors if one.mi is not None],
        "forecast": list(_forecasts(run)),
        "prior": _prior(run),
        "curves": [_curves(name, run) for name in run.trainings],
        "answers": [_answered(name, one.header) for name, one in run.lalms.items()],
        "files": [_file(one) for one in run.files],
    }


def overview_of(runs: Sequence[Run]) -> dict[str, Any] | None:
    """UA of every predictor in every transfer, in per cent, averaged over seeds; None for less than two scored runs."""
    scored = [run for run in runs if any(one.score for one in run.predictors) and not run.of_comparison]
    if len(scored) < 2:
        return None
    columns = list(dict.fromkeys(_transfer(run.name) for run in scored))
    names = list(dict.fromkeys(one.name for run in scored for one in run.predictors if one.score))
    rows = []
    for name in names:
        found: dict[str, list[float]] = {column: [] for column in columns}
        for run in scored:
            one = run.named(name)
            if one and one.score:
                found[_transfer(run.name)].append(100 * one.score.ua)
        means = [float(np.mean(values)) if values else float("nan") for values in found.values()]
        cells = [_spread(values) for values in found.values()]
        average = f"{np.mean(means):.1f}" if not any(map(isnan, means)) else "–"
        rows.append({"name": name, "cells": [*cells, average]})
    seeds = max(sum(_transfer(run.name) == column for run in scored) for column in columns)
    return {"columns": [*columns, "average"], "rows": rows, "seeds": seeds}


def comparison_table(one: ComparisonTable) -> dict[str, Any]:
    """UA of every system in per cent, by transfer or by world, with its rank."""
    found = one.results
    of_worlds = "worlds" in found
    columns = [*(found["worlds"] if of_worlds else found["transfers"]), "average"]
    rows = []
    for name, system in found["systems"].items():
        ua = system["ua"]
        if of_worlds:
            cells = [f"{ua['worlds'][world]:.1f}" for world in columns[:-1]] + [f"{ua['mean']:.1f}"]
        else:
            cells = [f"{ua[column]['mean']:.1f} ± {ua[column]['std']:.1f}" for column in columns]
        rank = system.get("rank")
        rows.append(
            {
                "name": name,
                "cells": [*cells, "–" if rank is None else f"{rank:.1f}"],
                "ours": name == found.get("ours"),
            }
        )
    best = found.get("best_baseline") or ""
    if of_worlds:
        best = found.get("against_best", {}).get("ua", {}).get("baseline", "")
    return {
        "name": one.name,
        "columns": [*columns, "rank"],
        "rows": rows,
        "protocol": found.get("protocol", ""),
        "best_baseline": best,
    }


# A run


def _story(run: Run) -> Iterator[str]:
    clips = len(run.utt_id)
    for name, lalm in run.lalms.items():
        told = lalm.header.parameters.get("summary", {}).get("statuses", {})
        asked = sum(told.values())
        read = (
            f"; {100 * told.get('ok', 0) / asked:.1f} % of the answers are valid distributions"
            if asked
            else ""
        )
        yield f"The {name} was asked {lalm.status.shape[1]} times about each of {len(lalm.utt_id)} clips{read}."
    for name, training in run.trainings.items():
        if "method" not in training.header.parameters:
            encoder = training.header.config.get("encoder", "")
            by = f" with the encoder {encoder}" if encoder else ""
            yield f"The {name} was trained on {len(training.utt_id)} clips{by}."
    if run.fused:
        made = ", ".join(run.fused)
        yield f"Fused from the teachers: {made}."
    if run.gold:
        yield f"The true class of {run.gold} clips was given to fuse; they are left out of all scores."
    students = [name for name, one in run.trainings.items() if "method" in one.header.parameters]
    if students:
        epochs = {len(run.trainings[name].history) for name in students}
        count = f" for {'/'.join(map(str, sorted(epochs)))} epochs" if epochs != {0} else ""
        yield f"Trained on the labels{count}: {', '.join(students)}."
    known = int((run.truth >= 0).sum())
    if known:
        some = f"{known} of {clips}" if known < clips else f"all {clips}"
        yield f"Scored on {some} clips; true classes were read by evaluate alone."
    elif clips:
        yield f"No true class of the {clips} clips is known here: what needs one is left out."


def _results(run: Run) -> dict[str, Any]:
    chance = 1 / len(run.classes)
    rows = []
    for one in run.predictors:
        if one.score is None:
            continue
        m = one.score
        rows.append(
            {
                "name": one.name,
                "role": one.role,
                "ua": _percent(m.ua),
                "interval": f"[{_percent(m.ua_low)}, {_percent(m.ua_high)}]" if isfinite(m.ua_low) else "–",
                "bar": charts.interval_bar(m.ua, m.ua_low, m.ua_high, chance),
                "cells": [
                    _percent(m.ua_prior_corrected), _percent(m.wa), _percent(m.macro_f1), _number(m.ece, ".3f"),
                ],
                "clips": m.n,
                "missing": m.missing,
                "signature": one.signature or "scored for this report, as evaluate does",
            }
        )  # fmt: skip
    over = {one.score.interval for one in run.predictors if one.score}
    return {"rows": rows, "columns": _COLUMNS, "over": " or ".join(sorted(over))}


def _confusion(one: Predictor, classes: tuple[str, ...]) -> dict[str, Any]:
    assert one.score is not None
    counts = one.score.confusion
    columns = [*classes, "none"] if counts[:, -1].any() else list(classes)
    support = counts.sum(axis=1)
    rows = []
    for k, name in enumerate(classes):
        shares = counts[k, : len(columns)] / max(support[k], 1)
        recall = one.score.recall[k]
        rows.append(
            {
                "name": name,
                "cells": [
                    {"count": int(n), "share": round(float(share), 3), "percent": f"{100 * share:.0f}"}
                    for n, share in zip(counts[k], shares, strict=False)
                ],
                "recall": "–" if recall is None else f"{100 * recall:.0f}",
            }
        )
    return {"name": one.name, "columns": columns, "rows": rows, "ua": _percent(one.score.ua)}


def _agreement(run: Run) -> dict[str, Any] | None:
    if len(run.predictors) < 2:
        return None
    shares = agreements(run.predictors)
    names = [one.name for one in run.predictors]
    rows = [
        {
            "name": name,
            "cells": [
                {"share": 0 if isnan(v) else round(float(v), 3), "percent": _number(100 * v, ".0f")}
                for v in row
            ],
        }
        for name, row in zip(names, shares, strict=True)
    ]
    return {"names": names, "rows": rows}


def _reliability(one: Predictor, run: Run) -> dict[str, Any]:
    known = (run.truth >= 0) & (one.predicted < len(run.classes))
    found = evaluation.reliability(run.truth[known], one.probs[known].astype(float))
    ece = one.score.ece if one.score else float("nan")
    title = f"Reliability of {one.name}"
    return {"name": one.name, "ece": _number(ece, ".3f"), "chart": charts.reliability(*found, title)}


def _uncertainty(one: Predictor, run: Run) -> dict[str, Any]:
    assert one.mi is not None
    known = (run.truth >= 0) & ~np.isnan(one.mi)
    groups = {"all clips": one.mi}
    auroc = float("nan")
    if known.any():
        right = one.predicted[known] == run.truth[known]
        groups = {"right": one.mi[known][right], "wrong": one.mi[known][~right]}
        auroc = _auroc(one.mi[known], ~right)
    finite = one.mi[~np.isnan(one.mi)]
    label = "mutual information (nats)"
    return {
        "name": one.name,
        "mean": _number(float(finite.mean()) if len(finite) else float("nan"), ".3f"),
        "auroc": _number(auroc, ".2f"),
        "groups": list(groups) if known.any() else [],
        "chart": charts.histogram(groups, label, f"Uncertainty of {one.name}"),
    }


def _auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive clip has the higher value of two; NaN without clips of both kinds."""
    from scipy.stats import rankdata

    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return float("nan")
    return float((rankdata(values)[positive].sum() - many * (many + 1) / 2) / (many * few))


def _forecasts(run: Run) -> Iterator[dict[str, Any]]:
    for name, fused in run.fused.items():
        told = fused.header.parameters.get("forecast", {}).get("ua", {})
        if not told:
            continue
        teachers = dict(zip(fused.header.parameters["teachers"], run.teachers[name], strict=True))
        rows = []
        for key, expected in told.items():
            one = run.named(teachers.get(key, name))
            score = one.score if one else None
            found = score.ua if score else float("nan")
            expected = float("nan") if expected is None else expected
            shown = [one.name if one else key, _percent(expected)]
            if run.has_truth:
                shown += [_percent(found), _number(100 * (expected - found), "+.1f")]
            rows.append(shown)
        head = ["UA %", "expected", "found", "difference"]
        yield {
            "head": head if run.has_truth else head[:2],
            "rows": rows,
            "recalls": list(_recalls(name, run)),
            "classes": run.classes,
            "how": "expected / found" if run.has_truth else "expected",
        }


def _recalls(name: str, run: Run) -> Iterator[list[str]]:
    """Estimated recall of every class of each teacher, and what it was."""
    recall = run.fused[name].recall
    if recall is None:
        return
    for teacher, values in zip(run.teachers[name], recall, strict=True):
        one = run.named(teacher)
        true = one.score.recall if one and one.score else [None] * len(values)
        yield [
            teacher,
            *(
                _number(100 * float(value), ".0f")
                + ((" / –" if known is None else f" / {100 * known:.0f}") if run.has_truth else "")
                for value, known in zip(values, true, strict=True)
            ),
        ]


def _prior(run: Run) -> dict[str, Any] | None:
    series: dict[str, Sequence[float]] = {}
    known = run.truth[run.truth >= 0]
    if len(known):
        series["true"] = (np.bincount(known, minlength=len(run.classes)) / len(known)).tolist()
    for name, fused in run.fused.items():
        if fused.prior is not None:
            series[f"prior of {name}"] = fused.prior.astype(float).tolist()
    for one in run.main:
        answered = ~np.isnan(one.probs).any(axis=1)
        if answered.any():
            series[one.name] = one.probs[answered].mean(axis=0).tolist()
    if not series or not len(run.utt_id):
        return None
    return {
        "chart": charts.grouped_bars(run.classes, series, "Share of every class"),
        "legend": list(series),
        "rows": [[name, *(_percent(value) for value in values)] for name, values in series.items()],
        "classes": run.classes,
    }


def _curves(name: str, run: Run) -> dict[str, Any]:
    training = run.trainings[name]
    series = {
        re.sub(r"\bua\b", "UA", str(column).replace("_", " ")): values.tolist()
        for column, values in zip(training.columns_of_history, training.history.T, strict=True)
    }
    last = {key: _number(values[-1], ".3f") for key, values in series.items() if values}
    return {
        "name": name,
        "legend": list(series),
        "last": last,
        "chart": charts.lines(series, f"Training of {name}") if len(training.history) else "",
    }


def _answered(name: str, header: Header) -> dict[str, Any]:
    summary = header.parameters.get("summary", {})
    statuses = summary.get("statuses", {})
    asked = sum(statuses.values())
    spent = summary.get("spent_usd")
    facts = [
        ("questions", f"{asked:,}"),
        ("clips without a valid answer", f"{summary.get('without_answer', 0):,}"),
        *((f"{kind} tokens", f"{number:,}") for kind, number in summary.get("tokens", {}).items()),
        *(
            (f"requests {kind}", f"{number:,}")
            for kind, number in summary.get("requests", {}).items()
            if number
        ),
        ("spent", "price not known" if spent is None else f"{spent:.4f} USD"),
        ("asked at", header.parameters.get("host", "")),
    ]
    outcomes = [
        {
            "name": kind.replace("_", " "),
            "count": f"{n:,}",
            "percent": _number(100 * n / asked, ".1f"),
            "share": n / asked,
        }
        for kind, n in statuses.items()
        if asked
    ]
    spec = header.parameters.get("spec", {})
    return {
        "name": name,
        "facts": [(key, value) for key, value in facts if value],
        "outcomes": outcomes,
        "prompt": [(key, str(spec[key])) for key in ("system", "template") if spec.get(key)],
    }


def _file(one: Listed) -> dict[str, Any]:
    config = {key: value for key, value in one.header.config.items() if key != "settings"}
    return {
        "name": one.name,
        "kind": one.kind,
        "created": one.header.created[:16].replace("T", " "),
        "command": one.header.command,
        "seed": one.header.seed,
        "parents": [{"role": role, "path": path, "state": state} for role, path, state in one.parents],
        "stale": any(state == "changed" for _, _, state in one.parents),
        "config": [(key, _plain(value)) for key, value in config.items() if value not in (None, "", False)],
        "versions": list(one.header.versions.items()),
    }


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _transfer(name: str) -> str:
    """Name of a run without its seed."""
    return re.sub(r"[/,]? *seed ?\d+$", "", name) or name


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _percent(value: float) -> str:
    return _number(100 * value, ".1f")


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−") if isfinite(value) else "–"
