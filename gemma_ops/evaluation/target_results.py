"""The figures of each target, and of pairs of targets: intervals, slices, speed, confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gemma_ops.config import EvaluateConfig, GateConfig
from gemma_ops.errors import DataError
from gemma_ops.evaluation import answer_cost
from gemma_ops.evaluation.reserved_cost import most_per_answer
from gemma_ops.gates import gate_decision, label_evidence
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.runs import digest
from gemma_ops.stats import intervals, paired
from gemma_ops.stats.intervals import Array, Sample
from gemma_ops.tasks.answering_model import answered_by
from gemma_ops.tasks.grades import FAILED, Graded
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import PairedDifference, TargetResult

DRAWS = 1000
"""Bootstrap samples for figures that are no mean of rows."""


class Book:
    """All grades, looked up by task and target, with bootstrap draws made once per figure."""

    def __init__(self, graded: Sequence[Graded], settings: EvaluateConfig, facts: dict[str, Any]) -> None:
        self.settings = settings
        self.facts = facts
        self.pages = {(item.task.name, item.target): item for item in graded}
        self._draws: dict[tuple[str, str, str], tuple[float, Array]] = {}
        self._most: dict[tuple[str, str], float | None] = {}

    def targets(self, task: str) -> list[str]:
        return [target for name, target in self.pages if name == task]

    def task_of(self, gate: GateConfig) -> str:
        return gate.task or next(iter(self.pages))[0]

    def aggregate(self, task: str, target: str, name: str) -> tuple[float, Array]:
        """Return a figure on the rows that this target may see, and its draws, for the interval that is shown."""
        item = self.pages[task, target]
        place = (task, target, name)
        if place not in self._draws:
            scorer = next(scorer for scorer in item.task.scorers if name in scorer.aggregates)
            details = [scored.detail.get(scorer.key, {}) for scored in item.scores]
            figure = scorer.aggregates[name](item.task.rows, details)
            names = [row.cluster or row.id for row in item.task.rows]
            draws = intervals.resample_mean(figure, names, self.settings.seed, times=DRAWS)
            value = figure(np.arange(len(names)))
            self._draws[place] = value, intervals.recentre(value, draws, len(set(names)))
        return self._draws[place]

    def scores(self, task: str, name: str, targets: Sequence[str]) -> tuple[list[list[float]], list[str] | None]:
        """Return the scores of the rows that every target has a score for, one list per target, and their clusters, in
        the order of `played`."""
        pages = [self.pages[task, target] for target in targets]
        columns = [page.column(name) for page in pages]
        rows = pages[0].task.rows
        kept = [index for index in played(rows) if all(column[index] is not None for column in columns)]
        if not kept:
            raise DataError(
                f"task {task}: no row has a {name} score", "give the rows a reference, or take the metric out"
            )
        clusters = [str(rows[index].cluster) for index in kept] if pages[0].task.clustered else None
        return [[float(column[index] or 0.0) for index in kept] for column in columns], clusters

    def most(self, item: Graded) -> float | None:
        """Return the dollars that 1,000 answers of a target to a task can cost at most, as far as it is known."""
        place = (item.task.name, item.target)
        if place not in self._most:
            dearest = most_per_answer(item.task, item.target, item.answers)
            self._most[place] = None if dearest is None else 1000 * dearest
        return self._most[place]

    def evidence(self, gate: GateConfig) -> gate_decision.GateEvidence:
        task = self.task_of(gate)
        targets = [gate.target, *([gate.versus] if gate.versus else [])]
        item = self.pages[task, gate.target]
        if gate.test == "at_most":
            return answer_cost.evidence(gate, item.answers, self.facts, self.most(item))
        if gate.metric in item.task.columns:
            columns, clusters = self.scores(task, gate.metric, targets)
            values = columns[0] if len(columns) == 1 else [a - b for a, b in zip(*columns, strict=True)]
            sample = Sample.of(values, clusters)
            return gate_decision.GateEvidence(sample, len(columns) == 2, sample.mean)
        return self._label_evidence(task, gate.metric, targets)

    def _label_evidence(self, task: str, name: str, targets: Sequence[str]) -> gate_decision.GateEvidence:
        """Return evidence on F1: counts of the rows that every target was shown and that want a label, in the order of
        `played`."""
        pages = [self.pages[task, target] for target in targets]
        scorer = next(scorer for scorer in pages[0].task.scorers if name in scorer.aggregates)
        details = [[scored.detail.get(scorer.key, {}) for scored in page.scores] for page in pages]
        rows = pages[0].task.rows
        kept = [row for row in played(rows) if all("wanted" in column[row] for column in details)]
        if not kept:
            raise DataError(
                f"task {task}: no row has a label for {name}", "give the rows a reference, or take the gate out"
            )
        counts = [scorer.counts[name]([column[row] for row in kept]) for column in details]
        clusters = [str(rows[row].cluster) for row in kept] if pages[0].task.clustered else None
        ratios = label_evidence.ratio_sample(counts, clusters)
        counted = Sample.of([0.0] * len(kept), clusters)
        return gate_decision.GateEvidence(counted, len(targets) == 2, ratios.value, ratios, labels=counts[0].labels)


def played(rows: Sequence[ScoredRow]) -> list[int]:
    """Return the indexes of rows by a hash of their ids: an order that depends neither on scores nor on the order of a
    file, in which tests of scores go through the rows (`stats/betting.py`)."""
    return sorted(range(len(rows)), key=lambda index: digest.of_json(rows[index].id))


def result(item: Graded, book: Book) -> TargetResult:
    """Return everything about one target on one task."""
    task, confidence = item.task, book.settings.confidence
    metrics: dict[str, Any] = {}
    for name in task.columns:
        unscored = sum(value is None for value in item.column(name))
        if unscored == len(task.rows):
            metrics[name] = {"value": None, "n": 0, "unscored": unscored}
            continue
        (values,), clusters = book.scores(task.name, name, [item.target])
        metrics[name] = rounded(asdict(intervals.mean_interval(Sample.of(values, clusters), confidence))) | {
            "unscored": unscored
        }
    for scorer in task.scorers:
        for name in scorer.aggregates:
            value, draws = book.aggregate(task.name, item.target, name)
            clusters_count = len({row.cluster or row.id for row in task.rows})
            found = intervals.bootstrap_interval(value, draws, confidence, len(task.rows), clusters_count)
            metrics[name] = rounded(asdict(found)) | {"unscored": 0}
    body = {
        "task": task.name,
        "target": item.target,
        "rows": len(task.rows),
        "ends": dict(sorted(Counter(answer.end for answer in item.answers if answer.end != "hidden").items())),
        "failed": sum(answer.end in FAILED for answer in item.answers),
        "hidden": len(item.hidden),
        "answered": answered_by(answer.model for answer in item.answers),
        "metrics": metrics,
        "slices": _slices(item, confidence),
        "speed": rounded(answer_cost.answer_speed(item.answers)),
        "cost": rounded(answer_cost.spent(item.answers, book.facts, item.target, confidence, book.most(item))),
        "place": answer_cost.answer_place(book.facts, item.target),
    }
    labels = _labels(item)
    return TargetResult.made(body | ({"labels": labels} if labels else {}))


def _clusters(task: Task) -> list[str] | None:
    return [str(row.cluster) for row in task.rows] if task.clustered else None


def _slices(item: Graded, confidence: float) -> dict[str, list[dict[str, Any]]]:
    """Return the primary metric within each value of each slice."""
    task = item.task
    scores = item.column(task.file.primary)
    clusters = _clusters(task)
    found: dict[str, list[dict[str, Any]]] = {}
    for spec in task.file.slices:
        members: dict[str, list[int]] = {}
        for index, row in enumerate(task.rows):
            if scores[index] is not None:
                members.setdefault(row.slices[spec.name], []).append(index)
        order = sorted(members) if not spec.buckets else sorted(members, key=bucket_order)
        found[spec.name] = []
        for value in order:
            chosen = members[value]
            sample = Sample.of(
                [float(scores[index] or 0.0) for index in chosen],
                [clusters[index] for index in chosen] if clusters else None,
            )
            found[spec.name].append({"bucket": value} | rounded(asdict(intervals.mean_interval(sample, confidence))))
    return found


def bucket_order(name: str) -> tuple[float, int]:
    low = name.lstrip("<≥").partition(" ")[0]
    return float(low), int(not name.startswith("<"))


def _labels(item: Graded) -> dict[str, Any]:
    """Return the confusions per label metric: [expected, answered, count], the answer null when it was none of the
    labels."""
    found: dict[str, Any] = {}
    for scorer in item.task.scorers:
        if scorer.labels is None:
            continue
        pairs: Counter[tuple[str, str | None]] = Counter()
        for answer, scored in zip(item.answers, item.scores, strict=True):
            detail = scored.detail.get(scorer.key, {})
            if "wanted" in detail and answer.end not in FAILED:
                pairs[detail["wanted"], detail.get("label")] += 1
        ordered = sorted(pairs.items(), key=lambda pair: (pair[0][0], pair[0][1] or ""))
        found[scorer.key] = {
            "labels": list(scorer.labels),
            "invalid": sum(count for (_, said), count in ordered if said is None),
            "confusion": [[wanted, said, count] for (wanted, said), count in ordered],
        }
    return found


def paired_differences(task: str, book: Book) -> list[PairedDifference]:
    """Return paired differences on the primary metric: every target against the first, and every quantized file against
    `tuned`."""
    targets = book.targets(task)
    pairs = [(target, targets[0]) for target in targets[1:]]
    if "tuned" in targets[1:]:
        pairs += [(target, "tuned") for target in targets[1:] if target not in ("base", "tuned")]
    metric = book.pages[task, targets[0]].task.file.primary
    found = []
    for target, versus in pairs:
        if len(book.pages[task, target].hidden | book.pages[task, versus].hidden) == len(
            book.pages[task, target].task.rows
        ):
            continue  # no row was shown to both
        (first, second), clusters = book.scores(task, metric, [target, versus])
        body = asdict(paired.compare_paired(first, second, clusters, book.settings.confidence))
        head = {"task": task, "target": target, "versus": versus, "metric": metric}
        found.append(PairedDifference.made(head | rounded(body)))
    return found


def rounded(body: dict[str, Any]) -> dict[str, Any]:
    """Round to six digits, which are more than any interval needs, and keep the file readable. Tiny p-values keep their
    size."""
    return {name: (float(f"{value:.6g}") if isinstance(value, float) else value) for name, value in body.items()}
