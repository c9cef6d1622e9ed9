"""One sentence about how a gate ended, for a person."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_ops.config import GateConfig


@dataclass(frozen=True)
class Told:
    """What is reported of a gate as well as its outcome: both bounds, rows needed, what keeps any test from passing,
    and the truth that rows are planned for."""

    value: float
    n: int
    bound: float | None
    upper: float | None
    needed: int | None
    missing: str | None
    hope: float | None


def gate_sentence(gate: GateConfig, outcome: str, told: Told, *, is_difference: bool) -> str:
    """Return the sentence about a gate's outcome. `is_difference`: figures carry their sign."""
    what = gate.words
    if gate.test == "at_most":
        return _running(gate, outcome, told)
    sign = "+" if is_difference else ""
    figure, bound, upper, hope = (
        None if number is None else f"{number:{sign}.3f}" for number in (told.value, told.bound, told.upper, told.hope)
    )
    if outcome == "pass":
        return f"{what}: yes. Measured {figure}, and at least {bound} at this confidence."
    if outcome == "fail":
        return f"{what}: no. Measured {figure}, and at most {upper} at this confidence."
    least = "" if bound is None else f", at least {bound}"
    return f"{what}: not shown either way. Measured {figure}{least}, from {told.n:,} rows; {_settle(told, hope)}."


def _settle(told: Told, hope: str | None) -> str:
    """Return what would settle an inconclusive gate."""
    if told.missing and told.needed:
        return f"{told.missing}; about {told.needed:,} rows would settle it" + _if(told, hope)
    if told.missing:
        return told.missing
    if told.needed is None:
        return "no number of rows would pass it"
    return f"about {told.needed:,} rows would settle it" + _if(told, hope)


def _if(told: Told, hope: str | None) -> str:
    """Return the truth that rows are planned for, in words; none where it is what was measured."""
    return "" if hope is None or told.hope == told.value else f" if the truth is {hope}, which is not excluded"


def _running(gate: GateConfig, outcome: str, told: Told) -> str:
    """Return the sentence about a gate on dollars or seconds."""
    money = gate.metric == "usd_per_1k"
    measured, bound, other, hope = (
        None if number is None else f"${number:,.4g}" if money else f"{number:.1%}"
        for number in (told.value, told.bound, told.upper, told.hope)
    )
    if money:
        sides = {"pass": f"at most {bound}", "fail": f"at least {other}", "inconclusive": f"up to {bound or 'any sum'}"}
    else:
        measured = f"{measured} came in time"
        sides = {"pass": f"at least {bound}", "fail": f"at most {other}", "inconclusive": f"at least {bound}"}
    words = {"pass": "yes", "fail": "no", "inconclusive": "not shown either way"}[outcome]
    settle = f", from {told.n:,} rows; {_settle(told, hope)}" if outcome == "inconclusive" else ""
    return f"{gate.words}: {words}. Measured {measured}, {sides[outcome]} at this confidence{settle}."
