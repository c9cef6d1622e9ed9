"""What was measured: figures with intervals, speed, money, confusions, and differences between pairs of targets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.privacy.classes import HERE
from gemma_ops.verdicts.record import Number, VerdictRecord

ValueSpan = tuple[Number, Number, Number]
"""A value with the lower and the upper end of its interval."""


def span_of(value: Number | None, low: Number | None, high: Number | None) -> ValueSpan | None:
    """The three together; None where any is unknown."""
    return None if value is None or low is None or high is None else (value, low, high)


class Figure(VerdictRecord):
    """One metric of one target on one task, with its interval. A metric that no row was scored for has `value` None."""

    value: Number | None
    """In the metric's own units, for most a share from 0 to 1; None where no row could be scored."""
    low: Number | None = None
    """Lower end of the two-sided interval at the verdict's confidence."""
    high: Number | None = None
    """Upper end of it."""
    n: int = 0
    """Rows that were scored."""
    clusters: int | None = None
    """Independent groups of those rows."""
    method: str | None = None
    """How the interval was made."""
    unscored: int = 0
    """Rows without a score, which are not in the mean."""

    @property
    def span(self) -> ValueSpan | None:
        """Value, lower and upper end; None where no row could be scored."""
        return span_of(self.value, self.low, self.high)


class SliceFigure(VerdictRecord):
    """The primary metric of one target within one value of a slice."""

    bucket: str
    """The value, or the range of values such as `<6`."""
    value: Number | None
    """As in `Figure`."""
    low: Number | None = None
    """Lower end of the two-sided interval."""
    high: Number | None = None
    """Upper end of it."""
    n: int = 0
    """Scored rows of this value."""
    clusters: int | None = None
    """Independent groups of them."""
    method: str | None = None
    """How the interval was made."""

    @property
    def span(self) -> ValueSpan | None:
        """As in `Figure`."""
        return span_of(self.value, self.low, self.high)


class SpeedFacts(VerdictRecord):
    """Seconds that askers waited, seconds of the machine, and tokens. None where nothing was measured."""

    seconds_p50: Number | None = None
    """Seconds to the whole answer that half of the askers waited at most."""
    seconds_p95: Number | None = None
    """Seconds that 95 % of them waited at most."""
    first_seconds_p50: Number | None = None
    """Seconds to the first token, for half of the askers."""
    first_seconds_p95: Number | None = None
    """Seconds to the first token, for 95 % of them."""
    seconds_total: Number | None = None
    """Seconds of the machine, or of a service's replies, over all answers."""
    new_tokens_per_second: Number | None = None
    """New tokens of all answers over `seconds_total`."""
    mean_prompt_tokens: Number | None = None
    """Tokens of a prompt."""
    mean_new_tokens: Number | None = None
    """New tokens of an answer."""
    mean_thought_tokens: Number | None = None
    """Tokens that an answer's thoughts took."""

    def wait(self, name: str) -> Number | None:
        """One of the four waiting times by its name, such as `seconds_p95`, in seconds."""
        known = {
            "seconds_p50": self.seconds_p50,
            "seconds_p95": self.seconds_p95,
            "first_seconds_p50": self.first_seconds_p50,
            "first_seconds_p95": self.first_seconds_p95,
        }
        return known[name]


class CostFacts(VerdictRecord):
    """Dollars of 1,000 answers. Unknown is None, which is not zero."""

    usd_per_1k: Number | None = None
    """Dollars of 1,000 answers."""
    low: Number | None = None
    """Lower end of their interval."""
    high: Number | None = None
    """Upper end; None where nothing says what an answer can cost at most."""
    kind: Literal["billed", "machine", "unknown"] = "unknown"
    """What the dollars are: a bill, hours of the machine, or not known."""
    basis: str = "not recorded"
    """Where the figure is from, or why there is none, in words."""


class LabelFacts(VerdictRecord):
    """What a metric of labels confused."""

    labels: tuple[str, ...]
    """Labels of the task, in its order."""
    invalid: int
    """Answers that were none of them."""
    confusion: tuple[tuple[str, str | None, int], ...]
    """Expected label, answered label, rows; the answer is None where it was none of the labels."""


class TargetResult(VerdictRecord):
    """Everything about one target on one task."""

    task: str
    target: str
    rows: int
    """Rows of the task, whether or not this target was shown them."""
    ends: dict[str, int]
    """Answers by how they ended: `stop`, `length`, `blocked`, `error`."""
    failed: int
    """Answers that failed or were refused; they score 0."""
    hidden: int = 0
    """Rows that this target may not see, and was not shown."""
    answered: Annotated[dict[str, int], Field(default_factory=dict)]
    """Answers by the model that the service says gave them."""
    metrics: dict[str, Figure]
    """Every figure, by name."""
    slices: dict[str, tuple[SliceFigure, ...]]
    """The primary metric within each value of each slice."""
    speed: SpeedFacts
    cost: Annotated[CostFacts, Field(default_factory=CostFacts)]
    place: str = HERE
    """Where its prompts go; evaluations of before there were services all stayed on the machine."""
    labels: Annotated[dict[str, LabelFacts], Field(default_factory=dict)]
    """Confusions, by metric of labels."""

    def value(self, metric: str) -> Number | None:
        """The value of one figure; None where this target has none of the name, or no row could be scored."""
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
    """Upper end of it."""
    n: int
    """Rows that both were scored on."""
    clusters: int
    """Independent groups of them."""
    wins: int
    """Rows that `target` did better on."""
    losses: int
    """Rows that it did worse on."""
    p: Number
    """Two-sided, against no difference."""
    correlation: Number | None
    """Of the two targets' scores; None where it is not defined."""
    method: str
    """How the interval was made."""

    @property
    def span(self) -> ValueSpan:
        """Value, lower and upper end."""
        return self.value, self.low, self.high
