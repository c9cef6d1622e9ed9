"""The figures of one gate as a reader compares them: measured value, bounds, what it must be, and its baseline."""

from __future__ import annotations

from typing import Any

from gemma_ops.evaluation.conditions import load_words
from gemma_ops.evaluation.gates import QUANTILES
from gemma_ops.evaluation.judge.judged import WIN_RATE, figures
from gemma_ops.evaluation.markup import number, seconds, usd

Facts = dict[str, Any]


def shown(gate: Facts, value: float | None) -> str:
    """A value in the units of the gate: dollars, a share of answers that came in time, a signed difference, or a score."""
    if value is None:
        return "–"
    if gate["metric"] == "usd_per_1k":
        return usd(value)
    if gate["test"] == "at_most":
        return f"{value:.1%}"
    return number(value, "+" if gate["versus"] else "")


def measured(gate: Facts, verdict: Facts) -> str:
    """The measured value with its bounds; of a gate that was not decided, what is known of its figure."""
    if gate["value"] is None:
        return _undecided(gate, verdict)
    low, high = sorted_bounds(gate)
    told = f"{shown(gate, gate['value'])} [{shown(gate, low)}, {shown(gate, high)}]"
    return f"{told} in time, {gate['metric'][-3:]} {_running(gate, verdict)}" if "seconds" in gate["metric"] else told


def sorted_bounds(gate: Facts) -> tuple[float | None, float | None]:
    """The lower and the upper bound. Of dollars, which must stay below, `bound` is the upper one."""
    ends = (gate["bound"], gate["upper"])
    return (ends[1], ends[0]) if gate["metric"] == "usd_per_1k" else ends


def required(gate: Facts) -> str:
    """What the value must be for the gate to hold."""
    if gate["metric"] == "usd_per_1k":
        return f"≤ {usd(gate['margin'])}"
    if gate["test"] == "at_most":
        share = QUANTILES[gate["metric"].rpartition("_")[2]]
        return f"≥ {share:.0%} within {seconds(gate['margin'])}"
    if gate["test"] == "at_least":
        return f"≥ {number(gate['margin'])}"
    return f"> {number(gate['threshold'], '+')}"


def baseline(gate: Facts, verdict: Facts) -> str:
    """The rival with its own value, where it has one; a dash for gates without a rival."""
    if gate["versus"] is None:
        return "–"
    if gate["metric"].startswith("judge."):
        return f"`{gate['versus']}`, from one half"
    value = _figure(verdict, gate["task"], gate["versus"], gate["metric"])["value"]
    return f"`{gate['versus']}` {'–' if value is None else number(value)}"


def load_of(gate: Facts, verdict: Facts) -> str:
    """The load under which a gated latency was timed; empty for other gates."""
    return load_words(verdict, gate["task"], gate["target"]) if "seconds" in gate["metric"] else ""


def gated_metrics(verdict: Facts, task: str) -> list[str]:
    """Metrics of a task that gates ask for."""
    return list(dict.fromkeys(gate["metric"] for gate in verdict["gates"] if gate["task"] == task))


def _undecided(gate: Facts, verdict: Facts) -> str:
    """The figure of a gate that only reports."""
    found = None
    if gate["metric"].startswith("judge."):
        sides = f"{gate['target']}-{gate['versus']}" if gate["versus"] else gate["target"]
        known = {
            name: figure
            for body in verdict["judged"]
            if body["task"] == gate["task"]
            for name, figure in figures(body).items()
        }
        found = known.get(f"{sides}/{gate['metric']}")
    elif gate["test"] == "at_most":
        return _running(gate, verdict)
    elif gate["versus"]:
        found = next((one for one in verdict["differences"] if _same(one, gate)), None)
        if found is None:
            return _apart(gate, verdict)
    else:
        found = _figure(verdict, gate["task"], gate["target"], gate["metric"])
    if not found or found["value"] is None:
        return "–"
    # A win rate counts from one half, as its margin does.
    ends = [found[end] - (0.5 if gate["metric"] == WIN_RATE else 0.0) for end in ("value", "low", "high")]
    value, low, high = (shown(gate, end) for end in ends)
    return f"{value} [{low}, {high}]"


def _apart(gate: Facts, verdict: Facts) -> str:
    """A difference that the verdict does not hold: that of the two values, without an interval."""
    own, other = (_figure(verdict, gate["task"], gate[who], gate["metric"])["value"] for who in ("target", "versus"))
    return "–" if own is None or other is None else number(own - other, "+")


def _running(gate: Facts, verdict: Facts) -> str:
    result = _result(verdict, gate["task"], gate["target"])
    if result is None:
        return "–"
    if gate["metric"] == "usd_per_1k":
        value = result["cost"]["usd_per_1k"]
        return "–" if value is None else usd(value)
    return seconds(result["speed"].get(gate["metric"]))


def _same(one: Facts, gate: Facts) -> bool:
    return all(one[key] == gate[key] for key in ("task", "target", "versus", "metric"))


def _figure(verdict: Facts, task: str, target: str, metric: str) -> Facts:
    result = _result(verdict, task, target)
    return {"value": None} if result is None else result["metrics"].get(metric, {"value": None})


def _result(verdict: Facts, task: str, target: str) -> Facts | None:
    pair = (task, target)
    return next((one for one in verdict["results"] if (one["task"], one["target"]) == pair), None)
