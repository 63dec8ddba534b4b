"""Uncertainty of teachers and fusion of their distributions; numpy and scipy only.

Axes: U clips, N samples, T teachers, K classes. Entropies and mutual information are in nats. A sample that
is missing is a row of NaN; a teacher without a valid sample has a NaN mean, a NaN mutual information and
weight 0. Where there is a classifier among the teachers, it is the last one.
"""

from __future__ import annotations

from mifuse_cli.fusion.calibration import (
    CALIBRATIONS,
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    agreement_with,
    label_free_temperature,
    self_agreement,
    temperature_for,
    with_temperature,
)
from mifuse_cli.fusion.dawid_skene import LEAST_TEACHERS, dawid_skene
from mifuse_cli.fusion.diagnostics import (
    confidence,
    disagreement,
    disagreements,
    label_agreement,
    mean_mi,
    one_sided,
)
from mifuse_cli.fusion.estimators import (
    MI_ESTIMATORS,
    are_votes,
    entropy,
    is_dead,
    js_divergence,
    mean_and_mi,
    share_identical,
    top_counts,
)
from mifuse_cli.fusion.forecast import ERROR as FORECAST_ERROR
from mifuse_cli.fusion.forecast import Forecast
from mifuse_cli.fusion.fusing import Fusion, fuse_answers, fuse_means, fuse_samples
from mifuse_cli.fusion.picking import Picked, picked
from mifuse_cli.fusion.pools import POOLS, sharpened
from mifuse_cli.fusion.settings import CROSS_FIT, PARTS, FusionSettings
from mifuse_cli.fusion.weightings import OF_MI, OF_RAW_MI, OF_TAU, WEIGHTINGS, Weighting

VERSION = 4
"""To be raised when the same answers and settings give other labels than before: ``compare`` then fuses anew."""

__all__ = [
    "CALIBRATIONS",
    "CROSS_FIT",
    "FORECAST_ERROR",
    "HIGHEST_TEMPERATURE",
    "LEAST_TEACHERS",
    "LOWEST_TEMPERATURE",
    "MI_ESTIMATORS",
    "OF_MI",
    "OF_RAW_MI",
    "OF_TAU",
    "PARTS",
    "POOLS",
    "VERSION",
    "WEIGHTINGS",
    "Forecast",
    "Fusion",
    "FusionSettings",
    "Picked",
    "Weighting",
    "agreement_with",
    "are_votes",
    "confidence",
    "dawid_skene",
    "disagreement",
    "disagreements",
    "entropy",
    "fuse_answers",
    "fuse_means",
    "fuse_samples",
    "is_dead",
    "js_divergence",
    "label_agreement",
    "label_free_temperature",
    "mean_and_mi",
    "mean_mi",
    "one_sided",
    "picked",
    "self_agreement",
    "share_identical",
    "sharpened",
    "temperature_for",
    "top_counts",
    "with_temperature",
]
