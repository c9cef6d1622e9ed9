"""The forecast of a task's gates: what they can show with its rows, before anything is asked."""

from __future__ import annotations

from typing import Any

from gemma_ops.config import EvaluateConfig, GateConfig
from gemma_ops.gates import detectable
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.targets.spec import parse_target
from gemma_ops.tasks.task import Task

Body = dict[str, Any]


def task_body(task: Task, settings: EvaluateConfig, level: float, hour: Body) -> Body:
    """Return rows, clusters and copies of a task, the differences they show, and its gates at the level of this look.
    `hour` is what an hour of this machine costs."""
    n = len(task.rows)
    groups = len({row.cluster for row in task.rows}) if task.clustered else n
    gates = [gate for gate in settings.gates if gate.task in (None, task.name)]
    share = level / max(len(settings.gates), 1)
    return {
        "task": task.name,
        "rows": n,
        "clusters": groups if task.clustered else None,
        "copies": task.copies,
        "privacy": {kind: sum(row.privacy == kind for row in task.rows) for kind in PRIVACY},
        "detectable": round(detectable.detectable_difference(n, detectable.DISCORDANCE["superior"], level), 4),
        "detectable_close": round(detectable.detectable_difference(n, detectable.DISCORDANCE["noninferior"], level), 4),
        "gates": [_gate(gate, task, groups, level, share) for gate in gates],
    }


def _gate(gate: GateConfig, task: Task, groups: int, level: float, share: float) -> Body:
    """Return for one gate the rows it likely needs at its share of the level, and rows below which it can't pass at the
    whole of it."""
    rows, fewest = detectable.rows_for_gate(gate, share), detectable.fewest_rows(gate, level)
    if _on_labels(gate, task):
        rows = fewest = None  # that depends on the labels, whose rows are counted below
    return {
        "gate": gate.words,
        "rows_needed": rows,
        "enough": None if rows is None else rows <= groups,
        "fewest": fewest,
        "possible": fewest is None or fewest <= groups,
        "missing": _missing(gate, task, level),
    }


def _on_labels(gate: GateConfig, task: Task) -> bool:
    """True if the gate asks for F1, which is made of counts per label."""
    return gate.metric in task.figures and gate.metric not in task.columns


def _missing(gate: GateConfig, task: Task, level: float) -> str | None:
    """Return why no answers to these rows decide a gate."""
    if _on_labels(gate, task):
        from gemma_ops.gates import gate_decision, label_evidence

        scorer = next(scorer for scorer in task.scorers if gate.metric in scorer.counts)
        known = [row for row in task.rows if row.reference is not None]
        if not known:
            return "no row has a reference"
        right = scorer.counts[gate.metric]([scorer.score(row.gold, row).detail for row in known])
        clusters = [str(row.cluster) for row in known] if task.clustered else None
        sample = label_evidence.ratio_sample([right] * (2 if gate.versus else 1), clusters)
        return label_evidence.too_few(sample, right.labels, gate_decision.threshold(gate), level)
    if gate.metric == "usd_per_1k" and gate.most is None and parse_target(gate.target).kind != "gemini":
        return "the most that an answer can cost is not known; say it in the gate's `most`"
    return None


def gate_lines(task: Body) -> list[str]:
    """Return a task and its gates for a terminal."""
    clustered = f" in {task['clusters']:,} clusters" if task["clusters"] else ""
    seen, close = f"{task['detectable']:.3f}", f"{task['detectable_close']:.3f}"
    shown = (
        f"show a difference of {seen} or more between targets that differ on a fifth of the rows, of {close} "
        f"between close"
    )
    text = [f"{task['task']}: {task['rows']:,} rows{clustered} {shown} ones (power 80%)"]
    if task["copies"]:
        text.append(f"  {task['copies']:,} rows repeat another question and count as one with it")
    for gate in task["gates"]:
        needed = (
            "depends on the figure itself"
            if gate["rows_needed"] is None
            else f"needs about {gate['rows_needed']:,} rows if answers are right or wrong, more for scores between"
        )
        least = f"; can't pass with fewer than {gate['fewest']:,}" if gate["fewest"] else ""
        text.append(f"  gate {gate['gate']}: {gate['missing'] or needed}{'' if gate['missing'] else least}")
    return text


def gate_problems(task: Body) -> list[str]:
    """Return gates that will not, or likely not, be decided."""
    kind, have = ("clusters", task["clusters"]) if task["clusters"] else ("rows", task["rows"])
    found = []
    for gate in task["gates"]:
        if gate["missing"]:
            found.append(f"gate {gate['gate']} will end inconclusive: {gate['missing']}")
        elif not gate["possible"]:
            likely = f"; about {gate['rows_needed']:,} are likely needed" if gate["rows_needed"] else ""
            found.append(
                f"gate {gate['gate']} can't pass with {have:,} {kind} of {task['task']}: no test that holds for all "
                f"scores passes it with fewer than {gate['fewest']:,}, even if all answers are as good as they can "
                f"be{likely}"
            )
        elif gate["enough"] is False:
            found.append(
                f"gate {gate['gate']} will likely end inconclusive: {have:,} {kind} of {task['task']}, about "
                f"{gate['rows_needed']:,} needed"
            )
    return found
