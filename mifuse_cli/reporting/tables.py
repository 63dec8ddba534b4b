"""The scores of one evaluation as a table for a document: Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from math import isfinite
from typing import Any

from mifuse_cli.artifacts import Evaluation

_RATES = {"ua": "UA", "ua_prior_corrected": "UA, prior-corrected", "wa": "WA", "macro_f1": "macro F1"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def score_table(scored: Evaluation, form: str) -> str:
    """The scores, the recalls and the confusion matrix, with the protocol line.

    Args:
        scored: artifact of evaluate.
        form: one of `FORMS`.
    """
    return FORMS[form](scored)


def _scores(scored: Evaluation) -> list[tuple[str, str, str]]:
    """Name, value and interval of every score; rates in per cent."""
    metrics = scored.header.parameters["metrics"]
    rows = []
    for key, name in _RATES.items():
        low, high = (metrics.get(f"{key}_{end}") for end in ("low", "high"))
        known = low is not None and high is not None and isfinite(low) and isfinite(high)
        rows.append(
            (
                f"{name} %",
                f"{100 * metrics[key]:.1f}",
                f"[{100 * low:.1f}, {100 * high:.1f}]" if known else "",
            )
        )
    rows.append(("ECE", f"{metrics['ece']:.3f}", ""))
    return rows


def _confusion(scored: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the confusion matrix with recalls in per cent."""
    classes, metrics = scored.header.classes, scored.header.parameters["metrics"]
    columns = [*classes, "none"] if metrics["missing"] else list(classes)
    rows = [
        [name, *map(str, counts[: len(columns)]), "-" if recall is None else f"{100 * recall:.1f}"]
        for name, counts, recall in zip(classes, scored.confusion.tolist(), metrics["recall"], strict=True)
    ]
    return ["true, by predicted", *columns, "recall %"], rows


def _markdown(scored: Evaluation) -> str:
    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line) + " |"
            for line in lines
        )

    header, rows = _confusion(scored)
    protocol = scored.header.parameters["signature"]
    return "\n\n".join(
        [
            table(["score", "value", "95 % interval"], _scores(scored)),
            table(header, rows),
            f"Protocol: `{protocol}`",
        ]
    )


def _latex(scored: Evaluation) -> str:
    """Two tabulars in the style of booktabs."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [" & ".join(map(escaped, line)) + r" \\" for line in (header, *rows)]
        return "\n".join(
            [
                rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
                r"\end{tabular}",
            ]
        )  # fmt: skip

    header, rows = _confusion(scored)
    protocol = f"% Protocol: {scored.header.parameters['signature']}"
    return "\n\n".join(
        [protocol, table(["score", "value", r"95 % interval"], _scores(scored)), table(header, rows)]
    )


def _csv(scored: Evaluation) -> str:
    """One line a number: score or count, its name, the predicted class of a count, value, bounds of its interval."""
    metrics, classes = scored.header.parameters["metrics"], scored.header.classes
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["what", "name", "predicted", "value", "low", "high"])
    for key in (*_RATES, "ece"):
        rows.writerow(
            ["score", key, "", metrics[key], metrics.get(f"{key}_low", ""), metrics.get(f"{key}_high", "")]
        )
    for name, recall in zip(classes, metrics["recall"], strict=True):
        rows.writerow(["recall", name, "", "" if recall is None else recall, "", ""])
    for name, counts in zip(classes, scored.confusion.tolist(), strict=True):
        for predicted, count in zip([*classes, ""], counts, strict=True):
            rows.writerow(["clips", name, predicted, count, "", ""])
    rows.writerow(["protocol", scored.header.parameters["signature"], "", "", "", ""])
    return text.getvalue().rstrip("\n")


def _json(scored: Evaluation) -> str:
    parameters = scored.header.parameters
    content: dict[str, Any] = {
        "signature": parameters["signature"],
        "classes": list(scored.header.classes),
        "metrics": {key: _finite(value) for key, value in parameters["metrics"].items()},
        "confusion": scored.confusion.tolist(),
    }
    if "estimate" in parameters:
        content["estimate"] = parameters["estimate"]
    return json.dumps(content, ensure_ascii=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


FORMS = {"md": _markdown, "latex": _latex, "csv": _csv, "json": _json}
"""Forms of a table by name."""
