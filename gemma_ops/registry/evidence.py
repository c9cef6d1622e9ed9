"""The evaluation as the registry sees it: outcome, figures with intervals, differences, gates, which tasks.

Read from `verdict.json` of the step `evaluate`. What isn't there is left out and stays visibly missing: a gate must not
take silence for consent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError

SCHEMA = "gemma-ops/verdict@1"


@dataclass(frozen=True)
class Figure:
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
        """`0.930 [0.901, 0.952]`, signed for a difference."""
        sign = "+" if self.versus else ""
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


@dataclass(frozen=True)
class Task:
    """An evaluation task: the digest of its questions, how many were asked, and how many of each privacy class."""

    name: str
    digest: str
    rows: int
    privacy: dict[str, int]


@dataclass(frozen=True)
class Gate:
    """One condition and how it ended."""

    outcome: str
    words: str


@dataclass(frozen=True)
class Evidence:
    """Outcome is `pass`, `fail`, `inconclusive`, or `ungated` when no condition was asked; `identities` says by digest
    what answered under each target's name."""

    outcome: str
    confidence: float
    tasks: tuple[Task, ...]
    figures: tuple[Figure, ...]
    differences: tuple[Figure, ...]
    gates: tuple[Gate, ...]
    identities: dict[str, str]

    @property
    def targets(self) -> tuple[str, ...]:
        """Who answered, in the order of the report."""
        return tuple(dict.fromkeys(figure.target for figure in self.figures))

    def primary(self, target: str, task: str) -> Figure | None:
        """The task's primary metric of a target; None when that target did not answer it."""
        return next((figure for figure in self.figures if (figure.target, figure.task) == (target, task)), None)


def read(folder: Path) -> Evidence | None:
    """The evidence in an evaluation's folder; None when it has no verdict. Raises DataError on one that can't be read."""
    file = folder / "verdict.json"
    if not file.exists():
        return None
    try:
        return parse(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} can't be read: {error!r}", "evaluate again: --redo evaluate") from error


def parse(body: dict[str, Any]) -> Evidence:
    """Read the body of `verdict.json` (schema gemma-ops/verdict@1); of each target the task's primary metric comes first."""
    if body["schema"] != SCHEMA:
        raise ValueError(f"schema {body['schema']!r} instead of {SCHEMA!r}")
    tasks = {
        name: Task(name, task["digest"], task["rows"], dict(task["privacy"])) for name, task in body["tasks"].items()
    }
    figures = []
    for result in body["results"]:
        first = body["tasks"][result["task"]]["primary"]
        for name, found in sorted(result["metrics"].items(), key=lambda item: item[0] != first):
            if found["value"] is not None:  # a metric for which no row could be scored is not a zero
                figures.append(Figure(result["task"], result["target"], name, *_interval(found)))
    differences = [
        Figure(item["task"], item["target"], item["metric"], *_interval(item), versus=item["versus"])
        for item in body["differences"]
    ]
    conditions = tuple(Gate(gate["outcome"], gate["words"]) for gate in body["gates"])
    identities = {name: str(target["identity"]) for name, target in body["targets"].items()}
    return Evidence(
        body["verdict"],
        body["confidence"],
        tuple(tasks.values()),
        tuple(figures),
        tuple(differences),
        conditions,
        identities,
    )


def _interval(found: dict[str, Any]) -> tuple[float, float, float, int]:
    return found["value"], found["low"], found["high"], found["n"]
