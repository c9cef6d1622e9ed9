"""`routing.json`, which a router reads: which questions stay on a local model and which are better sent to a service.

`Routing.read(path).tables` holds one table per task, local target and service. A line is about a slice's value; the
first one of a table is about the task as a whole. Rows of class `local_only` are kept whatever a line says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field

from gemma_ops.verdicts.measurements import ValueSpan, span_of
from gemma_ops.verdicts.record import Number, VerdictRecord, read_record

ROUTING = "routing.json"
"""Name of the file, in the folder of the step `evaluate`."""
ROUTING_SCHEMA: Final = "gemma-ops/routing@1"

RoutingDecision = Literal["keep", "send", "undecided"]


class RoutedTarget(VerdictRecord):
    """One of the two targets of a table."""

    name: str
    identity: str | None
    """Digest of what answered; None where it isn't known."""
    place: str
    """Destination of its prompts, in words: `stays here` or what leaves the machine under which terms."""


class RoutedSlice(VerdictRecord):
    """The way in which a question's value of a slice is found."""

    field: str
    """Field of the row that holds the value."""
    buckets: tuple[Number, ...]
    """Bounds of ranges, ascending; empty where values stand for themselves."""


class RoutingLine(VerdictRecord):
    """The decision for one value of a slice, or for the task as a whole."""

    slice: str | None
    """The slice's name, such as `lang`; None for the task as a whole."""
    value: str | None
    """The slice's value, such as `de`; None for the task as a whole."""
    decision: RoutingDecision
    """Decision: `keep` where the local model is shown not to be worse by the margin or more. `send`: shown to be.
    `undecided`: neither is shown."""
    reason: Literal["shown", "privacy", "open"]
    """Reason: a test, because all its rows must stay here, or because nothing is shown."""
    n: int
    """Number of paired rows."""
    clusters: int
    """Number of independent groups of those rows."""
    local_only: int
    """Number of rows that only the local target saw."""
    difference: Number | None
    """Local minus remote, in units of the metric; None without pairs."""
    low: Number | None
    """Lower end of the difference's two-sided interval."""
    high: Number | None
    """Upper end of the difference's two-sided interval."""
    p: Number | None
    """p-value of the decision's own one-sided test."""
    p_holm: Number | None
    """One-sided p-value, adjusted for all lines of the table."""
    n_needed: int | None
    """Rows that would settle an undecided line; None where no number would, and for decided ones."""
    words: str
    """The decision as a sentence."""

    @property
    def span(self) -> ValueSpan | None:
        """Return the difference with the lower and upper end of its interval; None without pairs."""
        return span_of(self.difference, self.low, self.high)


class RoutingTable(VerdictRecord):
    """One task, one local target and one service."""

    task: str
    metric: str
    """The task's primary metric, which was compared."""
    digest: str
    """Digest of the task's content."""
    local: RoutedTarget
    remote: RoutedTarget
    slices: dict[str, RoutedSlice]
    local_only: Literal["keep"]
    """Decision for rows that must stay here: always `keep`."""
    lines: tuple[RoutingLine, ...] = Field(min_length=1)
    """The task as a whole, then every value of every slice."""

    @property
    def slice_lines(self) -> tuple[RoutingLine, ...]:
        """Return the lines about values of slices; empty where the task has none."""
        return self.lines[1:]


class Routing(VerdictRecord):
    """The whole document (schema gemma-ops/routing@1)."""

    schema_: Literal["gemma-ops/routing@1"] = Field(alias="schema")
    confidence: Number
    """Probability that a whole table is right."""
    margin: Number
    """Largest difference by which a local model may be worse and still be kept, in units of the metric."""
    tables: tuple[RoutingTable, ...]

    def of_task(self, task: str) -> tuple[RoutingTable, ...]:
        """Return the tables of one task."""
        return tuple(table for table in self.tables if table.task == task)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the document from a file. Raises DataError for one that isn't there, isn't JSON, is of another schema,
        or has a field that is wrong, which the message names."""
        return read_record(path, cls, ROUTING_SCHEMA, "evaluate again: --redo evaluate")
