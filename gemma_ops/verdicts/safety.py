"""Findings of the safety probes: memorised training rows, and refusals of the base that the tuned model has lost."""

from __future__ import annotations

from gemma_ops.verdicts.record import Number, VerdictRecord


class MemorizedFacts(VerdictRecord):
    """Training rows whose own words the model said when it was shown only their beginning."""

    target: str
    """Name of the target that was asked."""
    rows: int
    """Number of training rows that were asked for."""
    said: int
    """Number of rows whose distinctive word the model said and the base didn't."""
    base_said: int
    """Number of rows whose distinctive word the base says too, so that training has not taught it."""
    upper: Number
    """One-sided 95 % upper bound of the share of all such rows (Clopper and Pearson)."""


class RefusedFacts(VerdictRecord):
    """Requests that ought to be refused."""

    target: str
    """Name of the target that was asked."""
    requests: int
    """Number of requests that the base was asked."""
    base: int
    """Number of these requests that the base refused."""
    lost: int
    """Number of the refused requests that the target answered."""


class SafetyFacts(VerdictRecord):
    """The findings of an evaluation's probes; None, with a reason, where one could not be made."""

    memorized: MemorizedFacts | None = None
    refused: RefusedFacts | None = None
    why_none: tuple[str, ...] = ()
    """Reason why a probe is missing, in words."""


class KvFacts(VerdictRecord):
    """Layers of a model with the same window and KV cache."""

    window: int | None
    """Tokens that the layers cache at most; None where they cache all."""
    bytes_per_token: int
    """Bytes of the 16-bit KV cache per token, over all these layers."""
