"""`verdict.json`: everything that the scores of an evaluation say, as the report, the summary and `promote` read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from gemma_ops.verdicts.file_fidelity_record import FileFidelity
from gemma_ops.verdicts.gate_record import ComparedChampion, Gate, LookTaken, StandardHeld
from gemma_ops.verdicts.measurements import PairedDifference, TargetResult
from gemma_ops.verdicts.record import Number, VerdictRecord, parse_record, read_record
from gemma_ops.verdicts.routing_record import Routing
from gemma_ops.verdicts.safety import KvFacts, SafetyFacts

VERDICT = "verdict.json"
"""Name of the file, in the folder of the step `evaluate`."""
VERDICT_SCHEMA: Final = "gemma-ops/verdict@1"
_FIX = "evaluate again: --redo evaluate"


class TaskFacts(VerdictRecord):
    """A task as it was asked."""

    version: int | None = None
    digest: str
    """Digest of its content: questions, references and how they are scored."""
    description: str = ""
    primary: str
    """The metric that targets are compared on."""
    rows: int
    """Number of questions that were asked."""
    rows_in_file: int | None = None
    """Number of questions that its file holds."""
    cluster_by: str | None = None
    """The field whose equal values make rows dependent; None where rows are independent."""
    clusters: int | None = None
    """Number of independent groups of rows."""
    copies: int = 0
    """Number of rows that repeat another question, and count as one with it."""
    privacy: dict[str, int]
    """Number of rows by privacy class."""
    metrics: tuple[str, ...] = ()
    """Names of its figures, in the order of the report."""
    max_new_tokens: int | None = None
    """Tokens that an answer may have at most."""
    detectable: Number | None = None
    """The smallest true paired difference that so many rows are likely to show, in units of the metric."""


class TargetFacts(VerdictRecord):
    """The model that answered under a target's name."""

    identity: str
    """Digest of the model's files and of how it was asked."""
    family: str = ""
    place: str = ""
    """Destination of its prompts; empty where nothing recorded it."""
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
    """Bytes of a quantized file."""
    sha256: str | None = None
    """SHA-256 of the quantized file that answered; None for others, and where nothing recorded it."""
    artifact: str | None = None
    """Digest of the step's artifact that answered."""
    engine: str | None = None
    """Engine that ran it, such as `llama.cpp`; None where nothing recorded it."""
    fidelity: FileFidelity | None = None
    """What quantization changed in its file; None for others, and where nothing measured it."""


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
    """Source of the price, or why there is none, in words."""
    utilisation: Number = 1.0
    """Share of hours for which it is assumed to be busy."""


class GeminiTerms(VerdictRecord):
    """The terms under which Gemini was asked."""

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
    """A person's release of answers that would otherwise have had to stay here."""

    to: str | None = None
    reason: str = ""


class AskedFacts(VerdictRecord):
    """The conditions that a target's answers to a task were timed under."""

    task: str
    target: str
    began: str
    """Time at which the first question was asked: UTC, ISO 8601, to the second."""
    at_once: tuple[int, ...]
    """Prompts decoded together, or concurrent requests; several where the evaluation was resumed."""
    device: tuple[str, ...]
    """Device that computed; empty where the engine is not ours, so that it is not known."""
    threads: tuple[int, ...]
    """CPU threads that the engine computed with."""
    cores: int | None
    """CPU cores of the machine."""
    load: tuple[Number, Number] | None
    """Least and greatest load average over the minute before; None where the system keeps none."""
    here: bool
    """Whether the questions stayed on this machine."""
    whole: bool
    """Whether these conditions cover all answers, not a part only."""


