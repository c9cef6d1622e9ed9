"""A task's sections in the report: scores, paired differences, slices, ends and tokens."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.tasks.conditions import load_words
from gemma_ops.verdicts import Figure, Gate, PairedDifference, TargetResult, TaskFacts, Verdict
from gemma_ops.verdicts.figures import ValueSpan
from gemma_ops.words import svg
from gemma_ops.words.figures import chip, colour, escape, html_table, interval_text, number, p_text, short_name

_ENDS = {"stop": "finished", "length": "cut at the token limit", "blocked": "refused", "error": "failed"}


def score_rows(task: TaskFacts, results: Sequence[TargetResult], gates: Sequence[Gate], confidence: float) -> str:
    """The primary metric drawn for every target, then every figure in a table."""
    primary = task.primary
    marks = sorted({gate.threshold for gate in gates if gate.test == "at_least" and gate.metric == primary})
    rows = "".join(
        _scale_row(chip(item.target), item.metrics[primary].span, item.target, (0.0, 1.0), marks=marks)
        for item in results
    )
    note = f"{task.rows:,} rows"
    if task.cluster_by:
        note += f" in {task.clusters:,} clusters by {task.cluster_by}"
    if task.copies:
        note += f"; {task.copies:,} of them repeat another question and count as one with it"
    note += f"; {confidence:.0%} intervals. With this many rows a true difference of about {task.detectable:.3f} is likely to be seen."
    head = ["target", *(_name(name, primary) for name in task.metrics)]
    body = [[chip(item.target), *(_cell(item.metrics[name]) for name in task.metrics)] for item in results]
    if len(results) < len(task.metrics):  # what there is more of goes down the page
        head = ["figure", *(row[0] for row in body)]
        body = [[_name(name, primary), *(row[at] for row in body)] for at, name in enumerate(task.metrics, 1)]
    return (
        f'<section class="card"><h3>{escape(primary)}</h3><p class="note">{escape(note)}</p>{rows}{_foot((0.0, 1.0), primary)}'
        f"<h4>All figures</h4>{html_table(head, body)}</section>"
    )


def difference_rows(
    task: TaskFacts, found: Sequence[PairedDifference], gates: Sequence[Gate], confidence: float
) -> str:
    """Paired differences drawn around zero, with the thresholds of their gates."""
    if not found:
        return ""
    rows = ""
    groups: dict[str, list[PairedDifference]] = {}
    for item in found:
        quantized = item.versus == "tuned" and item.target in QUANTIZED
        groups.setdefault(
            "What quantization costs, against tuned" if quantized else f"Against {short_name(item.versus)}", []
        ).append(item)
    for title, members in groups.items():
        limits = {(g.target, g.versus): g.threshold for g in gates if g.versus and g.metric == task.primary}
        used = [limits[i.target, i.versus] for i in members if (i.target, i.versus) in limits]
        domain = svg.domain_of([bound for item in members for bound in (item.low, item.high)] + used, around_zero=True)
        rows += f"<h4>{escape(title)}</h4>"
        for item in members:
            marks = [limits[item.target, item.versus]] if (item.target, item.versus) in limits else []
            rows += _scale_row(chip(item.target), item.span, item.target, domain, marks=marks, sign="+")
        rows += _foot(domain, f"difference in {task.primary}", signed=True)
    detail = [
        [
            f"{chip(item.target)} − {escape(short_name(item.versus))}",
            f"{item.wins:,}",
            f"{item.losses:,}",
            f"{item.n - item.wins - item.losses:,}",
            p_text(item.p),
            "–" if item.correlation is None else number(item.correlation),
            escape(item.method),
        ]
        for item in found
    ]
    return (
        f'<section class="card"><h3>Difference in {escape(task.primary)}, row by row</h3>'
        f'<p class="note">The same questions, compared in pairs; {confidence:.0%} intervals. Dashed: a gate\'s threshold.</p>{rows}'
        + html_table(["pair", "better", "worse", "equal", "p (two-sided)", "correlation", "method"], detail)
        + "</section>"
    )


def slices(task: TaskFacts, results: Sequence[TargetResult]) -> str:
    """A forest: the primary metric of every target within every value of every slice."""
    blocks = ""
    for name in results[0].slices if results else ():
        rows = ""
        # A target that may not see a slice has no figure there.
        known = [{figure.bucket: figure for figure in item.slices[name]} for item in results]
        buckets = list(dict.fromkeys(bucket for figures in known for bucket in figures))
        for place, bucket in enumerate(buckets):
            for index, (item, figures) in enumerate(zip(results, known, strict=True)):
                figure = figures.get(bucket)
                if index == 0:
                    opens = " open" if place else ""
                    rows += f'<p class="bucket{opens}"><b>{escape(bucket)}</b> <span class="ci">{figure.n if figure else 0:,} rows</span></p>'
                rows += _scale_row(chip(item.target), figure.span if figure else None, item.target, (0.0, 1.0))
        rows += _foot((0.0, 1.0), task.primary)
        opened = "" if blocks else " open"
        blocks += (
            f"<details{opened}><summary><b>by {escape(name)}</b> ({len(buckets)} values)</summary>{rows}</details>"
        )
    if not blocks:
        return ""
    return (
        f'<section class="card"><h3>Where it is right</h3>'
        f'<p class="note">{escape(task.primary)} within slices.</p>{blocks}</section>'
    )


def speed_rows(results: Sequence[TargetResult], verdict: Verdict) -> str:
    """How answers ended, how fast they were written, and how long they are."""
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
                f'{bar}<span class="ci">{escape(told)}</span>',
                "–" if rate is None else f"{rate:,.0f}",
                f'<span class="load">{escape(load_words(verdict, item.task, item.target))}</span>',
                *(
                    "–" if tokens is None else f"{tokens:,.0f}"
                    for tokens in (fast.mean_prompt_tokens, fast.mean_new_tokens, fast.mean_thought_tokens)
                ),
            ]
        )
    head = ["target", "how answers ended", "new tokens/s", "timed with", "prompt tokens", "new tokens", "thoughts"]
    return (
        '<section class="card"><h3>Ends and tokens</h3>'
        '<p class="note">Tokens are means per answer. Tokens per second are the machine\'s over all prompts it answers at once; of a service those of one reply.</p>'
        f"{html_table(head, rows)}</section>"
    )


def _scale_row(
    name: str,
    found: ValueSpan | None,
    target: str,
    domain: svg.Domain,
    *,
    marks: Sequence[float] = (),
    sign: str = "",
) -> str:
    if found is None:
        return f'<div class="row"><div class="name">{name}</div><div class="note">no row could be scored</div><div></div></div>'
    value, low, high = found
    drawing = svg.whisker(
        value, low, high, domain, colour(target), marks=marks,
        label=f"{target}: {value:.3f}, interval {low:.3f} to {high:.3f}",
    )  # fmt: skip
    return (
        f'<div class="row"><div class="name">{name}</div>{drawing}'
        f'<div class="figure"><b>{number(value, sign)}</b>&ensp;{interval_text(low, high, sign)}</div></div>'
    )


def _foot(domain: svg.Domain, title: str, *, signed: bool = False) -> str:
    return f'<div class="row foot"><div></div>{svg.axis(domain, title=title, signed=signed)}<div class="figure"></div></div>'


def _name(name: str, primary: str) -> str:
    """`metric.part` is set with the part indented below its metric."""
    head, dot, part = name.partition(".")
    shown = f'<span class="sub">{escape(head)}.</span>{escape(part)}' if dot else escape(name)
    return f"<b>{shown}</b>" if name == primary else shown


def _cell(figure: Figure) -> str:
    if figure.span is None:
        return '<span class="ci">unscored</span>'
    unscored = f'<span class="ci">{figure.unscored:,} unscored</span>' if figure.unscored else ""
    return f"{number(figure.span[0])}{interval_text(*figure.span[1:])}{unscored}"
