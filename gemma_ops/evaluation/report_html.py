"""The page `report.html`: self-contained, for a person who must decide whether a model may replace another.

It needs no network and no script, follows the reader's light or dark setting, and fits a phone. The page is put
together here; the sections of a task, confusions and samples have their own files.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from gemma_ops.evaluation import (
    gate_figures,
    report_cost,
    report_files,
    report_header,
    report_labels,
    report_routing,
    report_samples,
    report_task,
)
from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.evaluation.verdict_summary import verdict_headline
from gemma_ops.judging import report_judge
from gemma_ops.tasks.grades import Graded
from gemma_ops.verdicts import Gate, Verdict
from gemma_ops.words import palette, svg
from gemma_ops.words.figures import chip, colour, p_text, seconds, small
from gemma_ops.words.palette import page_style

_WORDS = {
    "pass": "Pass",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
    "ungated": "Ungated",
}
_PILLS = {"pass": "✓ holds", "fail": "✕ failed", "inconclusive": "? undecided", "report_only": "report only"}


def report_page(verdict: Verdict, graded: Sequence[Graded]) -> str:
    """Return the whole page. `graded` supplies the samples; every figure comes from the verdict."""
    tasks = [_task(verdict, name, [item for item in graded if item.task.name == name]) for name in verdict.tasks]
    names = report_header.target_names(verdict)
    return REPORT.page(
        "report.html", "report", title=report_header.title(verdict, _WORDS[verdict.verdict]), style=page_style(names),
        marks=palette.marks(names), header=report_header.header(verdict), outcome=_verdict(verdict), tasks=tasks,
        names=list(verdict.tasks), files=report_files.files_section(verdict), provenance=_provenance(verdict),
        method=_method(verdict),
    )  # fmt: skip


def _verdict(verdict: Verdict) -> Markup:
    kind = verdict.verdict
    sentence = verdict_headline(verdict).partition(": ")[2]
    return REPORT.fill(
        "report.html", "verdict", kind=kind, word=_WORDS[kind], why=f"{sentence[:1].upper() + sentence[1:]}.",
        gates=[_gate(gate, verdict) for gate in verdict.gates],
    )  # fmt: skip


def _gate(gate: Gate, verdict: Verdict) -> Markup:
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
    """Return what a gate's drawing measures, with its unit."""
    if gate.metric == "usd_per_1k":
        return "dollars per 1,000 answers"
    if gate.test == "at_most":
        return f"share of answers within {seconds(gate.margin)}"
    return f"difference in {gate.metric}" if gate.versus else str(gate.metric)


def _told(gate: Gate, facts: str, drawing: str) -> Markup:
    pill = _PILLS[gate.outcome]
    return REPORT.fill("report.html", "gate", gate=gate, pill=pill, facts=gate.task + facts, drawing=drawing)


def _task(verdict: Verdict, name: str, graded: Sequence[Graded]) -> Markup:
    task = verdict.tasks[name]
    results, differences, gates = verdict.results_of(name), verdict.differences_of(name), verdict.gates_of(name)
    confidence = verdict.confidence
    sections = [
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
    return REPORT.fill(
        "report.html", "task", name=name, description=task.description or "", rubric=graded[0].task.rubric or "",
        sections=[section for section in sections if section],
    )  # fmt: skip


def _provenance(verdict: Verdict) -> Markup:
    models = []
    for name, facts in verdict.targets.items():
        model = " ".join(part for part in (facts.id, facts.revision) if part)
        size = f"{facts.bytes / 1e6:,.1f} MB" if facts.bytes else ""
        step = f"step {facts.step}" if facts.step else ""
        versions = sorted({one for item in verdict.results if item.target == name for one in item.answered})
        answered = f"answered by {', '.join(versions)}" if versions else ""
        learned = f"learned from {facts.learned} rows" if facts.learned not in (None, "any") else ""
        told = " · ".join(part for part in (model, step, size, facts.place, learned, answered) if part)
        models.append([chip(name), told or "–", small("mono", facts.identity)])
    tasks: list[list[str]] = []
    for name, task in verdict.tasks.items():
        told = (
            f"version {task.version} · {task.rows:,} of {task.rows_in_file:,} rows · at most {task.max_new_tokens} "
            "new tokens · privacy: " + ", ".join(f"{kind} {count:,}" for kind, count in task.privacy.items())
        )
        tasks.append([name, told, small("mono", task.digest)])
    if verdict.data and verdict.data.digest:
        tasks.append(["training data", "the set the tuned model saw", small("mono", verdict.data.digest)])
    release = verdict.release
    made = [
        *([["released", f"answers to {release.to}: {release.reason}"]] if release else []),
        ["confidence", f"{verdict.confidence:.0%}"],
        ["seed", str(verdict.seed)],
        ["made by", verdict.made_by or report_header.UNKNOWN],
    ]
    return REPORT.fill("report.html", "provenance", models=models, tasks=tasks, made=made)


def _method(verdict: Verdict) -> Markup:
    look = verdict.look
    looked = (look.number, f"{look.level:.3g}", f"{look.later:.3g}") if look else None
    return REPORT.fill(
        "report.html", "method", confidence=f"{verdict.confidence:.0%}", error=f"{1 - verdict.confidence:.0%}",
        look=looked,
    )  # fmt: skip
