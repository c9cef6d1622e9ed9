"""Answers that are JSON: do they parse, fit a schema, and hold the right fields?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics.metric import Metric, ScoredAnswer, ScoredRow, Scorer, one_metric
from gemma_ops.metrics.parse import Unreadable, dump, json_leaves, parse_json


class JsonMetric(Metric):
    """Options of every JSON metric."""

    fenced: bool = False
    """Whether to take off one surrounding Markdown code fence before parsing."""


class JsonValid(JsonMetric):
    """1 when the whole answer is one JSON value."""

    id: Literal["json_valid"]

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            value = parse_json(text, fenced=self.fenced)
            bad = isinstance(value, Unreadable)
            return one_metric(self.key, float(not bad), **({"why": value.why} if bad else {}))

        return Scorer(self.key, (self.key,), score)


class JsonSchema(JsonMetric):
    """1 when the answer fits a JSON schema (draft 2020-12)."""

    id: Literal["json_schema"]
    file: str
    """Schema file in the task's folder."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        from jsonschema import Draft202012Validator, SchemaError

        path = folder / self.file
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
            Draft202012Validator.check_schema(schema)
        except (OSError, ValueError, SchemaError) as error:
            raise ConfigError(
                f"{path} is no JSON schema: {str(error).splitlines()[0]}", "correct the file or the metric's `file`"
            ) from error
        validator = Draft202012Validator(schema)

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            value = parse_json(text, fenced=self.fenced)
            if isinstance(value, Unreadable):
                return one_metric(self.key, 0.0, why=value.why)
            problem = next(iter(validator.iter_errors(value)), None)
            return one_metric(self.key, float(problem is None), **({"why": problem.message[:200]} if problem else {}))

        return Scorer(self.key, (self.key,), score)


class JsonFieldAccuracy(JsonMetric):
    """Share of the reference's fields that the answer has with the same value; one more column per field."""

    id: Literal["json_field_accuracy"]
    fields: tuple[str, ...] = ()
    """Top-level keys to compare; by default those of the first reference."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        wanted = {row.id: _object(row, self.id) for row in rows if row.reference is not None}
        fields = self.fields or tuple(next(iter(wanted.values()), {}))
        columns = {field: f"{self.key}.{field}" for field in fields}

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return ScoredAnswer(dict.fromkeys((self.key, *columns.values())))
            value = parse_json(text, fenced=self.fenced)
            found = value if isinstance(value, dict) else {}
            expected = _object(row, self.id)
            right = {
                f: float(f in found and dump(found[f]) == dump(expected[f])) if f in expected else None for f in fields
            }
            known = [item for item in right.values() if item is not None]
            mean = sum(known) / len(known) if known else None
            wrong = [field for field, item in right.items() if item == 0]
            return ScoredAnswer(
                {self.key: mean} | {columns[field]: item for field, item in right.items()}, {"wrong": wrong}
            )

        return Scorer(self.key, (self.key, *columns.values()), score)


class JsonFieldF1(JsonMetric):
    """F1 over (path, value) pairs of the nested JSON: missing and superfluous fields both cost."""

    id: Literal["json_field_f1"]

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return one_metric(self.key, None)
            value = parse_json(text, fenced=self.fenced)
            if isinstance(value, Unreadable):
                return one_metric(self.key, 0.0)
            expected = parse_json(row.reference) if isinstance(row.reference, str) else row.reference
            found, wanted = Counter(json_leaves(value).items()), Counter(json_leaves(expected).items())
            shared = sum((found & wanted).values())
            return one_metric(self.key, 2 * shared / (found.total() + wanted.total()))

        return Scorer(self.key, (self.key,), score)


def _object(row: ScoredRow, metric: str) -> dict[str, Any]:
    """Return the reference as an object. Raises DataError when it is none."""
    value = parse_json(row.reference) if isinstance(row.reference, str) else row.reference
    if not isinstance(value, dict):
        raise DataError(
            f"row {row.id}: {metric} needs a reference that is a JSON object", "correct the row, or use another metric"
        )
    return value
