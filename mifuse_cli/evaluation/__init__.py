"""Scores of predictions against true labels, and comparisons of systems; pure functions over arrays."""

from mifuse_cli.evaluation.paired import Tally, average_ranks, bootstrap_ua, interval, tally
from mifuse_cli.evaluation.scores import (
    ECE_BINS,
    RESAMPLES,
    Score,
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
    "average_ranks",
    "bootstrap_ua",
    "expected_calibration_error",
    "interval",
    "predicted_classes",
    "rates",
    "reliability",
    "score",
    "signature",
    "tally",
]
