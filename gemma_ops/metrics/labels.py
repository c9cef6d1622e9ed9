"""Answers that are one of a set of labels: accuracy, macro and micro F1, and what is needed for a confusion table.

A label outside the set is a wrong answer of its own kind: it is counted apart as invalid, costs recall, and costs no
label's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemma_ops.errors import DataError
from gemma_ops.metrics.metric import (
    Aggregate,
    Counts,
    Indexes,
    Metric,
    Normalization,
    RowCounts,
    ScoredAnswer,
    ScoredRow,
    Scorer,
    normalize,
)
from gemma_ops.metrics.parse import parse_json


class ChoiceAccuracy(Metric):
    """1 when the normalised answer is the row's label."""

    id: Literal["choice_accuracy"]
    choices: tuple[str, ...] = ()
    """Labels; by default the row's own `choices`, else every label among the references."""
    field: str | None = None
    """Top-level key of a JSON answer and reference to compare instead of the whole text."""
    normalize: tuple[Normalization, ...] = ("strip", "casefold")
    """Normalisations of answer and labels before they are compared."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        every = self.choices or tuple(
            sorted({x for row in rows for x in (row.choices or (self._label(row.gold),)) if x is not None})
        )
        spelled = {normalize(label, self.normalize): label for label in every}

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return ScoredAnswer({self.key: None})
            allowed = {normalize(x, self.normalize): x for x in row.choices} if row.choices else spelled
            wanted = allowed.get(normalize(self._label(row.gold) or "", self.normalize))
            if wanted is None:
                raise DataError(
                    f"row {row.id}: the reference {row.gold[:60]!r} is none of the choices",
                    "correct the row or the metric's choices",
                )
            found = allowed.get(normalize(self._label(text) or "", self.normalize))
            values: dict[str, float | None] = {self.key: float(found == wanted)}
            return ScoredAnswer(values, {"label": found, "wanted": wanted})

        kinds = {f"{self.key}.f1_macro": True, f"{self.key}.f1_micro": False}
        aggregates = {name: f1_aggregate(every, macro=macro) for name, macro in kinds.items()}
        counts = {name: f1_counts(every, macro=macro) for name, macro in kinds.items()}
        return Scorer(self.key, (self.key,), score, aggregates, counts, every)

    def _label(self, text: str) -> str | None:
        if self.field is None:
            return text
        value: Any = parse_json(text)
        found = value.get(self.field) if isinstance(value, dict) else None
        return found if isinstance(found, str) else None


def f1_aggregate(labels: tuple[str, ...], *, macro: bool) -> Aggregate:
    """Macro F1 (the mean over labels that occur among the rows or the answers) or micro F1 (over all decisions)."""
    place = {label: index for index, label in enumerate(labels)}
    size = len(labels)

    def prepare(rows: Sequence[ScoredRow], details: Sequence[Mapping[str, Any]]) -> Callable[[Indexes], float]:
        wanted = np.array([place.get(detail.get("wanted", ""), size) for detail in details])
        found = np.array([place.get(detail.get("label") or "", size) for detail in details])

        def figure(chosen: Indexes) -> float:
            real, said = wanted[chosen], found[chosen]
            hits = np.bincount(real[real == said], minlength=size + 1)[:size]
            support = np.bincount(real, minlength=size + 1)[:size]
            predicted = np.bincount(said, minlength=size + 1)[:size]
            if not macro:
                return float(2 * hits.sum() / max(support.sum() + predicted.sum(), 1))
            total = support + predicted
            return float((2 * hits[total > 0] / total[total > 0]).mean()) if (total > 0).any() else 0.0

        return figure

    return prepare


def f1_counts(labels: tuple[str, ...], *, macro: bool) -> Counts:
    """Return the counts from which `f1_aggregate` computes its figure: one column a label, or for micro F1 their
    sum."""
    place = {label: index for index, label in enumerate(labels)}

    def count(details: Sequence[Mapping[str, Any]]) -> RowCounts:
        wanted, said = np.zeros((len(details), len(labels))), np.zeros((len(details), len(labels)))
        for row, detail in enumerate(details):
            for table, key in ((wanted, "wanted"), (said, "label")):
                if detail.get(key) in place:
                    table[row, place[detail[key]]] = 1.0
        parts = wanted * said, wanted + said, wanted
        if macro:
            return RowCounts(labels, *parts)
        return RowCounts((), *(part.sum(1, keepdims=True) for part in parts))

    return count
