"""Output to the terminal: a progress bar or lines on stderr, results on stdout."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError

_LINES = 10
"""Number of progress lines for one piece of work where stderr is not a terminal."""
_SECONDS = 60.0
"""A line is also written whenever this time has passed since the last one."""
_AT_LEAST_SECONDS = 10.0
"""Time between two lines for people."""
_COLUMNS = 80
"""Width of what is printed where there is no terminal, as in a pipe."""
_NUMERIC = re.compile(r"[-+]?\d[\d.,]*(?:[ %]|$)|-?$")
"""How a cell begins that is a number, perhaps with a unit, or that stands for none."""
_ENDLESS = re.compile(r"\S{2000,}")
"""A word that is too long to be shown, such as the cell of a table that an error quotes."""
_CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")
_EIGHTHS = "▏▎▍▌▋▊▉█"


@contextmanager
def progress_bar(quiet: bool, log_json: bool) -> Iterator[Progress | None]:
    """A progress callback that draws on stderr: a bar with ETA on a terminal, else a line now and then.

    Log messages of the steps are written as notes meanwhile.

    Args:
        quiet: draw nothing.
        log_json: write JSON lines, notes too, also on a terminal.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty() and not log_json:
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
            TextColumn("{task.fields[facts]}"),
        )
        console = Console(stderr=True)
        with Bars(*columns, console=console) as bars, _logged(_print_above(console)):
            tasks: dict[str, Any] = {}

            def draw(what: str, done: int, total: int, facts: Mapping[str, Any] | None = None) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total, facts="")
                bars.update(tasks[what], completed=done, total=total, facts=_in_short(facts or {}))

            yield draw
    else:
        with _logged(lambda text: note(text, as_json=log_json)):
            yield _lines(log_json)


def _lines(as_json: bool) -> Progress:
    """A progress callback that writes some lines for each piece of work, for people or for programs."""
    begun: dict[str, float] = {}
    printed: dict[str, tuple[int, float]] = {}

    def line(what: str, done: int, total: int, facts: Mapping[str, Any] | None = None) -> None:
        tenth, now = done * _LINES // max(total, 1), time.monotonic()
        start = begun.setdefault(what, now)
        last, at = printed.get(what, (0, start))
        due = (tenth > last and (as_json or now >= at + _AT_LEAST_SECONDS)) or now >= at + _SECONDS
        if not due and not (what in printed and last < _LINES == tenth):
            return
        printed[what] = tenth, now
        if as_json:
            text = json.dumps({"progress": what, "done": done, "total": total, **_rounded(facts or {})})
        else:
            passed = timedelta(seconds=round(now - start))
            short = _in_short(facts or {})
            text = f"progress: {what} {done} of {total} after {passed}" + (f", {short}" if short else "")
        print(text, file=sys.stderr, flush=True)

    return line


@contextmanager
def _logged(write: Callable[[str], None]) -> Iterator[None]:
    """Pass the package's log messages to ``write`` within the block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write(record.getMessage())

    logger, handler = logging.getLogger("mifuse"), Handler(logging.INFO)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _print_above(console: Any) -> Callable[[str], None]:
    return lambda text: console.print(
        f"note: {harmless(text)}", markup=False, highlight=False, soft_wrap=True
    )


def _in_short(facts: Mapping[str, Any]) -> str:
    """Running totals of the work, shown after its progress bar."""
    parts = []
    if facts.get("padding"):
        parts.append(f"padding {facts['padding']:.1%}")
    if "per_minute" in facts:
        parts.append(f"{facts['per_minute']:.0f}/min")
    if "batches" in facts:
        parts.append(f"{facts['batches']} batches open")
    if "spent_usd" in facts:
        cap, end = facts.get("cap_usd"), facts.get("projected_usd")
        of, then = "" if cap is None else f" of {cap:.2f}", "" if end is None else f", in the end ${end:.2f}"
        parts.append(f"${facts['spent_usd']:.2f}{of}{then}")
    for name, text in (("limited", "429"), ("refused", "refused"), ("ok", "readable")):
        if facts.get(name) or (name == "ok" and name in facts):
            parts.append(f"{text} {facts[name]:.1%}")
    return "  ".join(parts)


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in facts.items()
    }


class _WhileRead(io.FileIO):
    """A stream of this process that drops what cannot be written, instead of an error in the middle of the work.

    Attributes:
        failure: the error, such as a full disk; None if there was none, or the reader went away, as with ``| head``.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            self.failure = error
            return len(data)


