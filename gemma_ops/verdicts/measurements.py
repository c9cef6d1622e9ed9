"""Measured figures: scores with intervals, speed, money, confusions, and differences between pairs of targets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.privacy.classes import HERE
from gemma_ops.verdicts.record import Number, VerdictRecord

ValueSpan = tuple[Number, Number, Number]
"""A value with the lower and the upper end of its interval."""


def span_of(value: Number | None, low: Number | None, high: Number | None) -> ValueSpan | None:
    """Return the three together; None where any is unknown."""
    return None if value is None or low is None or high is None else (value, low, high)


class Figure(VerdictRecord):
    """One metric of one target on one task, with its interval. A metric that no row was scored for has `value` None."""

    value: Number | None
    """Value in the metric's own units, for most a share from 0 to 1; None where no row could be scored."""
    low: Number | None = None
    """Lower end of the two-sided interval at the verdict's confidence."""
    high: Number | None = None
    """Upper end of the two-sided interval at the verdict's confidence."""
    n: int = 0
    """Number of rows that were scored."""
    clusters: int | None = None
    """Number of independent groups of those rows."""
    method: str | None = None
    """Method of the interval."""
    unscored: int = 0
    """Number of rows without a score, which are not in the mean."""

    @property
    def span(self) -> ValueSpan | None:
        """Return the value with the lower and upper end; None where no row could be scored."""
        return span_of(self.value, self.low, self.high)


class SliceFigure(VerdictRecord):
    """The primary metric of one target within one value of a slice."""

    bucket: str
    """Value of the slice, or range of values such as `<6`."""
    value: Number | None
    """Value of the metric in its own units; None where no row could be scored."""
    low: Number | None = None
    """Lower end of the two-sided interval."""
    high: Number | None = None
    """Upper end of the two-sided interval."""
    n: int = 0
    """Number of scored rows of this value."""
    clusters: int | None = None
    """Number of independent groups of those rows."""
    method: str | None = None
    """Method of the interval."""

    @property
    def span(self) -> ValueSpan | None:
        """Return the value with the lower and upper end; None where no row could be scored."""
        return span_of(self.value, self.low, self.high)


class SpeedFacts(VerdictRecord):
    """Seconds that askers waited, seconds of the machine, and tokens. None where nothing was measured."""

    seconds_p50: Number | None = None
    """Median seconds to the whole answer."""
    seconds_p95: Number | None = None
    """95th percentile of seconds to the whole answer."""
    first_seconds_p50: Number | None = None
    """Median seconds to the first token."""
    first_seconds_p95: Number | None = None
    """95th percentile of seconds to the first token."""
    seconds_total: Number | None = None
    """Seconds of the machine, or of a service's replies, over all answers."""
    new_tokens_per_second: Number | None = None
    """New tokens of all answers over `seconds_total`."""
    mean_prompt_tokens: Number | None = None
    """Mean tokens of a prompt."""
    mean_new_tokens: Number | None = None
    """Mean new tokens of an answer."""
    mean_thought_tokens: Number | None = None
    """Mean tokens of an answer's thoughts."""

    def wait(self, name: str) -> Number | None:
        """Return one of the four waiting times by its name, such as `seconds_p95`, in seconds."""
        known = {
            "seconds_p50": self.seconds_p50,
            "seconds_p95": self.seconds_p95,
            "first_seconds_p50": self.first_seconds_p50,
            "first_seconds_p95": self.first_seconds_p95,
        }
        return known[name]


class CostFacts(VerdictRecord):
    """US dollars of 1,000 answers. Unknown is None, which is not zero."""

    usd_per_1k: Number | None = None
    """US dollars of 1,000 answers."""
    low: Number | None = None
    """Lower end of the dollars' interval."""
    high: Number | None = None
    """Upper end of the dollars' interval; None where nothing says what an answer can cost at most."""
    kind: Literal["billed", "machine", "unknown"] = "unknown"
    """Kind of the dollars: a bill, hours of the machine, or not known."""
    basis: str = "not recorded"
    """Source of the figure, or why there is none, in words."""


class LabelFacts(VerdictRecord):
    """Confusions of a metric of labels."""

    labels: tuple[str, ...]
    """Labels of the task, in its order."""
    invalid: int
    """Number of answers that were none of the labels."""
    confusion: tuple[tuple[str, str | None, int], ...]
    """Expected label, answered label, rows; the answer is None where it was none of the labels."""


class TargetResult(VerdictRecord):
    """Everything about one target on one task."""

    task: str
    target: str
    rows: int
    """Number of rows of the task, whether or not this target was shown them."""
    ends: dict[str, int]
    """Number of answers by how they ended: `stop`, `length`, `blocked`, `error`."""
    failed: int
    """Number of answers that failed or were refused; they score 0."""
    hidden: int = 0
    """Number of rows that this target may not see, and was not shown."""
    answered: Annotated[dict[str, int], Field(default_factory=dict)]
    """Number of answers by the model that gave them, as the service names it."""
    metrics: dict[str, Figure]
    """All figures by name."""
    slices: dict[str, tuple[SliceFigure, ...]]
    """The primary metric within each value of each slice."""
    speed: SpeedFacts
    cost: Annotated[CostFacts, Field(default_factory=CostFacts)]
    place: str = HERE
    """Destination of its prompts; evaluations from before services were supported all stayed on the machine."""
    labels: Annotated[dict[str, LabelFacts], Field(default_factory=dict)]
    """Confusions, by metric of labels."""

    def value(self, metric: str) -> Number | None:
        """Return the value of one figure; None where this target has no such figure, or no row could be scored."""
        found = self.metrics.get(metric)
        return None if found is None else found.value


class PairedDifference(VerdictRecord):
    """The paired difference of two targets on the primary metric of a task, `target` minus `versus`, row by row."""

    task: str
    target: str
    versus: str
    metric: str
    value: Number
    """Mean difference, in units of the metric."""
    low: Number
    """Lower end of the two-sided interval."""
    high: Number
    """Upper end of the two-sided interval."""
    n: int
    """Number of rows that both were scored on."""
    clusters: int
    """Number of independent groups of those rows."""
    wins: int
    """Number of rows that `target` did better on."""
    losses: int
    """Number of rows that `target` did worse on."""
    p: Number
    """Two-sided p-value against no difference."""
    correlation: Number | None
    """Correlation of the two targets' scores; None where it is not defined."""
    method: str
    """Method of the interval."""

    @property
    def span(self) -> ValueSpan:
        """Return the value with the lower and upper end."""
        return self.value, self.low, self.high
