"""`drafter.json`: what a drafter does for each file of a version, as the step `draft` measured it in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.verdicts.record import Number, VerdictRecord, read_record

DRAFTER, DRAFTER_GGUF, DRAFTER_WEIGHTS = "drafter.json", "drafter.gguf", "weights"
"""Files of the step `draft`: the record, the drafter for llama.cpp, and the folder of it for transformers and vLLM."""
DRAFTER_SHELF = "drafter"
"""Folder of those files in a registered version."""
SCHEMA = "gemma-ops/drafter@1"


class Measured(VerdictRecord):
    """A figure with its interval, by resampling of rows or clusters."""

    value: Number
    low: Number
    high: Number

    @property
    def words(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class DraftedAnswers(VerdictRecord):
    """Answers to a task's questions that a drafter took part in, one at a time."""

    tokens_per_step: Measured
    """Tokens of an answer for each step in which the model checked a draft; 1 without a drafter."""
    accepted: Measured
    """Share of the drafted tokens that were kept."""
    speed: Measured
    """Tokens a second with the drafter, as a multiple of those without."""
    tokens_per_second: Number


class DraftedTask(VerdictRecord):
    """A task's questions answered by one file, with and without drafters."""

    task: str
    digest: str
    rows: int
    clusters: int
    tokens_per_second: Number
    """Without a drafter."""
    stock: DraftedAnswers
    """With the drafter before it was tuned."""
    tuned: DraftedAnswers
    equal: int
    """Answers with the tuned drafter that are the same, token by token, as those without one."""
    metric: str
    score: Number | None
    """Mean of the metric with the tuned drafter; None where it can score no answer."""
    score_alone: Number | None
    """Mean of the metric without a drafter."""
    outcome: Literal["pass", "fail", "inconclusive"]
    """Of the gate: not worse with the drafter."""
    words: str
    """The gate's outcome in a sentence."""


class DraftedFile(VerdictRecord):
    """What the drafter does for one file."""

    sha256: str
    tasks: tuple[DraftedTask, ...]
    recommended: bool
    reason: str


class DrafterRecord(VerdictRecord):
    """A tuned drafter, and what it does for the files that it was measured with."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    base: str
    """The drafter that was tuned: its id, and its revision where there is one."""
    tokens: int
    """Tokens that are drafted before the model checks them."""
    parameters: int
    rows: int
    """Answers that it was tuned on."""
    engine: str
    files: dict[str, DraftedFile]
    """By format."""

    @classmethod
    def read(cls, path: Path) -> DrafterRecord:
        """Read the file. Raises DataError for one that is none."""
        return read_record(path, cls, SCHEMA, "make it again: --redo draft")
