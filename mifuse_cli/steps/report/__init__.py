"""``mifuse report``: one self-contained page about artifacts, a transfer, or a whole experiment."""

from mifuse_cli.steps.report.config import ReportConfig, ReportResult
from mifuse_cli.steps.report.writing import report

__all__ = ["ReportConfig", "ReportResult", "report"]
