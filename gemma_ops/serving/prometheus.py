"""Counts of a deployment in Prometheus' text format, labelled with the version that they belong to.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.replicas import Replicas, ReplicaState
from gemma_ops.serving.serving_state import LATENCY_BOUNDS, Label, ModelService, TrafficTally

Row = tuple[str, Any]
"""Labels that follow a metric's name, and its value."""


_OF_REPLICAS: tuple[tuple[str, str, str, Callable[[ReplicaState], int]], ...] = (
    ("replica_requests_total", "counter", "Requests that a replica was given.", lambda one: one.requests),
    ("replica_restarts_total", "counter", "How often a replica died and was started again.", lambda one: one.restarts),
    ("replica_running", "gauge", "Requests that a replica answers now.", lambda one: one.running),
    ("replica_up", "gauge", "Whether a replica answers.", lambda one: int(one.alive)),
)
"""Metrics of each replica: name, kind, help and value."""


def render_metrics(
    deployment: Deployment, *, shadow: Mapping[str, int] | None = None, traces: Mapping[str, int] | None = None
) -> str:
    """Return all counts since the start, of versions that no longer serve too; `shadow` and `traces` by their outcome,
    None where there are none."""
    lines: list[str] = []

    def tell(name: str, kind: str, help_text: str, rows: Iterable[Row]) -> None:
        lines.extend(metric_lines(name, kind, help_text, rows))

    def of_tallies(rows: Callable[[str, TrafficTally], Iterable[Row]]) -> list[Row]:
        return [row for label, tally in deployment.tallies.items() for row in rows(_shown(label), tally)]

    def of_services(value: Callable[[ModelService], int], more: str = "") -> list[Row]:
        found: dict[Label, int] = {}
        for service in deployment.services:
            found[service.facts.label] = found.get(service.facts.label, 0) + value(service)
        return [(f"{{{_shown(label)}{more}}}", count) for label, count in found.items()]

    tell("requests_total", "counter", "Requests by protocol and status.", of_tallies(_requests))
    tell("tokens_total", "counter", "Tokens.", of_tallies(_tokens))
    tell("request_seconds", "histogram", "Seconds until a whole reply.", of_tallies(_latency))
    states: list[Row] = of_services(lambda one: one.slots.running, ',state="running"')
    states += of_services(lambda one: one.slots.waiting, ',state="waiting"')
    tell("queue", "gauge", "Requests now.", states)
    tell("up", "gauge", "Engines that answer.", of_services(lambda one: int(one.model.engine.alive())))
    restarts = of_services(lambda one: one.model.engine.restarts)
    tell("engine_restarts_total", "counter", "Engines that died and were started again.", restarts)
    for name, kind, help_text, value in _OF_REPLICAS:
        rows = _replica_rows(deployment, value)
        if rows:
            tell(name, kind, help_text, rows)
    tell("swaps_total", "counter", "Versions that took over from another.", [("", deployment.swaps)])
    if shadow is not None:
        tell("shadow_total", "counter", "Requests that a challenger was asked too.", _by_outcome(shadow))
    if traces is not None:
        tell("traces_total", "counter", "Traces handed to MLflow, or dropped.", _by_outcome(traces))
    return "\n".join([*lines, ""])


def metric_lines(name: str, kind: str, help_text: str, rows: Iterable[Row]) -> list[str]:
    """Return one metric with its rows."""
    head = [f"# HELP gemma_ops_{name} {help_text}", f"# TYPE gemma_ops_{name} {kind}"]
    return [*head, *(f"gemma_ops_{name}{suffix} {value}" for suffix, value in rows)]


def _shown(label: Label) -> str:
    model, version, form = label
    return f'model="{model}",version="{version}",format="{form}"'


def _replica_rows(deployment: Deployment, value: Callable[[ReplicaState], int]) -> list[Row]:
    """Return a row for each replica of the services that have several."""
    found: Counter[str] = Counter()
    for service in deployment.services:
        engine, shown = service.model.engine, _shown(service.facts.label)
        for number, state in enumerate(engine.states() if isinstance(engine, Replicas) else ()):
            found[f'{{{shown},replica="{number}"}}'] += value(state)
    return list(found.items())


def _requests(shown: str, tally: TrafficTally) -> Iterable[Row]:
    for (protocol, status), count in sorted(tally.requests.items()):
        yield f'{{{shown},protocol="{protocol}",status="{status}"}}', count


def _tokens(shown: str, tally: TrafficTally) -> Iterable[Row]:
    kinds = {
        "prompt": tally.prompt_tokens, "cached": tally.cached_tokens,
        "reply": tally.reply_tokens, "thought": tally.thought_tokens,
    }  # fmt: skip
    for kind, count in kinds.items():
        yield f'{{{shown},kind="{kind}"}}', count


def _latency(shown: str, tally: TrafficTally) -> Iterable[Row]:
    below = 0
    for bound, count in zip([*map(str, LATENCY_BOUNDS), "+Inf"], tally.seconds, strict=True):
        below += count
        yield f'_bucket{{{shown},le="{bound}"}}', below
    yield f"_sum{{{shown}}}", round(tally.seconds_sum, 6)
    yield f"_count{{{shown}}}", below


def _by_outcome(counts: Mapping[str, int]) -> list[Row]:
    return [(f'{{outcome="{outcome}"}}', count) for outcome, count in sorted(counts.items())]