def write_anything() -> None:
    """Let the streams take every character: what they cannot encode is written as its code; and bear to be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by 2>&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        if not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            raw = _WhileRead(stream.fileno(), "w", closefd=False)
        except OSError:  # no stream of the system's
            stream.reconfigure(errors="backslashreplace")
            continue
        stream.flush()
        made = io.TextIOWrapper(
            io.BufferedWriter(raw),
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, made)


def harmless(text: str) -> str:
    """Text with control characters as their codes: names and answers of others could steer the terminal by them."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def check_written() -> None:
    """Write what is left to the standard output.

    Raises:
        InputError: some of it could not be written.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _WhileRead) and raw.failure:
        raise InputError(
            f"the standard output cannot be written ({raw.failure.strerror}), but all else is done. Make room, or send "
            "it elsewhere."
        )


def note(text: str, *, as_json: bool = False) -> None:
    """A remark on stderr, for people or for programs."""
    _say("note", text, as_json)


def error(text: str, *, as_json: bool = False) -> None:
    """An error on stderr, for people or for programs."""
    _say("error", text, as_json)


def _say(kind: str, text: str, as_json: bool) -> None:
    text = _ENDLESS.sub(lambda word: f"{word[0][:100]}...{word[0][-50:]}", text)
    print(json.dumps({kind: text}) if as_json else f"{kind}: {harmless(text)}", file=sys.stderr, flush=True)


def as_json(result: Any) -> str:
    """A result dataclass as one JSON object; paths become strings, NaN becomes null."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(_plain(dataclasses.asdict(result)), ensure_ascii=not unicode)


def describe(pairs: dict[str, Any], indent: str = "", whole: Container[str] = ()) -> str:
    """Aligned ``name  value`` lines; numbers are shortened, mappings written as ``a 0.25, b 0.75``.

    Long values go on below themselves, within the width of the terminal; words, such as paths, stay whole. ``-`` stands
    for what is not there.

    Args:
        pairs: values by name.
        indent: what every line begins with.
        whole: names of values that are to be copied, and stay in one line however long.
    """
    width = max(map(len, pairs))
    rest = _width() - len(indent) - width - 2
    lines = []
    for name, value in pairs.items():
        text = short(value)
        first, *more = [text] if name in whole else _wrapped(text, rest)
        lines += [f"{indent}{name:<{width}}  {first}", *(f"{indent}{'':{width}}  {line}" for line in more)]
    return "\n".join(lines)


def bar(share: float | None, width: int = 20) -> str:
    """A share in [0, 1] as a bar of blocks, in eighths of a character; "" for None and where no terminal shows it."""
    if share is None or not math.isfinite(share) or not sys.stdout.isatty():
        return ""
    try:
        _EIGHTHS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(share * width)
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return _EIGHTHS[-1] * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table within the width of the terminal; the first column and those of words are flush left, numbers
    flush right. Words, such as paths, stay whole, so that they can be copied, even if that is wider than the terminal.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = _fitted(columns, _width() - 2 * (len(columns) - 1))
    right = [n > 0 and all(_NUMERIC.match(cell) for cell in cells) for n, (_, *cells) in enumerate(columns)]
    lines = []
    for row in [header, *rows]:
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            placed = zip(parts, widths, right, strict=True)
            lines.append("  ".join(part.rjust(w) if r else part.ljust(w) for part, w, r in placed).rstrip())
    return "\n".join(lines)


def _fitted(columns: list[tuple[str, ...]], room: int) -> list[int]:
    """Widths of columns that have so much room in all: the widest give way, none below its longest word."""
    widths = [max(map(len, cells)) for cells in columns]
    least = [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    while sum(widths) > room and (spare := [(w, at) for at, w in enumerate(widths) if w > least[at]]):
        widths[max(spare)[1]] -= 1
    return widths


def _width() -> int:
    """Columns of the terminal, ``COLUMNS`` if that is set; where there is none, as many as most have."""
    return shutil.get_terminal_size((_COLUMNS, 0)).columns


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text, one at least, none wider than that but for words that are."""
    return textwrap.wrap(text, max(width, 1), break_on_hyphens=False, break_long_words=False) or [""]


def short(value: Any) -> str:
    """A value for a line: numbers shortened, mappings as ``a 0.25, b 0.75``, - for what is not there."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "" or (isinstance(value, list | tuple | dict) and not value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value))
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
