"""The routing table, one per pair of targets: which questions stay on a local model and which are better sent to a
service.

Every slice of a task is decided by itself, and so is the task as a whole. `keep`: it is shown that the local model is
not worse by the margin or more. `send`: it is shown that it is. `undecided`: neither is, and the rows that would settle
it are reported. The two are one-sided tests of the same paired difference against minus the margin; the smaller p-value
of each line goes into Holm's method over the table, so a table as a whole is right with the confidence that was asked
for. Rows that must stay here are kept whatever the figures say, and a line of only such rows is kept for that reason.

`routing.json` is a `gemma_ops.verdicts.Routing`, whose fields say what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from gemma_ops.evaluation.answer_cost import Facts, answer_place
from gemma_ops.evaluation.target_results import Book, bucket_order, played, rounded
from gemma_ops.gates import gate_decision
from gemma_ops.gates.gate_decision import GateEvidence
from gemma_ops.privacy.classes import HERE
from gemma_ops.stats import paired
from gemma_ops.stats.intervals import Sample
from gemma_ops.verdicts import Routing, RoutingLine, RoutingTable
from gemma_ops.verdicts.routing_record import ROUTING_SCHEMA, RoutedSlice, RoutedTarget, RoutingDecision

KINDS: tuple[RoutingDecision, ...] = get_args(RoutingDecision)


@dataclass(frozen=True)
class SliceLine:
    """What is known of one line before it is decided. Lists hold one entry per paired row."""

    slice: str | None
    value: str | None
    first: list[float]
    second: list[float]
    clusters: list[str] | None
    local_only: int
    others: int
    """Number of rows that may be sent."""

    @property
    def sample(self) -> Sample:
        return Sample.of([a - b for a, b in zip(self.first, self.second, strict=True)], self.clusters)


def build_routing(book: Book, facts: Facts) -> Routing | None:
    """Build the whole document; None when no task was answered both here and elsewhere."""
    tables: list[RoutingTable] = []
    for task in dict.fromkeys(task for task, _ in book.pages):
        names = book.targets(task)
        here = [name for name in names if answer_place(facts, name) == HERE]
        away = [name for name in names if name not in here]
        # A base model is what one starts from; it is a candidate where there is no other.
        candidates = [name for name in here if name != "base"] or here
        tables += [_table(book, facts, task, local, remote) for local in candidates for remote in away]
    if not tables:
        return None
    settings = book.settings
    return Routing(
        schema=ROUTING_SCHEMA, confidence=settings.confidence, margin=settings.routing_margin, tables=tuple(tables)
    )


def _table(book: Book, facts: Facts, task: str, local: str, remote: str) -> RoutingTable:
    known = book.pages[task, local].task

    def target(name: str) -> RoutedTarget:
        identity = facts.get("targets", {}).get(name, {}).get("identity")
        return RoutedTarget(name=name, identity=identity, place=answer_place(facts, name))

    return RoutingTable(
        task=task,
        metric=known.file.primary,
        digest=known.digest,
        local=target(local),
        remote=target(remote),
        slices={spec.name: RoutedSlice(field=spec.field, buckets=spec.buckets) for spec in known.file.slices},
        local_only="keep",
        lines=tuple(decide_lines(_lines(book, task, local, remote), book, local, remote)),
    )


def _lines(book: Book, task: str, local: str, remote: str) -> list[SliceLine]:
    page, rival = book.pages[task, local], book.pages[task, remote]
    known = page.task
    first, second = page.column(known.file.primary), rival.column(known.file.primary)

    def line(name: str | None, value: str | None, members: Sequence[int]) -> SliceLine:
        pairs = [
            (a, b, index) for index in members if (a := first[index]) is not None and (b := second[index]) is not None
        ]
        clusters = [str(known.rows[index].cluster) for *_, index in pairs] if known.clustered else None
        private = sum(known.rows[index].privacy == "local_only" for index in members)
        return SliceLine(
            name, value, [a for a, *_ in pairs], [b for _, b, _ in pairs], clusters, private, len(members) - private
        )

    every = played(known.rows)
    found = [line(None, None, every)]
    for spec in known.file.slices:
        buckets: dict[str, list[int]] = {}
        for index in every:
            buckets.setdefault(known.rows[index].slices[spec.name], []).append(index)
        order = sorted(buckets, key=bucket_order) if spec.buckets else sorted(buckets)
        found += [line(spec.name, value, buckets[value]) for value in order]
    return found


def decide_lines(lines: Sequence[SliceLine], book: Book, local: str, remote: str) -> list[RoutingLine]:
    """Decide all lines of a table together; see the top of this file for what comes out."""
    settings = book.settings
    alpha, margin = 1 - settings.confidence, settings.routing_margin
    open_lines = [line for line in lines if line.first and line.others]
    tests = [paired.difference_tests(line.sample, -margin) for line in open_lines]
    adjusted, levels = gate_decision.holm([min(pair) for pair in tests], alpha)
    decided = {
        id(line): (pair, p_holm, level)
        for line, pair, p_holm, level in zip(open_lines, tests, adjusted, levels, strict=True)
    }
    body = []
    for line in lines:
        if id(line) not in decided:
            body.append(_without_pairs(line, local))
            continue
        (keeping, sending), p_holm, level = decided[id(line)]
        decision: RoutingDecision = "undecided" if p_holm > alpha else "keep" if keeping < sending else "send"
        sample = line.sample
        found = paired.compare_paired(line.first, line.second, line.clusters, settings.confidence)
        needed = _needed(sample, margin, level) if decision == "undecided" else None
        figures = {
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "p": min(keeping, sending),
            "p_holm": p_holm,
        }
        body.append(
            RoutingLine(
                slice=line.slice,
                value=line.value,
                decision=decision,
                reason="open" if decision == "undecided" else "shown",
                n=sample.n,
                clusters=sample.groups,
                local_only=line.local_only,
                **rounded(figures),
                n_needed=needed,
                words=_words(decision, found.value, margin, needed, local, remote),
            )
        )
    return body


def _without_pairs(line: SliceLine, local: str) -> RoutingLine:
    private = line.local_only > 0 and line.others == 0
    words = f"keep on {local}: all its rows must stay here" if private else "undecided: no row was scored for both"
    return RoutingLine(
        slice=line.slice,
        value=line.value,
        decision="keep" if private else "undecided",
        reason="privacy" if private else "open",
        n=0,
        clusters=0,
        local_only=line.local_only,
        difference=None,
        low=None,
        high=None,
        p=None,
        p_holm=None,
        n_needed=None,
        words=words,
    )


def _needed(sample: Sample, margin: float, level: float) -> int | None:
    """Return the rows that would settle a line whichever way it leans."""
    if sample.mean > -margin:
        return GateEvidence(sample, True, sample.mean).rows_needed(-margin, level)
    mirrored = Sample(-sample.values, -sample.sums, sample.sizes, sample.clustered)
    return GateEvidence(mirrored, True, mirrored.mean).rows_needed(margin, level)


def _words(decision: str, value: float, margin: float, needed: int | None, local: str, remote: str) -> str:
    measured = f"measured {value:+.3f}".replace("-", "−")
    if decision == "keep":
        return f"keep on {local}: not worse than {remote} by {margin:g} or more ({measured})"
    if decision == "send":
        return f"send to {remote}: {local} is worse by more than {margin:g} ({measured})"
    settle = f"about {math.ceil(needed):,} rows would settle it" if needed else "no number of rows would settle it"
    return f"undecided ({measured}): {settle}"
