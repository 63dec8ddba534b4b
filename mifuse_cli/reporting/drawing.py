"""Figures for print: confusion matrix and reliability diagram, as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli.artifacts import Evaluation
from mifuse_cli.errors import DependencyError
from mifuse_cli.files import atomic_file

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
PLOT_MARKS = (b"\x89PNG", b"<svg", b"%PDF")
"""What files of these formats begin with, or soon hold."""
_WIDTH, _HEIGHT = 6.8, 3.1
"""Inches: two columns of a paper."""


def draw_evaluation(path: Path, scored: Evaluation) -> None:
    """Write a figure in the format that its suffix names, one of `PLOT_SUFFIXES`; text stays text.

    Raises:
        DependencyError: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("--plot needs matplotlib: pip install 'mifuse[report]'") from None
    style = {"font.size": 8, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "mifuse"}
    metadata = {".png": {"Software": ""}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_confusion(left, scored)
        _draw_reliability(right, scored)
        with atomic_file(path) as temporary:
            form = path.suffix[1:].lower()
            figure.savefig(temporary, format=form, dpi=300, metadata=metadata[path.suffix.lower()])


def _draw_confusion(axes: Any, scored: Evaluation) -> None:
    """Counts, shaded by their share of the true class."""
    classes, metrics = scored.header.classes, scored.header.parameters["metrics"]
    columns = [*classes, "none"] if scored.confusion[:, -1].any() else list(classes)
    counts = scored.confusion[:, : len(columns)]
    shares = counts / scored.confusion.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"UA {100 * metrics['ua']:.1f} %, {metrics['n']} clips")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_reliability(axes: Any, scored: Evaluation) -> None:
    """Accuracy in every bin of confidence, with the share of clips in it below."""
    clips, sure, right = (
        scored.reliability_clips,
        scored.reliability_confidence,
        scored.reliability_accuracy,
    )
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    if clips is not None and sure is not None and right is not None and clips.sum():
        some, bins = clips > 0, len(clips)
        axes.bar(
            (np.arange(bins) + 0.5) / bins,
            clips / clips.sum(),
            width=0.9 / bins,
            color="0.85",
            label="share of clips",
        )
        axes.plot(
            sure[some], right[some], "o-", markersize=3.5, linewidth=1.2, clip_on=False, label="accuracy"
        )
        axes.legend(frameon=False, loc="upper left")
    ece = scored.header.parameters["metrics"]["ece"]
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"ECE {ece:.3f}")
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
