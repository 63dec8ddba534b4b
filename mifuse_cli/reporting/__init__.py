"""The report: what is known about a run, as sections, charts, a table of clips, and one page of HTML."""

from mifuse_cli.reporting.labelling import Task, TaskClip
from mifuse_cli.reporting.page import Shown, page
from mifuse_cli.reporting.run import ROLES, Listed, Predictor, Run, score_of, scored
from mifuse_cli.reporting.sections import Comparison

__all__ = [
    "ROLES",
    "Comparison",
    "Listed",
    "Predictor",
    "Run",
    "Shown",
    "Task",
    "TaskClip",
    "page",
    "score_of",
    "scored",
]
