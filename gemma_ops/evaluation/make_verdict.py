"""The verdict: everything the scores say, as one JSON document that the report, the summary and `promote` read.

It is a `gemma_ops.verdicts.Verdict`, whose fields say what they hold; here it is put together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gemma_ops.config import EvaluateConfig, GateConfig
from gemma_ops.evaluation import routing_table
from gemma_ops.evaluation.looks import NextLook
from gemma_ops.evaluation.target_results import Book, paired_differences, result, rounded
from gemma_ops.gates import detectable, gate_decision
from gemma_ops.judging.judged import METRICS, JudgedComparison, evidence_for
from gemma_ops.tasks.answering_model import gate_doubt
from gemma_ops.tasks.grades import Graded
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import Gate, Look, TaskFacts, Verdict
from gemma_ops.verdicts.document import VERDICT_SCHEMA
from gemma_ops.verdicts.gate_record import LookTaken


def build_verdict(
    graded: Sequence[Graded],
    settings: EvaluateConfig,
    facts: dict[str, Any],
    judged: Sequence[JudgedComparison] = (),
    standing: NextLook | None = None,
) -> Verdict:
    """Build the verdict from every target's grades on every task. `facts` are what `provenance.collect_provenance`
    knows; `standing` says which look this is, and without it the gates have the whole level. Raises ValueError for a
    fact that the verdict has no field for."""
    book = Book(graded, settings, facts)
    tasks = {item.task.name: item.task for item in graded}
    evidence = [_evidence(gate, book, judged) for gate in settings.gates]
    decided = [
        (gate, found) for gate, found in zip(settings.gates, evidence, strict=True) if not isinstance(found, str)
    ]
    spends, later = (standing.look.level, standing.later) if standing else (1 - settings.confidence,) * 2
    decisions = gate_decision.decide_gates(
        [gate for gate, _ in decided], [found for _, found in decided], 1 - spends, later=1 - later
    )
    following = iter(decisions)
    body = {
        "schema": VERDICT_SCHEMA,
        "verdict": gate_decision.overall(decisions),
        "confidence": settings.confidence,
        "seed": settings.seed,
        "look": _look(standing),
        "gates": [
            _report_only(gate, book.task_of(gate), found)
            if isinstance(found, str)
            else _gate(next(following), book.task_of(gate))
            for gate, found in zip(settings.gates, evidence, strict=True)
        ],
        "tasks": {name: _task(task) for name, task in tasks.items()},
        "results": [result(item, book) for item in graded],
        "differences": [found for name in tasks for found in paired_differences(name, book)],
        "judged": [one.body for one in judged],
        "routing": routing_table.build_routing(book, facts),
        **facts,
    }
    return Verdict.made(body)


def _evidence(gate: GateConfig, book: Book, judged: Sequence[JudgedComparison]) -> gate_decision.GateEvidence | str:
    """Return the evidence a gate is decided on, or in words why it can only be reported."""
    if gate.metric not in METRICS:
        return gate_doubt(gate, book.pages.values(), book.task_of(gate)) or book.evidence(gate)
    return evidence_for(gate, judged) if judged else "no judge was asked"


def _look(standing: NextLook | None) -> LookTaken | None:
    if standing is None:
        return None
    look = standing.look
    return LookTaken(
        number=len(standing.earlier) + 1,
        subjects=look.subjects,
        evidence=look.evidence,
        rows=look.rows,
        **rounded({"level": look.level, "later": standing.later}),
        earlier=tuple(Look.made(look.model_dump()) for look in standing.earlier),
    )


def _gate(decision: gate_decision.Decision, task: str) -> Gate:
    body = asdict(decision)
    del body["gate"]
    return Gate.made(rounded({**_asked(decision.gate, task), **body}))


def _report_only(gate: GateConfig, task: str, reason: str) -> Gate:
    unknown = dict.fromkeys(("value", "bound", "upper", "level", "p", "p_holm", "n", "clusters", "n_needed"))
    words = f"{gate.words}: reported, not decided. {reason}"
    decided = {"outcome": "report_only", **unknown, "threshold": gate_decision.threshold(gate), "words": words}
    return Gate.made(_asked(gate, task) | decided)


def _asked(gate: GateConfig, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "metric": gate.metric,
        "target": gate.target,
        "test": gate.test,
        "versus": gate.versus,
        "margin": gate.margin,
    }


def _task(task: Task) -> TaskFacts:
    clusters = {row.cluster for row in task.rows}
    return TaskFacts(
        version=task.file.version,
        digest=task.digest,
        description=" ".join(task.file.description.split()),
        primary=task.file.primary,
        rows=len(task.rows),
        rows_in_file=task.total,
        cluster_by=task.file.cluster_by,
        clusters=len(clusters) if task.clustered else len(task.rows),
        copies=task.copies,
        privacy=dict(Counter(row.privacy for row in task.rows)),
        metrics=tuple(task.figures),
        max_new_tokens=task.file.generation.max_new_tokens,
        detectable=round(detectable.detectable_difference(len(task.rows), detectable.DISCORDANCE["superior"]), 4),
    )
