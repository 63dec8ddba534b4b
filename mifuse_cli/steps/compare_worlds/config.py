"""Options and result of ``mifuse compare-worlds``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import evaluation
from mifuse_cli.config import StepConfig, StepResult, at_least, option


@dataclass(frozen=True, kw_only=True)
class CompareWorldsConfig(StepConfig):
    """Compare methods over several comparisons: one table of all that mifuse compare found in each of them.

    A world is what one comparison is about: some targets, source models and answers. Each counts the same,
    however many transfers it has.
    """

    worlds: tuple[Path, ...] = option(
        help="Output directory of mifuse compare, or NAME=DIR; a world is named as its directory otherwise. "
        "One or more.",
        positional=True,
    )
    out: Path = option(help="Directory for the tables.")
    ours: str = option(
        "",
        "System whose difference to the best baseline is told; default: the one that mifuse compare calls ours.",
    )
    resamples: int = option(evaluation.RESAMPLES, "Bootstrap draws of the 95 % intervals.")

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from at_least("--resamples", self.resamples, 100)
        names = [name for name, _ in self.named()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"{', '.join(twice)}: name of several worlds; give each another one by NAME=DIR"
        if not all(names):
            yield "expected a name before '=' in NAME=DIR"

    def named(self) -> list[tuple[str, Path]]:
        """Name and directory of every world."""
        found = []
        for path in self.worlds:
            name, equals, directory = str(path).partition("=")
            if equals and not path.exists():
                found.append((name, Path(directory)))
            else:
                found.append((path.resolve().name, path))
        return found


@dataclass(frozen=True, kw_only=True)
class CompareWorldsResult(StepResult):
    """What was compared.

    Attributes:
        out: directory of the tables: ``table.md``, ``scores.csv``, ``results.json``.
        results: what ``results.json`` holds.
    """

    results: dict[str, Any]
