"""The report's section on quality. Proven by tests/eval/test_report.py."""

from collections.abc import Sequence

from eval.report_pictures import Pictures
from eval.report_read import Model


def section(models: Sequence[Model], pictures: Pictures) -> str:
    """Nothing yet."""
    return ""
