"""The evaluation as the registry sees it: outcome, figures with intervals, differences, gates, which tasks.

Read from `verdict.json` of the step `evaluate`. What isn't there is left out and stays visibly missing: a gate must not
take silence for consent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gemma_ops.verdicts import VERDICT, Gate, TaskFacts, Verdict


@dataclass(frozen=True)
class ReportedFigure:
    """One metric of one target on one task, or the difference to `versus`, with its interval."""

    task: str
    target: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    versus: str | None = None

    @property
    def text(self) -> str:
        """Return the figure as text: `0.930 [0.901, 0.952]`, signed for a difference."""
        sign = "+" if self.versus else ""
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


@dataclass(frozen=True)
class EvaluationEvidence:
    """A verdict as a card and a list of versions tell it."""

    verdict: Verdict

    @property
    def outcome(self) -> str:
        """Return `pass`, `fail`, `inconclusive`, or `ungated` when no condition was asked."""
        return self.verdict.verdict

    @property
    def confidence(self) -> float:
        """Return the confidence of the intervals."""
        return self.verdict.confidence

    @property
    def tasks(self) -> dict[str, TaskFacts]:
        """Return the tasks by name, in the order of the report."""
        return self.verdict.tasks

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Return every condition with its outcome."""
        return self.verdict.gates

    @cached_property
    def figures(self) -> tuple[ReportedFigure, ...]:
        """Return every figure that has a value, the task's primary metric first; a metric that no row could be scored
        for is no zero, and is left out."""
        return tuple(
            ReportedFigure(result.task, result.target, name, found.value, found.low, found.high, found.n)
            for result in self.verdict.results
            for name, found in sorted(
                result.metrics.items(), key=lambda item: item[0] != self.tasks[result.task].primary
            )
            if found.value is not None and found.low is not None and found.high is not None
        )

    @cached_property
    def differences(self) -> tuple[ReportedFigure, ...]:
        """Return paired differences on the primary metric of each task."""
        return tuple(
            ReportedFigure(one.task, one.target, one.metric, one.value, one.low, one.high, one.n, one.versus)
            for one in self.verdict.differences
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets that answered, in the order of the report."""
        return tuple(dict.fromkeys(figure.target for figure in self.figures))

    def primary(self, target: str, task: str) -> ReportedFigure | None:
        """Return the task's primary metric of a target; None when that target did not answer it."""
        return next((figure for figure in self.figures if (figure.target, figure.task) == (target, task)), None)


def read_evidence(folder: Path) -> EvaluationEvidence | None:
    """Read the evidence in an evaluation's folder; None without a verdict. Raises DataError on one that can't be
    read."""
    file = folder / VERDICT
    return EvaluationEvidence(Verdict.read(file)) if file.exists() else None
