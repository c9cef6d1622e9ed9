"""`verdict.json`: everything that the scores of an evaluation say, as the report, the summary and `promote` read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from gemma_ops.verdicts.figures import PairedDifference, TargetResult
from gemma_ops.verdicts.gate_record import ComparedChampion, Gate, LookTaken, StandardHeld
from gemma_ops.verdicts.record import Number, VerdictRecord, parse_record, read_record
from gemma_ops.verdicts.routing_record import Routing
from gemma_ops.verdicts.safety import KvFacts, SafetyFacts

VERDICT = "verdict.json"
"""The file's name, in the folder of the step `evaluate`."""
VERDICT_SCHEMA: Final = "gemma-ops/verdict@1"
_FIX = "evaluate again: --redo evaluate"


class TaskFacts(VerdictRecord):
    """A task as it was asked."""

    version: int | None = None
    digest: str
    """Of its content: questions, references and how they are scored."""
    description: str = ""
    primary: str
    """The metric that targets are compared on."""
    rows: int
    """Questions that were asked."""
    rows_in_file: int | None = None
    """Questions that its file holds."""
    cluster_by: str | None = None
    """The field whose equal values make rows dependent; None where rows are independent."""
    clusters: int | None = None
    """Independent groups of rows."""
    copies: int = 0
    """Rows that repeat another question, and count as one with it."""
    privacy: dict[str, int]
    """Rows by privacy class."""
    metrics: tuple[str, ...] = ()
    """Names of its figures, in the order of the report."""
    max_new_tokens: int | None = None
    """Tokens that an answer may have at most."""
    detectable: Number | None = None
    """The smallest true paired difference that so many rows are likely to show, in units of the metric."""


class TargetFacts(VerdictRecord):
    """What answered under a target's name."""

    identity: str
    """Digest of the model's files and of how it was asked."""
    family: str = ""
    place: str = ""
    """Where its prompts go; empty where nothing recorded it."""
    sees: tuple[str, ...] | None = None
    """Privacy classes that it may be shown; None where nothing recorded them."""
    learned: str | None = None
    """The strictest class of the rows that it learned from; None where nothing recorded it."""
    step: str | None = None
    """The step of the run that made it."""
    id: str | None = None
    """The base model's name."""
    revision: str | None = None
    size: str | None = None
    """The base model's size, such as `E4B`."""
    bytes: int | None = None
    """Of a quantized file."""
    sha256: str | None = None
    """Of the quantized file that answered; None for others, and where nothing recorded it."""
    artifact: str | None = None
    """Digest of the step's artifact that answered."""
    engine: str | None = None
    """What ran it, such as `llama.cpp`; None where nothing recorded it."""


class TunedModel(VerdictRecord):
    """The model that was tuned, as far as it is known."""

    id: str | None = None
    revision: str | None = None
    size: str | None = None


class MachineFacts(VerdictRecord):
    """What an hour of the machine costs."""

    dollars: Number | None = None
    """Dollars an hour; None where no price is known."""
    source: str = Field("not recorded", alias="from")
    """Where the price is from, or why there is none, in words."""
    utilisation: Number = 1.0
    """Share of hours that it would be busy."""


class GeminiTerms(VerdictRecord):
    """Under which terms Gemini was asked."""

    terms: str | None = None
    terms_source: str | None = None
    tier: str | None = None
    region: str | None = None
    location: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    batch: str | None = None
    rehearsal: bool | None = None
    """Whether an emulator stood in for it."""
    not_for: str | None = None


class TrainingData(VerdictRecord):
    """The prepared rows that the tuned model saw; empty where there were none."""

    digest: str | None = None
    rows: Annotated[dict[str, Number], Field(default_factory=dict)]
    """Metrics of the step `prepare`."""


class ReleaseFacts(VerdictRecord):
    """A person's release of answers that would have had to stay here."""

    to: str | None = None
    reason: str = ""


class AskedFacts(VerdictRecord):
    """The conditions that a target's answers to a task were timed under."""

    task: str
    target: str
    began: str
    """When the first question was asked: UTC, ISO 8601, to the second."""
    at_once: tuple[int, ...]
    """Prompts decoded together, or requests under way together; several where it was resumed."""
    device: tuple[str, ...]
    """Empty where the engine is not ours, so that its device is not known."""
    threads: tuple[int, ...]
    """CPU threads that the engine computed with."""
    cores: int | None
    """Of the machine."""
    load: tuple[Number, Number] | None
    """Least and greatest load average over the minute before; None where the system keeps none."""
    here: bool
    """Whether the questions stayed on this machine."""
    whole: bool
    """Whether this covers all answers, not a part only."""


