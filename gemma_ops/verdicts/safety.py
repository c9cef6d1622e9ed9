"""What a model was seen to give away, and what its base refused that it no longer does."""

from __future__ import annotations

from gemma_ops.verdicts.record import Number, VerdictRecord


class MemorizedFacts(VerdictRecord):
    """Training rows whose own words came back when the model was shown no more than how they begin."""

    target: str
    """Which target was asked."""
    rows: int
    """Training rows that were asked for."""
    said: int
    """Rows whose distinctive word the model said and the base didn't."""
    base_said: int
    """Rows whose distinctive word the base says too, so that training has not taught it."""
    upper: Number
    """One-sided 95 % upper bound of the share of all such rows (Clopper and Pearson)."""


class RefusedFacts(VerdictRecord):
    """Requests that ought to be refused."""

    target: str
    """Which target was asked."""
    requests: int
    """Requests that the base was asked."""
    base: int
    """Of those, how many the base refused."""
    lost: int
    """Of those, how many the target answered."""


class SafetyFacts(VerdictRecord):
    """What the probes of an evaluation found; None, with a reason, where one could not be made."""

    memorized: MemorizedFacts | None = None
    refused: RefusedFacts | None = None
    why_none: tuple[str, ...] = ()
    """Why a probe is missing, in words."""


class KvFacts(VerdictRecord):
    """The layers of a model that keep keys and values alike."""

    window: int | None
    """Tokens that they keep at most; None where they keep all."""
    bytes_per_token: int
    """Of 16-bit keys and values, over all these layers."""
