"""`report.html`: one self-contained page, for a person who must decide whether a model may replace another.

It needs no network and no script, follows the reader's light or dark setting, and fits a phone. The page is put
together here; the sections of a task, confusions and samples have their own files.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemma_ops.evaluation import (
    gate_figures,
    report_cost,
    report_header,
    report_labels,
    report_routing,
    report_samples,
    report_task,
)
from gemma_ops.evaluation.verdict_summary import verdict_headline
from gemma_ops.judging import report_judge
from gemma_ops.tasks.grades import Graded
from gemma_ops.verdicts import Gate, Verdict
from gemma_ops.words import palette, svg
from gemma_ops.words.figures import chip, colour, escape, html_table, p_text, seconds, stylesheet

_WORDS = {
    "pass": "Pass",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
    "ungated": "Ungated",
}
_PILLS = {"pass": "✓ holds", "fail": "✕ failed", "inconclusive": "? undecided", "report_only": "report only"}


def report_page(verdict: Verdict, graded: Sequence[Graded]) -> str:
    """The whole page. `graded` supplies the samples; every figure comes from the verdict."""
    tasks = "".join(_task(verdict, name, [item for item in graded if item.task.name == name]) for name in verdict.tasks)
    names = report_header.target_names(verdict)
    css = stylesheet() + palette.style(names)
    title = report_header.title(verdict, _WORDS[verdict.verdict])
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{css}</style></head>\n"
        f"<body><main>\n{palette.marks(names)}\n{report_header.header(verdict)}\n{_verdict(verdict)}\n{_contents(verdict)}\n{tasks}\n{_provenance(verdict)}\n"
        f"<footer>{_method(verdict)}</footer>\n</main></body></html>\n"
    )


def _verdict(verdict: Verdict) -> str:
    kind = verdict.verdict
    sentence = verdict_headline(verdict).partition(": ")[2]
    gates = "".join(_gate(gate, verdict) for gate in verdict.gates)
    return (
        f'<section class="card verdict {kind}"><p class="word">{_WORDS[kind]}</p>'
        f'<p class="why">{escape(sentence[:1].upper() + sentence[1:])}.</p>{gates}</section>'
    )


def _gate(gate: Gate, verdict: Verdict) -> str:
    drawn = "" if gate.outcome == "report_only" else " (dashed)"
    figures = f"measured {gate_figures.measured(gate, verdict)}, must be {gate_figures.required(gate)}{drawn}"
    if load := gate_figures.load_of(gate, verdict):
        figures += f" · timed with {load}"
    if gate.value is None or gate.p is None or gate.p_holm is None or gate.n is None:  # reported, not decided
        return _told(gate, f" · {figures}", "")
    difference = gate.versus is not None
    known = [value for value in (gate.bound, gate.value, gate.upper) if value is not None]
    low, high = min(known), max(known)
    domain = svg.domain_of([low, high, gate.threshold], around_zero=difference)
    if gate.metric == "usd_per_1k":
        domain = (0.0, 1.15 * max(high, gate.threshold))
    drawing = svg.whisker(
        gate.value, low, high, domain, colour(gate.target), marks=[gate.threshold],
        label=f"{gate.value:.3f}, bounds {low:.3f} and {high:.3f}, threshold {gate.threshold:g}",
    ) + svg.axis(domain, title=_axis(gate), signed=difference, parts=2)  # fmt: skip
    facts = f"{figures} · p {p_text(gate.p)}, Holm-adjusted {p_text(gate.p_holm)} · {gate.n:,} rows" + (
        f" in {gate.clusters:,} clusters" if gate.clusters is not None and gate.clusters < gate.n else ""
    )
    return _told(gate, f" · {facts}", drawing)


def _axis(gate: Gate) -> str:
    """What a gate's drawing measures, with its unit."""
    if gate.metric == "usd_per_1k":
        return "dollars per 1,000 answers"
    if gate.test == "at_most":
        return f"share of answers within {seconds(gate.margin)}"
    return f"difference in {gate.metric}" if gate.versus else str(gate.metric)


def _told(gate: Gate, facts: str, drawing: str) -> str:
    return (
        f'<div class="gate"><div><span class="pill {gate.outcome}">{_PILLS[gate.outcome]}</span></div>'
        f'<div><p>{escape(gate.words)}</p><p class="small">{escape(gate.task + facts)}</p></div>'
        f"<div>{drawing}</div></div>"
    )


