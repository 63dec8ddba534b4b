"""The ``mifuse`` command: its subcommands, and what each of them writes of its result for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from math import isnan
from typing import Any

from mifuse_cli import console
from mifuse_cli.errors import InputError, duration_of, number_of, size_of
from mifuse_cli.fusion import FORECAST_ERROR
from mifuse_cli.subcommand import app, command


@command("prepare", "mifuse prepare iemocap IEMOCAP_full_release data/iemocap")
def _(result: Any) -> str:
    classes = list(result.classes)
    general = console.describe(
        {
            "corpus": result.corpus,
            "directory": result.out,
            "clips": f"{result.clips}, {result.hours:.3g} hours, {result.speakers} speakers",
            **({"left out": result.left_out} if result.left_out else {}),
        }
    )
    parts = [general]
    if classes:
        rows = [
            [name, *(str(counts.get(label, 0)) for label in classes), str(sum(counts.values()))]
            for name, counts in {**result.groups, "all": result.classes}.items()
        ]
        parts.append(console.table(["clips", *classes, "all"], rows))
    differs = [row for row in result.published if row["published"] != row["found"]]
    if differs:
        rows = [[row["what"], str(row["published"]), str(row["found"])] for row in result.published]
        parts.append(console.table(["whole copy", "published", "found"], rows))
    elif result.published:
        parts.append(f"the whole copy agrees with all {len(result.published)} published counts")
    return "\n\n".join(parts)


@command(
    "train-source",
    "mifuse train-source --manifest exp/demo/source/manifest.csv --encoder logmel --out exp/source",
)
def _(result: Any) -> str:
    return console.describe(
        {
            "checkpoint": result.out,
            "trained on": f"{result.clips} clips",
            "validation": f"{result.validation_clips} clips of {result.validation_speakers} speakers "
            "(held out at first, to choose the epochs)",
            "epochs": result.epochs,
            "validation UA": f"{100 * result.validation_ua:.1f} %",
            "temperature": result.temperature,
        }
    )


@command(
    "query-lalm",
    "mifuse query-lalm --wav-dir exp/demo/target/audio --n-samples 5 --base-url http://127.0.0.1:8322/v1 "
    "--model standin --out exp/lalm.h5",
)
def _(result: Any) -> str:
    if result.volume and not result.statuses:
        return _estimated(result)
    text = console.describe(
        {"artifact": result.out, **_answers(vars(result), f", {result.asked} of them now")}
    )
    return f"{text}\n\n{_estimated(result)}" if result.volume else text


def _answers(summary: Mapping[str, Any], now: str = "") -> dict[str, Any]:
    """Summary of the answers in an artifact of query-lalm."""
    answers = summary["clips"] * summary["samples"]
    mi, spent = summary["mean_mi"], summary["spent_usd"]
    return {
        "clips": f"{summary['clips']}, {summary['without_answer']} of them without a valid answer",
        "answers": f"{answers - summary['statuses'].get('missing', 0)} of {answers}{now}",
        "by outcome": summary["statuses"],
        "mean MI": "-" if mi is None else f"{mi:.4f} nats",
        "tokens": summary["tokens"],
        "requests": {name: number for name, number in summary["requests"].items() if number},
        **({} if spent is None else {"spent": f"{spent:.4f} USD"}),
    }


def _estimated(result: Any) -> str:
    """Table of the requests, tokens, cost and time that a dry run or a pilot projects."""
    volume, guess = result.volume, result.estimate
    total = console.describe(
        {
            # A pilot projects all clips, its own among them.
            "clips": f"{volume.clips} in all, those of the pilot included"
            if result.statuses
            else f"{volume.clips} to ask about",
            "requests": f"{volume.requests} for {volume.answers} answers",
            "speech": f"{duration_of(volume.seconds)} in all requests, {size_of(volume.upload_bytes)}",
        }
    )
    rows = []
    for name, found, form in (
        ("prompt tokens", guess.prompt_tokens, ",.0f"),
        ("answer tokens", guess.completion_tokens, ",.0f"),
        ("cost in USD", guess.usd, ",.2f"),
        ("hours at the limits", guess.hours, ".2f"),
    ):
        if found is not None:
            values = (found.low, found.expected, found.high)
            rows.append([name, *("-" if value is None else format(value, form) for value in values)])
    return f"{total}\n\n{console.table(['', 'low', 'expected', 'high'], rows)}"


@command(
    "sample-source",
    "mifuse sample-source --model exp/source --manifest exp/demo/target/manifest.csv --out exp/source.h5",
)
def _(result: Any) -> str:
    return console.describe(
        {
            "artifact": result.out,
            "clips": result.clips,
            "dropout passes": result.samples,
            "mean MI": f"{result.mean_mi:.4f} nats",
            "predicted marginal": result.marginal,
        }
    )


@command("merge", "mifuse merge exp/lalm-1.h5 exp/lalm-2.h5 exp/lalm-3.h5 --out exp/lalm.h5")
def _(result: Any) -> str:
    several = f", {result.repeated} of them in several parts" if result.repeated else ""
    return console.describe(
        {
            "artifact": result.out,
            "kind": f"{result.kind}, of {number_of(result.parts, 'part')}",
            "clips": f"{result.clips}{several}",
            **({k: v for k, v in _answers(result.summary).items() if k != "clips"} if result.summary else {}),
        }
    )


@command("fuse", "mifuse fuse --lalm exp/lalm.h5 --source exp/source.h5 --out exp/fused.h5")
def _(result: Any) -> str:
    several = len(result.without_answer) > 1
    return console.describe(
        {
            "artifact": result.out,
            "labels": result.how,
            **({"protocol": f"few-gold:{result.gold}"} if result.gold else {}),
            # All of them where the LALM was left out.
            "clips": f"{result.clips}, {result.fallbacks} of them without a LALM answer"
            if result.fallbacks < result.clips
            else result.clips,
            **({"clips without an answer": result.without_answer} if several else {}),
            "mean MI (nats)": _known(result.mean_mi),
            "mean weight": result.mean_weight,
            "mean confidence": _known(result.mean_confidence),
            "agree with label": _known(result.label_agreement),
            **(
                {}
                if isnan(result.agreement)
                else {"teachers agree": f"{100 * result.agreement:.1f} % of clips"}
            ),
            "fused marginal": result.marginal,
            **({"expected UA": _expected(result.forecast)} if result.forecast else {}),
        }
    )


def _expected(forecast: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} {value:.2f}" for name, value in forecast.items())
    return f"{told}; the labels' is off by {FORECAST_ERROR:g} on average" if "labels" in forecast else told


def _known(by_teacher: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in by_teacher.items() if value is not None}


@command(
    "train",
    "mifuse train --fused exp/fused.h5 --model exp/source --manifest exp/demo/target/manifest.csv --out exp/student",
)
def _(result: Any) -> str:
    return console.describe(
        {
            "checkpoint": result.out,
            "method": result.method,
            **({"labels": result.labels} if result.labels else {}),
            **({"protocol": f"few-gold:{result.gold}"} if result.gold else {}),
            "trained on": f"{result.clips} clips, {result.epochs} epochs, last epoch saved",
            "last losses": result.losses,
            "predicted marginal": result.marginal,
        }
    )


@command(
    "evaluate", "mifuse evaluate --model exp/student --manifest exp/demo/target/labels.csv --out exp/eval.h5"
)
def _(result: Any) -> str:
    if result.table:
        return str(result.table)
    m = result.metrics
    scores = console.describe(
        {
            "UA": _with_interval(m, "ua"),
            "UA, prior-corrected": _with_interval(m, "ua_prior_corrected"),
            "WA": f"{100 * m['wa']:.2f} %",
            "macro F1": f"{100 * m['macro_f1']:.2f} %",
            "ECE": m["ece"],
            **{
                f"{name} of all clips": _with_interval({**result.estimate, "interval": "clips"}, key)
                for name, key in (("UA", "ua"), ("WA", "wa"))
                if result.estimate
            },
            "protocol": result.signature,
        },
        whole=("protocol",),
    )
    names = [*result.classes, "none"] if m["missing"] else list(result.classes)
    rows = [
        [
            name,
            *map(str, counts[: len(names)]),
            "-" if recall is None else f"{100 * recall:.1f} %",
            f"{share:.3f}",
        ]
        for name, counts, recall, share in zip(
            result.classes, result.confusion, m["recall"], m["marginal"], strict=True
        )
    ]
    header = ["true, by predicted", *names, "recall", "marginal"]
    parts = [scores, console.table(header, rows)]
    if drawn := _bars({"recall": dict(zip(result.classes, m["recall"], strict=True))}):
        parts.append(drawn)
    return "\n\n".join(parts)


def _bars(rates: Mapping[str, Mapping[str, float | None]]) -> str:
    """Bars for rates by name and class, where a terminal shows them."""
    blocks = []
    for what, by_class in rates.items():
        width = max(map(len, by_class))
        lines = [
            f"{name:<{width}}  {100 * rate:5.1f} %  {console.bar(rate)}".rstrip()
            for name, rate in by_class.items()
            if rate is not None and console.bar(1.0)
        ]
        if lines:
            blocks.append("\n".join([what, *lines]))
    return "\n\n".join(blocks)


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    value, low, high = (100 * metrics[key] for key in (name, f"{name}_low", f"{name}_high"))
    if isnan(low):
        return f"{value:.2f} %"
    return f"{value:.2f} %  [{low:.2f}, {high:.2f}] 95 % bootstrap over {metrics['interval']}"


@command(
    "predict", "mifuse predict --model exp/student --wav-dir exp/demo/target/audio --out exp/predictions.csv"
)
def _(result: Any) -> str:
    general = console.describe(
        {
            **({} if result.out is None else {"file": result.out}),
            "clips": f"{result.clips} of {result.clips + result.skipped}"
            + (
                f", parts of {number_of(result.recordings, 'recording')}"
                if result.recordings < result.clips
                else ""
            )
            + (f", {result.continued} of them from the interrupted run" if result.continued else ""),
            "decision": f"{result.decision}, the largest probability / prior"
            if result.prior
            else result.decision,
            **({"prior": result.prior} if result.prior else {}),
            "predicted": result.predicted,
        }
    )
    if not result.predictions:
        return general
    mi = any("mi" in one for one in result.predictions)
    rows = [
        [
            one["utt_id"],
            *(f"{one['probs'][name]:.3f}" if "probs" in one else "-" for name in result.classes),
            one.get("predicted", "skipped"),
            *([f"{one['mi']:.4f}" if "mi" in one else "-"] if mi else []),
        ]
        for one in result.predictions
    ]
    header = ["clip", *result.classes, "predicted", *(["MI"] if mi else [])]
    return f"{console.table(header, rows)}\n\n{general}"


@command("export", "mifuse export --model exp/student --evaluation exp/eval.h5 --out exp/shared")
def _(result: Any) -> str:
    return console.describe(
        {
            "directory": result.out,
            "for": result.to,
            "files": ", ".join(f"{name} ({size_of(count)})" for name, count in result.files.items()),
            "checked": f"probabilities differ by at most {result.difference:.1g}",
        }
    )


@command("compare", "mifuse compare --data exp/data --models exp/models --lalm exp/lalm --out exp/compare")
def _(result: Any) -> str:
    found = result.results
    columns = [*found["transfers"], "average"]
    rows = [
        [
            name,
            *(f"{one['ua'][column]['mean']:.1f}" for column in columns),
            "" if one["rank"] is None else f"{one['rank']:.1f}",
        ]
        for name, one in found["systems"].items()
    ]
    general = console.describe(
        {
            "directory": f"{result.out}: table.md, table.tex, scores.csv, results.json",
            "predictions": f"{result.runs}, {result.made} of them made now",
            "best baseline": found["best_baseline"] or "-",
            "protocol": result.protocol,
        }
    )
    return f"{general}\n\n{console.table(['UA %', *columns, 'rank'], rows)}"


@command("compare-worlds", "mifuse compare-worlds exp/home exp/skewed --out exp/worlds")
def _(result: Any) -> str:
    found = result.results
    worlds, gap = list(found["worlds"]), found["against_best"].get("ua")
    rows = [
        [
            name,
            *(f"{one['ua']['worlds'][world]:.1f}" for world in worlds),
            f"{one['ua']['mean']:.1f}",
            "" if one["rank"] is None else f"{one['rank']:.1f}",
            "" if one["harm"] is None else f"{one['harm']['transfers']} of {one['harm']['of']}",
        ]
        for name, one in found["systems"].items()
    ]
    general = {"directory": f"{result.out}: table.md, scores.csv, results.json"}
    if gap:
        mean = gap["mean"]
        general[f"{found['ours']} less {gap['baseline']}"] = (
            f"{mean['difference']:+.1f} [{mean['low']:.1f}, {mean['high']:.1f}] points of UA, mean over worlds"
        )
    table = console.table(["UA %", *worlds, "mean", "rank", "harm"], rows)
    return f"{console.describe(general)}\n\n{table}"


@command("report", "mifuse report exp --out exp/report.html")
def _(result: Any) -> str:
    return console.describe(
        {
            "page": f"{result.out}, {size_of(result.bytes)}",
            **({"runs": ", ".join(result.runs)} if result.runs else {}),
            **({"comparisons": ", ".join(result.comparisons)} if result.comparisons else {}),
            "clips": f"{result.clips}, {result.embedded} of them to be heard without their files",
            **({"to label": f"{result.to_label} clips"} if result.to_label else {}),
        }
    )


@command("pick", "mifuse pick --fused exp/fused.h5 --n 50 --out exp/pick.csv")
def _(result: Any) -> str:
    return console.describe(
        {
            "file": result.out,
            "clips": f"{result.clips} of {result.of}"
            + (f", of {result.speakers} voices" if result.speakers else ""),
            "by label": result.by_label,
        }
    )


@command("show", "mifuse show exp/fused.h5")
def _(result: Any) -> str:
    general = console.describe(
        {
            "file": result.file,
            "kind": f"{result.kind}, schema {result.schema_version}",
            "classes": result.classes,
            "made": f"{result.created} by mifuse {result.versions.get('mifuse', '?')}, seed {result.seed}",
            "command": result.command,
            "content": f"sha256 {result.sha256}",
            **(_answers(result.summary) if result.summary else {}),
        },
        whole=("command",),
    )
    datasets = [
        [name, d["axes"], " x ".join(map(str, d["shape"])), d["holds"]] for name, d in result.datasets.items()
    ]
    parts = [general, console.table(["dataset", "axes", "shape", "holds"], datasets)]
    if result.parents:
        rows = [[p["role"], p["path"], p["sha256"][:12], p["state"]] for p in result.parents]
        parts.append(console.table(["parent", "path", "sha256", "state"], rows))
    if result.parameters:
        parts.append("parameters\n" + console.describe(result.parameters, "  "))
    if result.config:
        parts.append("configuration\n" + console.describe(result.config, "  "))
    if drawn := _bars(result.rates):
        parts.append(drawn)
    return "\n\n".join(parts)


@command("cache", "mifuse cache --cache-limit 20GB")
def _(result: Any) -> str:
    general = console.describe(
        {
            "directory": result.directory,
            "size": size_of(result.size),
            **({"removed now": f"features of {result.removed} clips"} if result.removed else {}),
        }
    )
    rows = [
        [
            one.network or one.path.name,
            one.precision or "-",
            "-" if one.clips is None else str(one.clips),
            size_of(one.size),
            one.last_used or "-",
        ]
        for one in result.files
    ]
    header = ["encoder", "precision", "clips", "size", "last used"]
    parts = [general, *([console.table(header, rows)] if rows else [])]
    return "\n\n".join([*parts, *(f"{one.path}: {one.problem}" for one in result.files if one.problem)])


@command("validate", "mifuse validate exp/demo/target/manifest.csv exp/lalm.h5 exp/source")
def _(result: Any) -> str:
    lines = []
    for one in result.findings:
        state = f"faults {len(one.faults)}" if one.faults else "ok"
        facts = "".join(f", {name} {console.short(value)}" for name, value in one.facts.items())
        lines += [f"{one.path}: {one.kind}, {state}{facts}", *(f"  {fault}" for fault in one.faults)]
    return "\n".join(lines)


@command("doctor", "mifuse doctor --cache-dir exp/demo/cache")
def _(result: Any) -> str:
    width = max(len(one.name) for one in result.checks)
    lines = []
    for one in result.checks:
        lines.append(f"{one.state:<7}  {one.name:<{width}}  {one.found}")
        if one.advice:
            lines.append(f"{'':7}  {'':{width}}  -> {one.advice}")
    return "\n".join(lines)


def main() -> None:
    """Entry point of the ``mifuse`` console script."""
    # OpenMP threads that busy-wait make small operations many times slower on a loaded machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console.write_anything()
    try:
        app()
    except SystemExit as ended:
        if not ended.code:
            try:
                console.check_written()
            except InputError as error:
                console.error(str(error), as_json="--log-json" in sys.argv)
                raise SystemExit(error.exit_code) from None
        raise
