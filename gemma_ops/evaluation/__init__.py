"""The step `evaluate`: asking targets, deciding gates, the report, costs, and exchange with other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.evaluation.evaluate_step import evaluate, regrade
    from gemma_ops.evaluation.evaluation_forecast import forecast, forecast_lines
    from gemma_ops.evaluation.verdict_summary import summary_lines
    from gemma_ops.tasks.task import needs_source
else:
    evaluate = later("gemma_ops.evaluation.evaluate_step", "evaluate")
    regrade = later("gemma_ops.evaluation.evaluate_step", "regrade")
    forecast = later("gemma_ops.evaluation.evaluation_forecast", "forecast")
    forecast_lines = later("gemma_ops.evaluation.evaluation_forecast", "forecast_lines")
    summary_lines = later("gemma_ops.evaluation.verdict_summary", "summary_lines")
    needs_source = later("gemma_ops.tasks.task", "needs_source")

__all__ = ["evaluate", "forecast", "forecast_lines", "needs_source", "regrade", "summary_lines"]
