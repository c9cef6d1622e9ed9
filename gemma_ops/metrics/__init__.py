"""Metrics, which score an answer against its row, for evaluation and as rewards of training. One file per family.

A metric is a frozen pydantic model (its options in `task.yaml`) with a method `scorer`. To add one: write the class in
the file of its family (or a new file), and name it in `METRICS` below. Nothing else knows a metric by name.

| file | metrics |
|---|---|
| text.py | exact_match, contains, regex, length |
| json_fields.py | json_valid, json_schema, json_field_accuracy, json_field_f1 |
| numbers.py | numeric |
| labels.py | choice_accuracy, with macro and micro F1 |
| overlap.py | rouge_l, chrf |
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field

from gemma_ops.metrics.json_fields import JsonFieldAccuracy, JsonFieldF1, JsonSchema, JsonValid
from gemma_ops.metrics.labels import ChoiceAccuracy
from gemma_ops.metrics.metric import Metric
from gemma_ops.metrics.numbers import Numeric
from gemma_ops.metrics.overlap import Chrf, RougeL
from gemma_ops.metrics.text import Contains, ExactMatch, Length, Regex

METRICS: tuple[type[Metric], ...] = (
    ExactMatch, Contains, Regex, Length, JsonValid, JsonSchema, JsonFieldAccuracy, JsonFieldF1, Numeric, ChoiceAccuracy,
    RougeL, Chrf,
)  # fmt: skip

AnyMetric: Any = Annotated[reduce(or_, METRICS), Field(discriminator="id")]


def by_id() -> dict[str, type[Metric]]:
    """Return every metric's class by the id that `task.yaml` uses."""
    return {str(kind.model_fields["id"].annotation.__args__[0]): kind for kind in METRICS}  # type: ignore[union-attr]
