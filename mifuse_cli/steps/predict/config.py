"""What ``mifuse predict`` is told, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli.config import StepConfig, above_zero, at_least, normalize_problems, one_of, option
from mifuse_cli.encoding_settings import WORKERS
from mifuse_cli.steps.predict.output import FORMATS, format_of

DECISIONS = ("plain", "prior-corrected")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(StepConfig):
    """Predict the emotions of recordings with a model: of files, a directory or a manifest, whole or in windows."""

    files: tuple[Path, ...] = option(
        (), "Audio files, or directories of them; - reads names from stdin, one a line.", positional=True
    )
    model: Path = option(help="Checkpoint directory, of train or train-source.")
    manifest: Path | None = option(None, "CSV of clips, instead of files; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of clips, instead of files.")
    out: Path | None = option(
        None,
        "File to write, by its ending .csv, .jsonl, .rttm or .h5; an interrupted run is continued. "
        "Default: a table on the terminal.",
    )
    format: str = option("", f"Format of --out: {', '.join(FORMATS)}; default: by its ending.", settles=False)
    segments: float | None = option(
        None, "Seconds of the windows that recordings are cut into; default: every file is one clip."
    )
    hop: float | None = option(
        None, "Seconds from the start of one window to the next; default: that of --segments."
    )
    decision: str = option(
        "plain",
        "plain: the most probable class, as the highest WA has; prior-corrected: the class that gains most on how "
        "frequent it is, as the highest UA has.",
    )
    normalize: str = option(
        "",
        "Statistics that standardise the head's input: source, target or speaker; default: the checkpoint's.",
    )
    centre: bool = option(
        False,
        "For a student of cross-fit labels and clips of other speakers than those it was adapted to: move the head's "
        "input so that its mean over all clips is that of the classes that are predicted.",
    )
    n_samples: int = option(0, "Dropout passes for the mutual information of every clip; 0: none.")
    workers: int = option(0, WORKERS, settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        given = [bool(self.files), self.manifest is not None, self.wav_dir is not None]
        if sum(given) != 1:
            yield "expected one of files, --manifest and --wav-dir" + (", not several" if any(given) else "")
        if self.format:
            yield from one_of("--format", self.format, FORMATS)
        if self.out is not None and not format_of(self.out, self.format):
            yield f"--out {self.out}: cannot tell its format, give --format {', '.join(FORMATS)}"
        if self.format and self.out is None:
            yield f"--format {self.format}: is that of a file, give --out"
        if self.segments is not None:
            yield from at_least("--segments", self.segments, 0.1)
        if self.hop is not None:
            yield from above_zero("--hop", self.hop)
            if self.segments is None:
                yield "--hop: is from window to window, give --segments"
            elif self.hop > self.segments:
                yield f"--hop {self.hop:g}: leaves gaps between windows of {self.segments:g} s, expected at most that"
        yield from one_of("--decision", self.decision, DECISIONS)
        yield from normalize_problems(self.normalize)
        yield from at_least("--n-samples", self.n_samples, 0)
        if self.n_samples == 1:
            yield "--n-samples 1: one pass does not vary, expected 2 or more, or 0"
        yield from at_least("--workers", self.workers, 0)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What was predicted.

    Attributes:
        out: the file, None if there is none.
        clips: number of clips or windows that were predicted.
        recordings: files that they are of.
        continued: clips that an interrupted run had left.
        skipped: number of clips that could not be predicted.
        reasons: why, for the first ten of them by id.
        classes: names in order.
        decision: as configured.
        prior: by class, what prior-corrected decisions divide by; empty for plain ones.
        predicted: number of clips by predicted class.
        predictions: of every clip: id, file, start and end of windows, probabilities, predicted class; empty with
            ``out``.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path | None
    clips: int
    recordings: int
    continued: int
    skipped: int
    reasons: dict[str, str]
    classes: tuple[str, ...]
    decision: str
    prior: dict[str, float]
    predicted: dict[str, int]
    predictions: tuple[dict[str, Any], ...] = ()
    up_to_date: bool = False
    notes: tuple[str, ...] = ()
