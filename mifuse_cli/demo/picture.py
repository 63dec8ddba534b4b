"""The demo's picture: confusion matrices, training curves, and scores with their intervals."""

from __future__ import annotations

from pathlib import Path

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

    figure = plt.figure(figsize=(15, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    for number, (axes, (name, score)) in enumerate(
        zip(top.subplots(1, len(scores)), scores.items(), strict=True)
    ):
        _confusion(axes, name, score, first=number == 0)
    curves, bars = bottom.subplots(1, 2)
    for name, directory in students.items():
        training = Training.load(directory / "train.h5")
        epochs = np.arange(1, len(training.history) + 1)
        for column, style in zip(training.columns_of_history, ("-", "--"), strict=True):
            values = training.history[:, list(training.columns_of_history).index(column)]
            curves.plot(epochs, values, style, label=f"{name}: {str(column).replace('_', ' ')}")
    curves.set(xlabel="epoch", ylabel="loss (nats)", title="Training curves")
    curves.legend()
    _bars(bars, scores)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _confusion(axes, name: str, score: Evaluation, *, first: bool) -> None:
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


def _bars(axes, scores: dict[str, Evaluation]) -> None:
    metrics = [score.header.parameters["metrics"] for score in scores.values()]
    ua = np.array([100 * m["ua"] for m in metrics])
    bounds = np.array([[100 * m["ua_low"], 100 * m["ua_high"]] for m in metrics]).T
    positions = np.arange(len(ua))
    axes.barh(positions, ua, xerr=np.abs(bounds - ua), capsize=4, color="tab:blue", alpha=0.75)
    axes.set_yticks(positions, list(scores))
    axes.invert_yaxis()
    axes.set(xlabel="unweighted accuracy in %, with 95 % interval over speakers", title="Target corpus", xlim=(0, 100))