class Verdict(VerdictRecord):
    """The whole document (schema gemma-ops/verdict@1). Keys that came later than the schema are None, or empty, in the
    verdicts of before them."""

    schema_: Literal["gemma-ops/verdict@1"] = Field(alias="schema")
    verdict: Literal["pass", "fail", "inconclusive", "ungated"]
    """`fail` if any gate failed, else `inconclusive` if any is, else `pass`; `ungated` where none was decided."""
    confidence: Number
    """Confidence of intervals, and of all gates together."""
    seed: int | None = None
    """Seed of bootstrap samples."""
    look: LookTaken | None = None
    """Number of this look at these targets; None without gates."""
    gates: tuple[Gate, ...]
    """Gates in the order of the configuration."""
    tasks: dict[str, TaskFacts]
    """Tasks in the order of the configuration."""
    results: tuple[TargetResult, ...]
    """Results, one per task and target."""
    differences: tuple[PairedDifference, ...]
    """Paired differences of targets on the primary metric of a task."""
    judged: tuple[dict[str, Any], ...] = ()
    """What judges said of pairs of targets (schema gemma-ops/judged@1); empty without judges."""
    routing: Routing | None = None
    """Slices to keep here and to send to a service; None without a service."""
    run: str | None = None
    made_by: str | None = None
    """The version of gemma-ops that made it."""
    model: Annotated[TunedModel, Field(default_factory=TunedModel)]
    targets: Annotated[dict[str, TargetFacts], Field(default_factory=dict)]
    """Facts about what answered, by target."""
    machine: MachineFacts | None = None
    """Price of the machine; None where nothing recorded what an hour costs."""
    gemini: GeminiTerms | None = None
    """Terms of Gemini; None where it was not asked."""
    data: TrainingData | None = None
    release: ReleaseFacts | None = None
    """Release of answers; None where no release changed what may be shown."""
    standard: StandardHeld | None = None
    """Standard of the registry; None where no registry was asked."""
    date: str | None = None
    """Time at which the first question was asked: UTC, ISO 8601, to the second; None where nothing recorded it."""
    asked: tuple[AskedFacts, ...] = ()
    """Timing conditions per task and target; what no record covers is left out."""
    safety: SafetyFacts | None = None
    """Findings of the safety probes; None where none were made."""
    kv: tuple[KvFacts, ...] = ()
    """KV cache per token; empty where the model's shape is not known."""
    canary: Annotated[dict[str, int], Field(default_factory=dict)]
    """Number of answers that were recorded for a server to repeat, by target."""

    @model_validator(mode="after")
    def _of_known_tasks(self) -> Self:
        named = [*(one.task for one in self.results), *(one.task for one in self.differences)]
        if strange := [task for task in named if task not in self.tasks]:
            raise ValueError(f"a result is of task {strange[0]!r}, which is not among its tasks")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the document from a file. Raises DataError for one that isn't there, isn't JSON, is of another schema,
        or has a field that is wrong, which the message names."""
        return read_record(path, cls, VERDICT_SCHEMA, _FIX)

    @classmethod
    def parse(cls, body: Any, where: str = VERDICT) -> Self:
        """Parse the document from a JSON object that was found at `where`. Raises DataError as `read` does."""
        return parse_record(body, cls, VERDICT_SCHEMA, _FIX, where)

    def result(self, task: str, target: str) -> TargetResult | None:
        """Return a target's result on a task; None where it was not asked."""
        return next((one for one in self.results if (one.task, one.target) == (task, target)), None)

    def results_of(self, task: str) -> tuple[TargetResult, ...]:
        """Return every target's result on a task."""
        return tuple(one for one in self.results if one.task == task)

    def differences_of(self, task: str) -> tuple[PairedDifference, ...]:
        """Return the paired differences on a task."""
        return tuple(one for one in self.differences if one.task == task)

    def gates_of(self, task: str) -> tuple[Gate, ...]:
        """Return the gates on a task."""
        return tuple(gate for gate in self.gates if gate.task == task)

    def judged_of(self, task: str) -> Iterator[dict[str, Any]]:
        """Yield what judges said about a task."""
        return (one for one in self.judged if one["task"] == task)

    @property
    def champion(self) -> ComparedChampion | None:
        """Return the champion that the model was compared with; None where there was none."""
        return self.standard.champion if self.standard else None
