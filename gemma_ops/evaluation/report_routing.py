"""The routing table in the report: slice by slice, what to keep on the local model and what to send to a service."""

from __future__ import annotations

from gemma_ops.verdicts import Routing, RoutingLine, RoutingTable
from gemma_ops.words import svg
from gemma_ops.words.figures import chip, colour, escape, interval_text, number

PILLS = {"keep": "keep here", "send": "send", "undecided": "undecided"}


def routing_section(task: str, routing: Routing | None) -> str:
    """One card per pair of a local target and a service on this task."""
    if not routing:
        return ""
    return "".join(_card(table, routing) for table in routing.of_task(task))


def _card(table: RoutingTable, routing: Routing) -> str:
    local, remote = table.local.name, table.remote.name
    margin = routing.margin
    known = [bound for line in table.lines if (found := line.span) for bound in found[1:]]
    domain = svg.domain_of([*known, -margin], around_zero=True)
    rows = "".join(_row(line, domain, margin, local) for line in table.lines)
    title = f"difference in {table.metric}"
    private = table.lines[0].local_only
    kept = f" The {private:,} rows that may not leave the machine are kept in any case." if private else ""
    return (
        f'<section class="card"><h3>Keep or send</h3><p class="note">{chip(local)} against {chip(remote)}: '
        f"difference in {escape(table.metric)}, row by row. Kept where it is shown not to be worse by {margin:g} or more (dashed), "
        f"sent where it is shown to be worse by more than that; {routing.confidence:.0%} for the table as a whole.{kept}</p>"
        f'{rows}<div class="row route foot"><div></div><div></div>{svg.axis(domain, title=title, signed=True)}<div class="figure"></div></div></section>'
    )


def _row(line: RoutingLine, domain: svg.Domain, margin: float, local: str) -> str:
    name = "all questions" if line.slice is None else f"{line.slice}: {line.value}"
    pill = f'<span class="pill route-{line.decision}">{PILLS[line.decision]}</span>'
    found = line.span
    if found is None:
        why = "must stay here" if line.reason == "privacy" else "no row scored for both"
        return (
            f'<div class="row route"><div class="name">{escape(name)}<small>{line.local_only:,} rows</small></div><div>{pill}</div>'
            f'<div class="note">{why}</div><div></div></div>'
        )
    drawing = svg.whisker(
        *found, domain, colour(local), marks=[-margin],
        label=f"{name}: {line.words}",
    )  # fmt: skip
    needed = f"<small>≈{line.n_needed:,} would settle it</small>" if line.n_needed else ""
    return (
        f'<div class="row route{" open" if line.slice is None else ""}"><div class="name">{escape(name)}<small>{line.n:,} rows</small>{needed}</div>'
        f'<div>{pill}</div>{drawing}<div class="figure"><b>{number(found[0], "+")}</b>&ensp;{interval_text(*found[1:], "+")}</div></div>'
    )
