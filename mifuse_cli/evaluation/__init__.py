"""Scores of predictions against true labels, and comparisons of systems; pure functions over arrays."""

from mifuse_cli.evaluation.bootstrap import (
    Tally,
    average_ranks,
    bootstrap_ua,
    interval,
    tally,
    unweighted_accuracy,
)
from mifuse_cli.evaluation.scores import (
    ECE_BINS,
    RESAMPLES,
    Score,
    accuracy,
    confusion,
    expected_calibration_error,
    predicted_classes,
    rates,
    reliability,
    score,
    signature,
)

__all__ = [
    "ECE_BINS",
    "RESAMPLES",
    "Score",
    "Tally",
    "accuracy",
    "average_ranks",
    "bootstrap_ua",
    "confusion",
    "expected_calibration_error",
    "interval",
    "predicted_classes",
    "rates",
    "reliability",
    "score",
    "signature",
    "tally",
    "unweighted_accuracy",
]
