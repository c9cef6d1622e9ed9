"""The routing table in the report: slice by slice, what to keep on the local model and what to send to a service."""

from __future__ import annotations

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.verdicts import Routing, RoutingLine, RoutingTable
from gemma_ops.words import svg
from gemma_ops.words.figures import colour
from gemma_ops.words.markup import trusted

PILLS = {"keep": "keep here", "send": "send", "undecided": "undecided"}


def routing_section(task: str, routing: Routing | None) -> Markup | str:
    """Return one card per pair of a local target and a service on this task."""
    if not routing:
        return ""
    return trusted("").join(_card(table, routing) for table in routing.of_task(task))


def _card(table: RoutingTable, routing: Routing) -> Markup:
    margin = routing.margin
    known = [bound for line in table.lines if (found := line.span) for bound in found[1:]]
    domain = svg.domain_of([*known, -margin], around_zero=True)
    private = table.lines[0].local_only
    return REPORT.fill(
        "routing.html", "card", local=table.local.name, remote=table.remote.name, metric=table.metric,
        margin=f"{margin:g}", confidence=f"{routing.confidence:.0%}", private=f"{private:,}" if private else "",
        rows=[_row(line, domain, margin, table.local.name) for line in table.lines],
        axis=svg.axis(domain, title=f"difference in {table.metric}", signed=True),
    )  # fmt: skip


def _row(line: RoutingLine, domain: svg.Domain, margin: float, local: str) -> Markup:
    name = "all questions" if line.slice is None else f"{line.slice}: {line.value}"
    found = line.span
    if found is None:
        return REPORT.fill(
            "routing.html", "empty", name=name, count=f"{line.local_only:,}", decision=line.decision,
            pill=PILLS[line.decision], why="must stay here" if line.reason == "privacy" else "no row scored for both",
        )  # fmt: skip
    drawing = svg.whisker(
        *found, domain, colour(local), marks=[-margin],
        label=f"{name}: {line.words}",
    )  # fmt: skip
    return REPORT.fill(
        "routing.html", "row", name=name, count=f"{line.n:,}", opens=line.slice is None, decision=line.decision,
        pill=PILLS[line.decision], found=found, drawing=drawing, needed=f"{line.n_needed:,}" if line.n_needed else "",
    )  # fmt: skip
