"""What the terminal sees: a progress bar or lines on stderr, results on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mifuse_cli.config import Progress

_LINES = 10
"""How many progress lines a piece of work gets where stderr is no terminal."""


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress | None]:
    """A progress callback that draws on stderr: a bar with ETA on a terminal, else a line every tenth."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=Console(stderr=True)) as bars:
            tasks: dict[str, Any] = {}

            def draw(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield draw
    else:
        printed: dict[str, int] = {}

        def line(what: str, done: int, total: int) -> None:
            tenth = done * _LINES // max(total, 1)
            if tenth > printed.get(what, 0):
                printed[what] = tenth
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

        yield line


def note(text: str) -> None:
    """A remark on stderr."""
    print(f"note: {text}", file=sys.stderr)


def error(text: str) -> None:
    """An error on stderr."""
    print(f"error: {text}", file=sys.stderr)


def as_json(result: Any) -> str:
    """A result dataclass as one JSON object; paths become strings, NaN becomes null."""
    return json.dumps(_plain(dataclasses.asdict(result)), ensure_ascii=False)


def describe(pairs: dict[str, Any]) -> str:
    """Aligned ``name  value`` lines; numbers are shortened, mappings written as ``a 0.25, b 0.75``."""
    width = max(map(len, pairs))
    return "\n".join(f"{name:<{width}}  {_short(value)}" for name, value in pairs.items())


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table; the first column is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
