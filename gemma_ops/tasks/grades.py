"""Grading: from stored answers to `scores.jsonl`. Needs no model, so it can be done again at any time.

Wrong, unscored and errored stay three things. A row that lacks what a metric needs is unscored (null) and leaves the
mean; so does a row that the target was not shown. An answer that was refused or failed scores 0 wherever it would have
been scored, and is counted by its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemma_ops.metrics.metric import ScoredAnswer, ScoredRow
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.tasks.task import Task

FILE = "scores.jsonl"
FAILED = ("blocked", "error")
"""Ends of an answer that count as failures."""


@dataclass(frozen=True)
class Graded:
    """All answers of one target to one task, in the task's row order."""

    target: str
    task: Task
    answers: tuple[StoredAnswer, ...]
    scores: tuple[ScoredAnswer, ...]

    @property
    def hidden(self) -> frozenset[int]:
        """Return the indexes of rows that the target may not see."""
        return frozenset(index for index, answer in enumerate(self.answers) if answer.end == "hidden")

    def column(self, name: str) -> list[float | None]:
        """Return the scores of one column, one per row."""
        return [scored.values[name] for scored in self.scores]


def grade_answers(task: Task, target: str, answers: Sequence[StoredAnswer]) -> Graded:
    """Score a target's answers, given in the task's row order."""
    scores = tuple(_score(task, row, answer) for row, answer in zip(task.rows, answers, strict=True))
    return Graded(target, task, tuple(answers), scores)


def grade_lines(graded: Sequence[Graded]) -> Iterator[str]:
    """Yield lines of `scores.jsonl`: key, target, task, row, what each metric says, and details the report shows."""
    for item in graded:
        for answer, scored in zip(item.answers, item.scores, strict=True):
            body = {
                "key": answer.key,
                "target": item.target,
                "task": item.task.name,
                "row": answer.row,
                "scores": {name: None if value is None else round(value, 6) for name, value in scored.values.items()},
                "detail": scored.detail,
            }
            yield json.dumps(body, ensure_ascii=False) + "\n"


def _score(task: Task, row: ScoredRow, answer: StoredAnswer) -> ScoredAnswer:
    if answer.end == "hidden":
        return ScoredAnswer(dict.fromkeys(task.columns))
    scored = task.score(answer.text, row)
    if answer.end not in FAILED:
        return scored
    detail = {
        key: {name: item for name, item in value.items() if name == "wanted"} for key, value in scored.detail.items()
    }
    return ScoredAnswer({name: None if value is None else 0.0 for name, value in scored.values.items()}, detail)
