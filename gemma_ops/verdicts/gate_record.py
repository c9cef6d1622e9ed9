"""Gates and how they ended, the looks that share their level, and the standard they were held to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gemma_ops.verdicts.record import Number, VerdictRecord


class Gate(VerdictRecord):
    """One condition and how it ended. A gate that no judge may decide is `report_only`, and its figures are None."""

    task: str
    metric: str
    target: str
    test: str
    """`superior`, `noninferior`, `at_least` or `at_most`."""
    versus: str | None
    """The rival of a paired test; None for the two others."""
    margin: Number
    """Margin in units of the metric, dollars of 1,000 answers, or seconds."""
    outcome: Literal["pass", "fail", "inconclusive", "report_only"]
    value: Number | None = None
    """Measured value: of a paired test the difference, of seconds the share of answers that came in time."""
    threshold: Number
    """Threshold that the value must exceed; dollars must stay below it."""
    bound: Number | None = None
    """One-sided bound at `level`: beyond the threshold exactly where the gate passes. Of dollars it is the upper."""
    upper: Number | None = None
    """One-sided bound on the other side, which shows a failure."""
    level: Number | None = None
    """Confidence of the bound, after Holm's method."""
    p: Number | None = None
    """One-sided p-value against the condition's opposite."""
    p_holm: Number | None = None
    """One-sided p-value, adjusted for all gates of the verdict."""
    n: int | None = None
    """Number of rows the gate was decided on."""
    clusters: int | None = None
    """Number of independent groups of those rows."""
    n_needed: int | None = None
    """Rows that would settle an inconclusive gate; None where no number would, and for gates that are settled."""
    words: str
    """The condition and its outcome as a sentence."""

    @model_serializer(mode="wrap")
    def _in_order(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = write(self)
        if self.outcome == "report_only" and "threshold" in body:
            # Written behind the unknown figures: digests of stored verdicts cover the order of keys.
            body["threshold"] = body.pop("threshold")
            body["words"] = body.pop("words")
        return body


class Look(VerdictRecord):
    """One look at the answers of some targets, which spent a part of the gates' level."""

    subjects: tuple[str, ...]
    """What the gates are about: task, digest of the target's model, digest of the rival's."""
    evidence: str
    """Digest of the answers the gates were decided on."""
    rows: int
    """Rows of the largest task that was looked at."""
    level: Number
    """Level that the look spent."""
    verdict: str = ""
    """Outcome of the look; empty until it is known."""


class LookTaken(VerdictRecord):
    """The look that this verdict is, and those before it."""

    number: int
    """Number of the look, 1 for the first one."""
    subjects: tuple[str, ...]
    """What the gates are about: task, digest of the target's model, digest of the rival's."""
    evidence: str
    """Digest of the answers the gates were decided on."""
    rows: int
    """Rows of the largest task that was looked at."""
    level: Number
    """Level that the look spent."""
    later: Number
    """Level that the next look will have."""
    earlier: tuple[Look, ...]
    """Earlier looks at the same targets, the oldest first."""


class PolicyGate(VerdictRecord):
    """A condition of the policy, as `evaluate.gates` writes it."""

    metric: str
    task: str | None = None
    target: str = "tuned"
    test: str
    versus: str | None = None
    margin: Number = 0.0
    most: Number | None = None
    """Most dollars of 1,000 answers that each cost as much as one can; None where it isn't asked."""


class PolicyQuestions(VerdictRecord):
    """A task of the policy: the digest of its content, the fewest rows that are asked, and its primary metric."""

    digest: str
    rows: int
    primary: str


class PolicyHeld(VerdictRecord):
    """The policy that the evaluation was held to."""

    gates: tuple[PolicyGate, ...]
    tasks: dict[str, PolicyQuestions]
    confidence: Number
    asks: dict[str, Any] | None = None
    """Requirements of the policy besides gates, where they are not the usual."""


class ComparedChampion(VerdictRecord):
    """The version that was the champion when the questions were asked."""

    name: str = ""
    version: str
    manifest: str
    """Digest that names the version."""
    form: str = ""
    """File of the version that answered: `merged`, a quantized format, `adapter` or `tuned`."""
    base: Annotated[dict[str, str], Field(default_factory=dict)]
    """SHA-256 of the files of its base, by name."""
    learned: str = "local_only"
    """Privacy class of the rows that it learned from."""


class StandardHeld(VerdictRecord):
    """The registry's requirements for the evaluation."""

    policy: PolicyHeld | None = None
    champion: ComparedChampion | None = None
    why_none: str = ""
    """Reason why there was no champion to compare with, in words."""