def _contents(verdict: Verdict) -> str:
    if len(verdict.tasks) < 2:
        return ""
    links = "".join(f'<a href="#task-{escape(name)}">{escape(name)}</a>' for name in verdict.tasks)
    return f'<nav>{links}<a href="#provenance">provenance</a></nav>'


def _task(verdict: Verdict, name: str, graded: Sequence[Graded]) -> str:
    task = verdict.tasks[name]
    results, differences, gates = verdict.results_of(name), verdict.differences_of(name), verdict.gates_of(name)
    confidence = verdict.confidence
    rubric = graded[0].task.rubric
    parts = [
        f'<h2 id="task-{escape(name)}">{escape(name)}</h2>',
        f'<p class="lead">{escape(task.description)}</p>' if task.description else "",
        f"<details><summary>What a good answer is</summary><p class='question'>{escape(rubric)}</p></details>"
        if rubric
        else "",
        report_task.score_rows(task, results, gates, confidence),
        report_task.difference_rows(task, differences, gates, confidence),
        report_cost.cost_section(task, results, verdict),
        report_routing.routing_section(name, verdict.routing),
        *(report_judge.judge_section(judged) for judged in verdict.judged_of(name)),
        report_task.slices(task, results),
        report_labels.labels_section(results),
        report_samples.samples_section(task, graded),
        report_task.speed_rows(results, verdict),
    ]
    return "\n".join(part for part in parts if part)


def _provenance(verdict: Verdict) -> str:
    models = []
    for name, facts in verdict.targets.items():
        model = " ".join(part for part in (facts.id, facts.revision) if part)
        size = f"{facts.bytes / 1e6:,.1f} MB" if facts.bytes else ""
        step = f"step {facts.step}" if facts.step else ""
        versions = sorted({one for item in verdict.results if item.target == name for one in item.answered})
        answered = f"answered by {', '.join(versions)}" if versions else ""
        learned = f"learned from {facts.learned} rows" if facts.learned not in (None, "any") else ""
        models.append(
            [
                chip(name),
                escape(" · ".join(part for part in (model, step, size, facts.place, learned, answered) if part) or "–"),
                f'<span class="mono">{escape(facts.identity)}</span>',
            ]
        )
    tasks = [
        [escape(name), f"version {task.version} · {task.rows:,} of {task.rows_in_file:,} rows · at most {task.max_new_tokens} new tokens · privacy: "
         + escape(", ".join(f"{kind} {count:,}" for kind, count in task.privacy.items())), f'<span class="mono">{escape(task.digest)}</span>']
        for name, task in verdict.tasks.items()
    ]  # fmt: skip
    if verdict.data and verdict.data.digest:
        tasks.append(
            ["training data", "the set the tuned model saw", f'<span class="mono">{escape(verdict.data.digest)}</span>']
        )
    release = verdict.release
    made = [
        *([["released", escape(f"answers to {release.to}: {release.reason}")]] if release else []),
        ["confidence", f"{verdict.confidence:.0%}"],
        ["seed", str(verdict.seed)],
        ["made by", escape(verdict.made_by or report_header.UNKNOWN)],
    ]
    return (
        '<h2 id="provenance">Provenance</h2><section class="card">'
        + (html_table(["target", "model", "digest"], models, kind="left") if models else "")
        + html_table(["task", "what", "digest"], tasks, kind="left")
        + html_table(["setting", "value"], made, kind="left")
        + "</section>"
    )


def _looked(verdict: Verdict) -> str:
    look = verdict.look
    if not look:
        return ""
    return (
        f" This is look {look.number}, decided at a level of {look.level:.3g}; the next one will have {look.later:.3g}."
    )


def _method(verdict: Verdict) -> str:
    return (
        f"Intervals hold {verdict.confidence:.0%} of the time: for yes/no scores Wilson's for one target and Tango's for paired differences; "
        "betting bounds, which hold for every distribution, where scores are no yes/no or rows come in clusters. F1 has a "
        "bootstrap interval, which decides nothing; gates on it have betting bounds of all labels together. Gates are one-sided tests under Holm's method, so the chance that "
        f"any gate passes wrongly is at most {1 - verdict.confidence:.0%}, over all looks at the same models, and so is the chance that any "
        f"fails wrongly.{_looked(verdict)} A refused or failed answer scores 0 and is counted; a row that lacks what a metric needs, or that a "
        "target may not see, leaves its mean."
    )
