"""The demo's picture: confusion matrices, training curves, and scores with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli.artifacts import Evaluation, Training
from mifuse_cli.errors import DependencyError


def draw(path: Path, scores: dict[str, Evaluation], students: dict[str, Path]) -> None:
    """Write a PNG.

    Args:
        path: of the PNG.
        scores: evaluations by the name of their row.
        students: checkpoint directories by name, for the training curves.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise DependencyError("the picture needs matplotlib: pip install 'mifuse[demo]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(15, 8))
    matrices = figure.add_gridspec(1, len(scores), left=0.06, right=0.98, top=0.92, bottom=0.58, wspace=0.1)
    below = figure.add_gridspec(1, 2, left=0.06, right=0.98, top=0.44, bottom=0.08, wspace=0.28)
    for number, (name, score) in enumerate(scores.items()):
        _confusion(figure.add_subplot(matrices[number]), name, score, first=number == 0)
    curves, bars = figure.add_subplot(below[0]), figure.add_subplot(below[1])
    for (name, directory), colour in zip(
        students.items(), ("tab:orange", "tab:blue", "tab:green"), strict=True
    ):
        training = Training.load(directory / "train.h5")
        epochs = np.arange(1, len(training.history) + 1)
        for term, values, style in zip(
            training.columns_of_history, training.history.T, ("-", "--"), strict=True
        ):
            curves.plot(epochs, values, style, color=colour, label=f"{name}: {str(term).replace('_', ' ')}")
    curves.set(xlabel="epoch", ylabel="loss (nats)", title="Training curves")
    curves.margins(y=0.25)  # room for the legend above the curves
    curves.legend(loc="upper right", fontsize=8, ncols=2)
    _bars(bars, scores)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _confusion(axes: Any, name: str, score: Evaluation, *, first: bool) -> None:
    counts = score.confusion[:, : len(score.header.classes)]
    shares = counts / score.confusion.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(score.header.classes))
    axes.set_xticks(ticks, score.header.classes, fontsize=8, rotation=30)
    axes.set_yticks(ticks, score.header.classes if first else [""] * len(ticks), fontsize=8)
    axes.set_xlabel("predicted")
    if first:
        axes.set_ylabel("true")
    axes.set_title(f"{name}\nUA {100 * score.header.parameters['metrics']['ua']:.1f} %", fontsize=11)


def _bars(axes: Any, scores: dict[str, Evaluation]) -> None:
    metrics = [score.header.parameters["metrics"] for score in scores.values()]
    ua = np.array([100 * m["ua"] for m in metrics])
    bounds = np.array([[100 * m["ua_low"], 100 * m["ua_high"]] for m in metrics]).T
    positions = np.arange(len(ua))
    axes.barh(positions, ua, xerr=np.abs(bounds - ua), capsize=4, color="tab:blue", alpha=0.75)
    axes.set_yticks(positions, list(scores))
    axes.invert_yaxis()
    axes.set(
        xlabel="unweighted accuracy in %, with 95 % interval over speakers",
        title="Target corpus",
        xlim=(0, 100),
    )