class Verdict(VerdictRecord):
    """The whole document (schema gemma-ops/verdict@1). Keys that came later than the schema are None, or empty, in the
    verdicts of before them."""

    schema_: Literal["gemma-ops/verdict@1"] = Field(alias="schema")
    verdict: Literal["pass", "fail", "inconclusive", "ungated"]
    """`fail` if any gate failed, else `inconclusive` if any is, else `pass`; `ungated` where none was decided."""
    confidence: Number
    """Of intervals, and of all gates together."""
    seed: int | None = None
    """Of bootstrap samples."""
    look: LookTaken | None = None
    """Which look at these targets this is; None without gates."""
    gates: tuple[Gate, ...]
    """Every condition, in the order of the configuration."""
    tasks: dict[str, TaskFacts]
    """In the order of the configuration."""
    results: tuple[TargetResult, ...]
    """One per task and target."""
    differences: tuple[PairedDifference, ...]
    """Pairs of targets on the primary metric of a task."""
    judged: tuple[dict[str, Any], ...] = ()
    """What judges said of pairs of targets (schema gemma-ops/judged@1); empty without judges."""
    routing: Routing | None = None
    """Which slices to keep here and which to send to a service; None without a service."""
    run: str | None = None
    made_by: str | None = None
    """The version of gemma-ops that made it."""
    model: Annotated[TunedModel, Field(default_factory=TunedModel)]
    targets: Annotated[dict[str, TargetFacts], Field(default_factory=dict)]
    """What answered, by target."""
    machine: MachineFacts | None = None
    """None where nothing recorded what an hour costs."""
    gemini: GeminiTerms | None = None
    """None where Gemini was not asked."""
    data: TrainingData | None = None
    release: ReleaseFacts | None = None
    """None where no release changed what may be shown."""
    standard: StandardHeld | None = None
    """None where no registry was asked."""
    date: str | None = None
    """When the first question was asked: UTC, ISO 8601, to the second; None where nothing recorded it."""
    asked: tuple[AskedFacts, ...] = ()
    """Per task and target; what no record covers is left out."""
    safety: SafetyFacts | None = None
    """What probes found; None where none were made."""
    kv: tuple[KvFacts, ...] = ()
    """What a token costs in keys and values; empty where the model's shape is not known."""
    canary: Annotated[dict[str, int], Field(default_factory=dict)]
    """Answers that were recorded for a server to repeat, by target."""

    @model_validator(mode="after")
    def _of_known_tasks(self) -> Self:
        named = [*(one.task for one in self.results), *(one.task for one in self.differences)]
        if strange := [task for task in named if task not in self.tasks]:
            raise ValueError(f"a result is of task {strange[0]!r}, which is not among its tasks")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in a file. Raises DataError for one that isn't there, isn't JSON, is of another schema, or has a
        field that is wrong, which the message names."""
        return read_record(path, cls, VERDICT_SCHEMA, _FIX)

    @classmethod
    def parse(cls, body: Any, where: str = VERDICT) -> Self:
        """The document from a JSON object that was found at `where`. Raises DataError as `read` does."""
        return parse_record(body, cls, VERDICT_SCHEMA, _FIX, where)

    def result(self, task: str, target: str) -> TargetResult | None:
        """What a target did on a task; None where it was not asked."""
        return next((one for one in self.results if (one.task, one.target) == (task, target)), None)

    def results_of(self, task: str) -> tuple[TargetResult, ...]:
        """Every target's result on a task."""
        return tuple(one for one in self.results if one.task == task)

    def differences_of(self, task: str) -> tuple[PairedDifference, ...]:
        """The paired differences on a task."""
        return tuple(one for one in self.differences if one.task == task)

    def gates_of(self, task: str) -> tuple[Gate, ...]:
        """The gates on a task."""
        return tuple(gate for gate in self.gates if gate.task == task)

    def judged_of(self, task: str) -> Iterator[dict[str, Any]]:
        """What judges said about a task."""
        return (one for one in self.judged if one["task"] == task)

    @property
    def champion(self) -> ComparedChampion | None:
        """The champion it was compared with; None where there was none."""
        return self.standard.champion if self.standard else None
