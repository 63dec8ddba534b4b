"""One HTML page that needs nothing else: template, style and script in one text, data as JSON that cannot break out.

Everything that came from files or from a model is escaped by the template or written as JSON in which ``<``, ``>``,
``&`` and line separators are escape sequences. A policy in the page lets the browser run no script but ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mifuse_cli import __version__, provenance
from mifuse_cli.errors import DependencyError
from mifuse_cli.reporting.clip_table import answers_of, clips_of
from mifuse_cli.reporting.labelling import Labelling
from mifuse_cli.reporting.predictors import Run
from mifuse_cli.reporting.sections import ComparisonTable, comparison_table, overview_of, sections_of

_SCRIPTS = ("audio.js", "clips.js", "labels.js", "page.js")
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True, eq=False)
class Shown:
    """A run, and where the page finds the audio of its clips: a relative address or data, None if nowhere."""

    run: Run
    audio: Sequence[str | None]


def page(
    title: str,
    shown: Sequence[Shown],
    comparisons: Sequence[ComparisonTable] = (),
    task: Labelling | None = None,
) -> str:
    """The report as HTML.

    Args:
        title: of the page.
        shown: runs with their audio, at least one unless there are comparisons.
        comparisons: of methods, shown before the runs.
        task: clips to label; their rows stay out of the table until they have a label.

    Raises:
        DependencyError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise DependencyError("the report needs jinja2: pip install 'mifuse[report]'") from None
    here = files("mifuse_cli.reporting") / "template"
    script = "\n".join((here / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = Environment(
        loader=PackageLoader("mifuse_cli.reporting", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = [one.run for one in shown]
    return environment.get_template("page.html").render(
        title=title,
        made=provenance.now()[:16].replace("T", " "),
        version=__version__,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
        runs=[
            {
                **sections_of(one.run),
                "clips": embedded(clips_of(one.run, one.audio)) if len(one.run.utt_id) else "",
                "raw": embedded(answers_of(one.run)),
            }
            for one in shown
        ],
        overview=overview_of(runs),
        comparisons=[comparison_table(one) for one in comparisons],
        task=embedded(task.plain()) if task else "",
    )


def embedded(value: Any) -> str:
    """JSON for the inside of a script element, whatever text is in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPED)
