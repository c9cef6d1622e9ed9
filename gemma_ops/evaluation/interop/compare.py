"""Imported answers graded by the task, and compared pairwise with those of other targets on the same rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError
from gemma_ops.evaluation.interop.intake import key_of
from gemma_ops.evaluation.target_results import rounded
from gemma_ops.stats import intervals, paired
from gemma_ops.stats.intervals import Sample
from gemma_ops.tasks import grades
from gemma_ops.tasks.stored_answers import FILE, StoredAnswer
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import VERDICT, Verdict

CONFIDENCE = 0.95


@dataclass(frozen=True)
class ImportReport:
    """Return the report for `--json`."""

    task: str
    target: str
    rows: int
    of: int
    figures: dict[str, dict[str, Any]]
    differences: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as lines of text."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the comparison as lines for a terminal."""
        found = [f"{self.target} on {self.task}: {self.rows} of {self.of} rows answered (95% intervals)"]
        width = max(map(len, [*self.figures, *("− " + item["versus"] for item in self.differences)]), default=0)
        found += [
            f"  {name:<{width}}  {item['value']:.3f}  [{item['low']:.3f}, {item['high']:.3f}]"
            for name, item in self.figures.items()
        ]
        found += [
            f"  {'− ' + item['versus']:<{width}}  {item['value']:+.3f}  [{item['low']:+.3f}, {item['high']:+.3f}]"
            f"  {item['metric']} on {item['n']} rows, better on {item['wins']}, worse on {item['losses']}"
            for item in self.differences
        ]
        return found


def compare_import(
    task: Task, taken: Sequence[StoredAnswer], out: Path, rivals: Sequence[StoredAnswer] = ()
) -> ImportReport:
    """Grade what was taken in, and compare it with the other targets in its file `out` and with `rivals`, on the rows
    that both have answered. Raises DataError as `read`.
    """
    target = taken[0].target
    mine = {item.row: item for item in taken}
    others: dict[str, dict[str, StoredAnswer]] = {}
    for item in read_other(out, task):
        if item.target != target:
            others.setdefault(item.target, {})[item.row] = item
    for item in rivals:
        label = item.target if item.target != target else f"{target} there"
        others.setdefault(label, {})[item.row] = item
    figures = {}
    graded = _grade(task, mine)
    for name in task.columns:
        (values,), clusters = _scores([graded], name)
        if values:
            figures[name] = rounded(asdict(intervals.mean_interval(Sample.of(values, clusters), CONFIDENCE)))
    pairs = [(name, theirs) for name, theirs in others.items() if mine.keys() & theirs.keys()]
    differences = [_difference(task, mine, name, theirs) for name, theirs in pairs]
    return ImportReport(task.name, target, len(mine), len(task.rows), figures, [item for item in differences if item])


def read_other(place: Path, task: Task) -> list[StoredAnswer]:
    """Return the answers to this task in a file, or in the folder of a step `evaluate`.

    Raises DataError when there are none to read, or when one is to another question than the task asks now.
    """
    path = place / FILE if place.is_dir() else place
    try:
        with path.open(encoding="utf-8") as lines:
            found = [StoredAnswer(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no answers: {error}", "give the folder of a finished step `evaluate`") from error
    verdict = path.with_name(VERDICT)
    named = Verdict.read(verdict).targets if verdict.is_file() else {}
    rows = {row.id: row for row in task.rows}
    answers = [item for item in found if item.task == task.name]
    for item in answers:
        identity = named[item.target].identity if item.target in named else f"import:{item.model}"
        if item.row not in rows or item.key != key_of(item.target, identity, task, rows[item.row]):
            raise DataError(
                f"{path}: {item.target} was asked something else in row {item.row} than the task asks now",
                "evaluate that target again",
            )
    return answers


def _difference(
    task: Task, mine: dict[str, StoredAnswer], versus: str, theirs: dict[str, StoredAnswer]
) -> dict[str, Any] | None:
    both = mine.keys() & theirs.keys()
    pages = [_grade(task, {row: found[row] for row in both}) for found in (mine, theirs)]
    columns, clusters = _scores(pages, task.file.primary)
    if not columns[0]:
        return None
    body = asdict(paired.compare_paired(columns[0], columns[1], clusters, CONFIDENCE))
    return {"versus": versus, "metric": task.file.primary, **rounded(body)}


def _grade(task: Task, answers: dict[str, StoredAnswer]) -> grades.Graded:
    """Return the grades of the rows that were answered, in the task's order."""
    rows = tuple(row for row in task.rows if row.id in answers)
    name = next(iter(answers.values())).target
    return grades.grade_answers(replace(task, rows=rows), name, [answers[row.id] for row in rows])


def _scores(pages: Sequence[grades.Graded], name: str) -> tuple[list[list[float]], list[str] | None]:
    """Return the scores of the rows that all pages score, a list per page, and their clusters."""
    rows, columns = pages[0].task.rows, [page.column(name) for page in pages]
    kept = [index for index in range(len(rows)) if all(column[index] is not None for column in columns)]
    clusters = [str(rows[index].cluster) for index in kept] if pages[0].task.clustered else None
    return [[float(column[index] or 0.0) for index in kept] for column in columns], clusters
