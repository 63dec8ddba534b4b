"""``python -m mifuse_cli.artifacts > docs/artifacts.md``: the schema of every artifact, as a document."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from mifuse_cli.artifacts import KINDS, SCHEMA_VERSION, Artifact

AXES = {
    "U": "clips",
    "N": "LALM answers a clip",
    "M": "dropout passes",
    "T": "teachers: the LALMs in the order given, then the source classifier",
    "K": "classes, in the order of the root attribute `classes`",
    "L": "hidden layers of the encoder",
    "D": "features of a hidden state",
    "X": "numbers of a speaker vector",
    "G": "gold clips, whose true class was given",
    "W": "views of cross-fit: answers of LALMs; source classifier and hidden states",
    "V": "token counts: prompt, completion, total, audio, cached",
    "B": "bytes",
    "P": "predicted classes, then one column for clips without a prediction",
    "I": "bins of the reliability diagram",
    "R": "systems of a comparison",
    "E": "epochs",
    "C": "columns of the training history",
}
"""What each axis letter of the schemas counts."""

ATTRIBUTES = {
    "kind": "one of the kinds below",
    "schema_version": f"version of the schema, {SCHEMA_VERSION} at present; a newer one than mifuse knows is refused",
    "classes": "class names in order; every axis K follows it",
    "seed": "seed of the step that wrote the file",
    "config": "JSON: the options of that step, after flags, environment and configuration file were combined",
    "parameters": "JSON: what else a reader of the file needs to know, such as the metrics of an evaluation",
    "parents": "JSON: role, path relative to this file and content hash of every input",
    "versions": "JSON: Python, platform, and versions of mifuse and of the packages that it computes with",
    "command": "command line that made it",
    "created": "time at which it was made, UTC, ISO 8601",
    "sha256": "content hash over kind, classes, parameters and datasets, not over time, versions or paths",
}
"""What each root attribute holds."""

_INTRODUCTION = """\
# Artifacts

Every step writes one HDF5 file. `mifuse show FILE` describes one, `mifuse validate FILE` checks it, and
`mifuse_cli.artifacts.read(path)` loads it in Python. This page is generated from the code:

```bash
python -m mifuse_cli.artifacts > docs/artifacts.md
```

Files are written under a temporary name and renamed when they are complete, so a file under its final name is whole.
Artifacts are joined by `utt_id`, never by position. A step refuses artifacts over different classes or clips, and one
whose parents have changed since it was made."""


def document() -> str:
    """The text of ``docs/artifacts.md``."""
    return "\n\n".join(_sections()) + "\n"


def _sections() -> Iterator[str]:
    yield _INTRODUCTION
    yield "## Root attributes"
    yield _table(["attribute", "holds"], [[f"`{name}`", holds] for name, holds in ATTRIBUTES.items()])
    yield "## Axes"
    yield _table(["letter", "counts"], [[letter, counts] for letter, counts in AXES.items()])
    yield "## Kinds"
    yield (
        "Datasets marked optional may be absent. In a distribution, a row of NaN stands for a missing one. Strings are "
        "UTF-8."
    )
    for kind, schema in KINDS.items():
        yield f"### `{kind}`"
        yield inspect.cleandoc(schema.__doc__ or "").replace("``", "`")
        yield _table(["dataset", "axes", "type", "holds"], list(_rows(schema)))


def _rows(schema: type[Artifact]) -> Iterator[list[str]]:
    for name, spec in schema.columns().items():
        optional = "" if spec["required"] else " (optional)"
        yield [f"`{name}`", " ".join(spec["axes"]), spec["dtype"], spec["holds"] + optional]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(document())
