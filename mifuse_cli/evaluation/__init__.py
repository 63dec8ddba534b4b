"""Scores of predictions against true labels, and comparisons of systems; pure functions over arrays."""

from mifuse_cli.evaluation.bootstrap import average_ranks, bootstrap_metrics, interval
from mifuse_cli.evaluation.decisions import (
    DECISIONS,
    predicted_classes,
    predicted_prior,
    prior_corrected_classes,
)
from mifuse_cli.evaluation.scores import (
    RESAMPLES,
    Score,
    accuracy,
    confusion,
    expected_calibration_error,
    rates,
    reliability,
    score,
    signature,
)
from mifuse_cli.evaluation.tallies import ECE_BINS, METRICS, Tally, best_of, tally, unweighted_accuracy
from mifuse_cli.evaluation.weighted import estimated_accuracy

__all__ = [
    "DECISIONS",
    "ECE_BINS",
    "METRICS",
    "RESAMPLES",
    "Score",
    "Tally",
    "accuracy",
    "average_ranks",
    "best_of",
    "bootstrap_metrics",
    "confusion",
    "estimated_accuracy",
    "expected_calibration_error",
    "interval",
    "predicted_classes",
    "predicted_prior",
    "prior_corrected_classes",
    "rates",
    "reliability",
    "score",
    "signature",
    "tally",
    "unweighted_accuracy",
]
