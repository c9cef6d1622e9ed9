"""The figures of one gate as a reader compares them: measured value, bounds, what it must be, and its baseline."""

from __future__ import annotations

from gemma_ops.gates.gate_decision import QUANTILES
from gemma_ops.judging.judged import WIN_RATE, figures
from gemma_ops.tasks.conditions import load_words
from gemma_ops.verdicts import Gate, Verdict
from gemma_ops.verdicts.measurements import ValueSpan, span_of
from gemma_ops.words.figures import number, seconds, usd_text


def shown_figures(gate: Gate, value: float | None) -> str:
    """Return a value in the units of the gate: dollars, a share of answers that came in time, a signed difference, or a
    score."""
    if value is None:
        return "–"
    if gate.metric == "usd_per_1k":
        return usd_text(value)
    if gate.test == "at_most":
        return f"{value:.1%}"
    return number(value, "+" if gate.versus else "")


def measured(gate: Gate, verdict: Verdict) -> str:
    """Return the measured value with its bounds; of a gate that was not decided, what is known of its figure."""
    if gate.value is None:
        return _undecided(gate, verdict)
    low, high = sorted_bounds(gate)
    told = f"{shown_figures(gate, gate.value)} [{shown_figures(gate, low)}, {shown_figures(gate, high)}]"
    return f"{told} in time, {gate.metric[-3:]} {_running(gate, verdict)}" if "seconds" in gate.metric else told


def sorted_bounds(gate: Gate) -> tuple[float | None, float | None]:
    """Return the lower and the upper bound. Of dollars, which must stay below, `bound` is the upper one."""
    ends = (gate.bound, gate.upper)
    return (ends[1], ends[0]) if gate.metric == "usd_per_1k" else ends


def required(gate: Gate) -> str:
    """Return what the value must be for the gate to hold."""
    if gate.metric == "usd_per_1k":
        return f"≤ {usd_text(gate.margin)}"
    if gate.test == "at_most":
        share = QUANTILES[gate.metric.rpartition("_")[2]]
        return f"≥ {share:.0%} within {seconds(gate.margin)}"
    if gate.test == "at_least":
        return f"≥ {number(gate.margin)}"
    return f"> {number(gate.threshold, '+')}"


def baseline(gate: Gate, verdict: Verdict) -> str:
    """Return the rival with its own value, where it has one; a dash for gates without a rival."""
    if gate.versus is None:
        return "–"
    if gate.metric.startswith("judge."):
        return f"`{gate.versus}`, from one half"
    value = _value(verdict, gate, gate.versus)
    return f"`{gate.versus}` {'–' if value is None else number(value)}"


def load_of(gate: Gate, verdict: Verdict) -> str:
    """Return the load under which a gated latency was timed; empty for other gates."""
    return load_words(verdict, gate.task, gate.target) if "seconds" in gate.metric else ""


def gated_metrics(verdict: Verdict, task: str) -> list[str]:
    """Return the metrics of a task that gates ask for."""
    return list(dict.fromkeys(gate.metric for gate in verdict.gates_of(task)))


def _undecided(gate: Gate, verdict: Verdict) -> str:
    """Return the figure of a gate that only reports."""
    if gate.metric.startswith("judge."):
        found = _judged(gate, verdict)
    elif gate.test == "at_most":
        return _running(gate, verdict)
    elif gate.versus:
        pair = (gate.target, gate.versus, gate.metric)
        same = [one for one in verdict.differences_of(gate.task) if (one.target, one.versus, one.metric) == pair]
        if not same:
            return _apart(gate, verdict, gate.versus)
        found = same[0].span
    else:
        result = verdict.result(gate.task, gate.target)
        figure = result.metrics.get(gate.metric) if result else None
        found = figure.span if figure else None
    if found is None:
        return "–"
    value, low, high = (shown_figures(gate, end) for end in found)
    return f"{value} [{low}, {high}]"


def _judged(gate: Gate, verdict: Verdict) -> ValueSpan | None:
    """Return what a judge said, with its interval. A win rate counts from one half, as its margin does."""
    sides = f"{gate.target}-{gate.versus}" if gate.versus else gate.target
    known = {name: figure for body in verdict.judged_of(gate.task) for name, figure in figures(body).items()}
    found = known.get(f"{sides}/{gate.metric}")
    if not found or found["value"] is None:
        return None
    origin = 0.5 if gate.metric == WIN_RATE else 0.0
    return span_of(*(found[end] - origin for end in ("value", "low", "high")))


def _apart(gate: Gate, verdict: Verdict, versus: str) -> str:
    """Return a difference that the verdict does not hold: that of the two values, without an interval."""
    own, other = _value(verdict, gate, gate.target), _value(verdict, gate, versus)
    return "–" if own is None or other is None else number(own - other, "+")


def _running(gate: Gate, verdict: Verdict) -> str:
    result = verdict.result(gate.task, gate.target)
    if result is None:
        return "–"
    if gate.metric == "usd_per_1k":
        value = result.cost.usd_per_1k
        return "–" if value is None else usd_text(value)
    return seconds(result.speed.wait(gate.metric))


def _value(verdict: Verdict, gate: Gate, target: str) -> float | None:
    """Return the gate's metric as one of its two targets has it."""
    result = verdict.result(gate.task, target)
    return None if result is None else result.value(gate.metric)
