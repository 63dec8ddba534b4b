"""The report: what is known about a run, as sections, charts, a table of clips, and one page of HTML."""

from mifuse_cli.reporting.labelling import ClipToLabel, Labelling
from mifuse_cli.reporting.page import Shown, page
from mifuse_cli.reporting.predictors import ROLES, Listed, Predictor, Run, score_of, scored
from mifuse_cli.reporting.sections import ComparisonTable

__all__ = [
    "ROLES",
    "ClipToLabel",
    "ComparisonTable",
    "Labelling",
    "Listed",
    "Predictor",
    "Run",
    "Shown",
    "page",
    "score_of",
    "scored",
]
