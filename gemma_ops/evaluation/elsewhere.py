"""The verdict for other machines, without a word from rows that must stay here.

Slices are called by values of the rows, and labels are their answers. Of a task with `local_only` rows, such values are
numbered instead, the same way in every place; what the task's own file says (bounds of buckets, choices) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import Verdict

FOLDER = "elsewhere"
"""Folder inside an evaluation that has something to hide: `verdict.json`, `routing.json` and `summary.md` for
others."""


def hides(tasks: Iterable[Task]) -> bool:
    """True if any question must stay here, so that others get a verdict of their own."""
    return any(row.privacy == "local_only" for task in tasks for row in task.rows)


def for_others(verdict: Verdict, tasks: Iterable[Task]) -> Verdict:
    """Return the verdict with the values of private rows numbered."""
    found = verdict.to_json()
    for task in tasks:
        if not hides((task,)):
            continue
        numbers = _numbers(task)
        for result in (item for item in found["results"] if item["task"] == task.name):
            for name, lines in result["slices"].items():
                for line in lines:
                    line["bucket"] = numbers[name](line["bucket"])
            for key, facts in result.get("labels", {}).items():
                _label(facts, task, key)
        for table in (found["routing"] or {"tables": ()})["tables"]:
            for line in table["lines"] if table["task"] == task.name else ():
                if line["slice"] is not None:
                    line["value"] = numbers[line["slice"]](line["value"])
    return Verdict.made(found)


def _numbers(task: Task) -> dict[str, Callable[[str], str]]:
    """Return for each slice a function from a value to what others are shown."""
    found: dict[str, Callable[[str], str]] = {}
    for spec in task.file.slices:
        values = sorted({row.slices[spec.name] for row in task.rows})
        known = {value: f"value {number}" for number, value in enumerate(values, 1)}
        found[spec.name] = str if spec.buckets else known.__getitem__
    return found


def _label(facts: dict[str, Any], task: Task, key: str) -> None:
    """Number the labels of a metric, unless the task's file names them."""
    metric = next(
        (metric for metric, scorer in zip(task.file.metrics, task.scorers, strict=True) if scorer.key == key), None
    )
    if getattr(metric, "choices", None):
        return
    known: dict[str | None, str | None] = {label: f"label {n}" for n, label in enumerate(facts["labels"], 1)}
    known[None] = None
    facts["labels"] = [known[label] for label in facts["labels"]]
    facts["confusion"] = [[known[wanted], known[said], count] for wanted, said, count in facts["confusion"]]
