"""A task's sections in the report: scores, paired differences, slices, ends and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.tasks.conditions import load_words
from gemma_ops.verdicts import Figure, Gate, PairedDifference, TargetResult, TaskFacts, Verdict
from gemma_ops.verdicts.measurements import ValueSpan
from gemma_ops.words import svg
from gemma_ops.words.figures import chip, colour, interval_text, number, p_cell, short_name, small
from gemma_ops.words.markup import escape

_ENDS = {"stop": "finished", "length": "cut at the token limit", "blocked": "refused", "error": "failed"}


@dataclass(frozen=True)
class _Row:
    """A target's interval and its drawing; None where nothing could be scored."""

    target: str
    found: ValueSpan | None
    drawing: Markup | None


def score_rows(task: TaskFacts, results: Sequence[TargetResult], gates: Sequence[Gate], confidence: float) -> Markup:
    """Return the primary metric drawn for every target, then every figure in a table."""
    primary = task.primary
    marks = sorted({gate.threshold for gate in gates if gate.test == "at_least" and gate.metric == primary})
    note = f"{task.rows:,} rows"
    if task.cluster_by:
        note += f" in {task.clusters:,} clusters by {task.cluster_by}"
    if task.copies:
        note += f"; {task.copies:,} of them repeat another question and count as one with it"
    note += (
        f"; {confidence:.0%} intervals. With this many rows a true difference of about {task.detectable:.3f} is likely "
        f"to be seen."
    )
    head = ["target", *(_name(name, primary) for name in task.metrics)]
    body = [[chip(item.target), *(_cell(item.metrics[name]) for name in task.metrics)] for item in results]
    if len(results) < len(task.metrics):  # what there is more of goes down the page
        head = ["figure", *(row[0] for row in body)]
        body = [[_name(name, primary), *(row[at] for row in body)] for at, name in enumerate(task.metrics, 1)]
    return REPORT.fill(
        "task.html", "scores", primary=primary, note=note, head=head, body=body,
        rows=[_scaled(item.target, item.metrics[primary].span, (0.0, 1.0), marks=marks) for item in results],
        axis=svg.axis((0.0, 1.0), title=primary),
    )  # fmt: skip


def difference_rows(
    task: TaskFacts, found: Sequence[PairedDifference], gates: Sequence[Gate], confidence: float
) -> str:
    """Return paired differences drawn around zero, with the thresholds of their gates."""
    if not found:
        return ""
    groups: dict[str, list[PairedDifference]] = {}
    for item in found:
        quantized = item.versus == "tuned" and item.target in QUANTIZED
        groups.setdefault(
            "What quantization costs, against tuned" if quantized else f"Against {short_name(item.versus)}", []
        ).append(item)
    limits = {(g.target, g.versus): g.threshold for g in gates if g.versus and g.metric == task.primary}
    drawn = []
    for title, members in groups.items():
        used = [limits[i.target, i.versus] for i in members if (i.target, i.versus) in limits]
        domain = svg.domain_of([bound for item in members for bound in (item.low, item.high)] + used, around_zero=True)
        rows = []
        for item in members:
            marks = [limits[item.target, item.versus]] if (item.target, item.versus) in limits else []
            rows.append(_scaled(item.target, item.span, domain, marks=marks))
        drawn.append((title, rows, svg.axis(domain, title=f"difference in {task.primary}", signed=True)))
    detail = [
        [
            REPORT.fill("task.html", "pair", target=item.target, versus=item.versus),
            f"{item.wins:,}",
            f"{item.losses:,}",
            f"{item.n - item.wins - item.losses:,}",
            p_cell(item.p),
            "–" if item.correlation is None else number(item.correlation),
            item.method,
        ]
        for item in found
    ]
    return REPORT.fill(
        "task.html", "differences", primary=task.primary, confidence=f"{confidence:.0%}", groups=drawn, detail=detail
    )


def slices(task: TaskFacts, results: Sequence[TargetResult]) -> str:
    """Return a forest: the primary metric of every target within every value of every slice."""
    drawn = []
    for name in results[0].slices if results else ():
        # A target that may not see a slice has no figure there.
        known = [{figure.bucket: figure for figure in item.slices[name]} for item in results]
        buckets = []
        for bucket in dict.fromkeys(bucket for figures in known for bucket in figures):
            first = known[0].get(bucket)
            rows = []
            for item, figures in zip(results, known, strict=True):
                figure = figures.get(bucket)
                rows.append(_scaled(item.target, figure.span if figure else None, (0.0, 1.0)))
            buckets.append((bucket, f"{first.n if first else 0:,}", rows))
        drawn.append((name, buckets))
    axis = svg.axis((0.0, 1.0), title=task.primary)
    return REPORT.fill("task.html", "slices", primary=task.primary, slices=drawn, axis=axis) if drawn else ""


def speed_rows(results: Sequence[TargetResult], verdict: Verdict) -> Markup:
    """Return how answers ended, how fast they were written, and how long they are."""
    rows = []
    for item in results:
        fast, ends = item.speed, item.ends
        bar = svg.svg_bar(
            [(ends[end] / item.rows, f"e-{end}", f"{ends[end]} {_ENDS[end]}") for end in _ENDS if ends.get(end)]
        )
        told = ", ".join(f"{ends[end]:,} {_ENDS[end]}" for end in _ENDS if ends.get(end))
        if item.hidden:
            told += f", {item.hidden:,} not shown to it"
        rate = fast.new_tokens_per_second
        rows.append(
            [
                chip(item.target),
                bar + small("ci", told),
                "–" if rate is None else f"{rate:,.0f}",
                small("load", load_words(verdict, item.task, item.target)),
                *(
                    "–" if tokens is None else f"{tokens:,.0f}"
                    for tokens in (fast.mean_prompt_tokens, fast.mean_new_tokens, fast.mean_thought_tokens)
                ),
            ]
        )
    return REPORT.fill("task.html", "speed", rows=rows)


def _scaled(target: str, found: ValueSpan | None, domain: svg.Domain, *, marks: Sequence[float] = ()) -> _Row:
    if found is None:
        return _Row(target, None, None)
    value, low, high = found
    drawing = svg.whisker(
        value, low, high, domain, colour(target), marks=marks,
        label=f"{target}: {value:.3f}, interval {low:.3f} to {high:.3f}",
    )  # fmt: skip
    return _Row(target, found, drawing)


def _name(name: str, primary: str) -> Markup:
    return REPORT.fill("task.html", "figure_name", name=name, primary=primary)


def _cell(figure: Figure) -> Markup:
    if figure.span is None:
        return small("ci", "unscored")
    unscored = small("ci", f"{figure.unscored:,} unscored") if figure.unscored else ""
    return escape(number(figure.span[0])) + interval_text(*figure.span[1:]) + unscored
