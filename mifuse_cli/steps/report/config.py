"""Options and result of ``mifuse report``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli.config import Config, StepResult, at_least, option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write one HTML page with all that is known: scores, calibration, forecast, costs, and a table of clips to hear.

    The page needs nothing else and asks nothing of the network. What needs true classes is there if evaluate was run.
    """

    paths: tuple[Path, ...] = option(
        help="Artifacts, checkpoints, the directory of a transfer or of an experiment, or one of compare; one or more.",
        positional=True,
    )
    out: Path = option(help="HTML file to write.", endings=(".html", ".htm"))
    embed_audio: int = option(
        0,
        "Put the audio of so many clips into the page, with spectrograms: those of --pick first, then those on which "
        "the teachers disagree most. The others are linked.",
    )
    pick: Path | None = option(None, "CSV of mifuse pick: its clips are labelled in the page.")
    title: str = option("", "Title of the page; default: the name of what it is about.")
    force: bool = option(False, "Overwrite an existing --out.")

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if not self.paths:
            yield "expected at least one path"
        yield from at_least("--embed-audio", self.embed_audio, 0)


@dataclass(frozen=True, kw_only=True)
class ReportResult(StepResult):
    """What is in the page.

    Attributes:
        out: the page.
        runs: names of the runs that it shows.
        comparisons: names of the comparisons.
        clips: number of clips in the tables.
        embedded: number of clips whose audio is in the page.
        to_label: number of clips to label.
        bytes: size of the page.
    """

    runs: tuple[str, ...]
    comparisons: tuple[str, ...]
    clips: int
    embedded: int
    to_label: int
    bytes: int
