"""The forecast of an evaluation: what it can show, what it sends where, and what it may cost, before anything is asked.

Nothing is asked and no model is loaded. The worst case of a service is the sum of what the door to it reserves: every
byte of a prompt a token, every reply as long as it may be. The likely figure takes tokens and seconds from an
evaluation of this run that was made before, where there is one, and says so; otherwise it is a guess by rule: four
characters a token, a reply as long as its reference, a quarter of the room for thoughts used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.evaluation import answer_cost, evaluation_checks, forecast_gates, forecast_judges
from gemma_ops.evaluation.ask_targets import prompt_of
from gemma_ops.evaluation.forecast_judges import CHARACTERS, THOUGHTS
from gemma_ops.gemini import prices
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.usage import Usage
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.stats.look_levels import look_level
from gemma_ops.targets.gemini_target import output_limit, request, seen_by, target_identity
from gemma_ops.targets.spec import TargetSpec, parse_target
from gemma_ops.tasks import stored_answers
from gemma_ops.tasks.question_copies import join_copies
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import VERDICT, Verdict

Body = dict[str, Any]


def forecast(
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    before: Path,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, Any]:
    """Return what an evaluation can show, sends and may cost; `before` is the folder of this run's evaluation, if there
    was one.

    Nothing is asked and no model is loaded.
    """
    return forecast_evaluation(
        settings, machine, evaluation_checks.load_checked(settings, tasks, source, before.parent), before
    )


def forecast_evaluation(settings: EvaluateConfig, machine: MachineConfig, tasks: Sequence[Task], before: Path) -> Body:
    """Return the plan as JSON. `before` is the folder of this run's evaluation, if there was one. Raises ConfigError
    for unknown targets and models, BudgetError for unknown prices."""
    known, stored = _known(before), _stored(before)
    tasks, hour = [join_copies(task) for task in tasks], answer_cost.hour(machine)
    look, level = _look(before, settings)
    targets = [
        _target(parse_target(name), settings, machine, task, known.get((task.name, name)), hour, stored)
        for task in tasks
        for name in settings.targets
    ]
    judges = [item for task in tasks for item in forecast_judges.forecast_judges(settings, machine, task)]
    asked = [*(item for item in targets if item["kind"] == "gemini"), *judges]
    worst = [item["worst_usd"] for item in asked if item["worst_usd"] is not None]
    body: Body = {
        "look": {"number": look, "level": round(level, 6)},
        "tasks": [forecast_gates.task_body(task, settings, level, hour) for task in tasks],
        "targets": targets,
        "judges": judges,
        "worst_usd": sum(worst) if worst else None,
        "likely_usd": sum(item["likely_usd"] or 0.0 for item in asked) if worst else None,
        "budget_usd": machine.gemini.budget_usd,
        "prices_at": datetime.now(UTC).date().isoformat(),
    }
    sent = any(item["worst_usd"] is not None for item in asked)
    refused = (
        [f"{_first(error.what)}: {error.fix}" for error in evaluation_checks.refusals(machine.gemini)] if sent else []
    )
    return body | {"problems": refused + _problems(body, settings)}


def _first(text: str) -> str:
    return text.split("\n", 1)[0]


def _look(before: Path, settings: EvaluateConfig) -> tuple[int, float]:
    """Return number and level of the look that this evaluation would be, if it asks about the same models as the one
    before."""
    file = before / VERDICT
    look = Verdict.read(file).look if file.is_file() else None
    return (look.number + 1, look.later) if look else (1, look_level(1 - settings.confidence, ()))


def _target(
    spec: TargetSpec, settings: EvaluateConfig, machine: MachineConfig, task: Task, before: Body | None, hour: Body,
    stored: frozenset[str],
) -> Body:  # fmt: skip
    rows = list(task.rows)
    body: Body = {
        "task": task.name,
        "target": spec.name,
        "kind": spec.kind,
        "requests": len(rows),
        "hidden": 0,
        "answered": 0,
    }
    body |= dict.fromkeys(("worst_usd", "likely_usd", "seconds"))
    body["basis"] = "measured before in this run" if before else "nothing measured yet"
    if spec.kind == "gemini":
        sees = seen_by(spec.model, machine.gemini)
        rows = [row for row in task.rows if row.privacy in sees]
        body |= {
            "requests": len(rows),
            "hidden": len(task.rows) - len(rows),
            "answered": _answered(spec, machine, task, rows, stored),
            **_gemini(spec, machine, task, rows, before),
        }
    elif before and spec.local and hour["dollars"] is not None:
        body["likely_usd"] = before["seconds"] * len(rows) * hour["dollars"] / 3600 / hour["utilisation"]
    if before:
        at_once = machine.gemini.concurrency if spec.kind == "gemini" else 1
        body["seconds"] = round(before["seconds"] * len(rows) / at_once, 1)
    return body


def _gemini(
    spec: TargetSpec, machine: MachineConfig, task: Task, rows: Sequence[ScoredRow], before: Body | None
) -> Body:
    """Return worst and likely dollars of one Gemini target."""
    from gemma_ops.gemini import request_wire

    settings, limit, now = machine.gemini, task.file.generation.max_new_tokens, datetime.now(UTC)
    tier = "batch" if settings.batch == "always" else settings.service_tier
    room = output_limit(model_facts(spec.model), spec.thinking, limit) - limit
    worst = likely = 0
    for row in rows:
        asked = request(spec, prompt_of(row), limit, use="evaluate")
        bound = prices.prompt_bound(request_wire.body(asked))
        worst += prices.worst(spec.model, bound, asked.max_output_tokens, tier=tier, at=now)
        usage = _usage(row, limit, room, before)
        likely += prices.request_price(spec.model, usage, tier=tier, at=now)
    return {
        "worst_usd": worst / prices.NANO,
        "likely_usd": likely / prices.NANO,
        "basis": "tokens measured before in this run"
        if before
        else "guessed: 4 characters a token, replies like references, a quarter of the room for thoughts",
        "tier": tier,
    }


def _usage(row: ScoredRow, limit: int, room: int, before: Body | None) -> Usage:
    if before:
        return Usage(prompt=before["prompt"], output=before["new"], thoughts=before["thoughts"])
    prompt = sum(len(str(message.get("content", ""))) for message in row.messages) // CHARACTERS + 8
    reply = limit // 2 if row.reference is None else min(limit, len(row.gold) // CHARACTERS + 1)
    return Usage(prompt=prompt, output=reply, thoughts=int(room * THOUGHTS))


def _known(folder: Path) -> dict[tuple[str, str], Body]:
    """Return what an earlier evaluation measured, by task and target: mean tokens and seconds of an answer."""
    file = folder / VERDICT
    if not file.is_file():
        return {}
    found: dict[tuple[str, str], Body] = {}
    for item in Verdict.read(file).results:
        speed, answered = item.speed, item.rows - item.hidden
        prompt, new, total = speed.mean_prompt_tokens, speed.mean_new_tokens, speed.seconds_total
        if answered and prompt is not None and new is not None and total is not None:
            found[item.task, item.target] = {
                "prompt": round(prompt),
                "new": round(new),
                "thoughts": round(speed.mean_thought_tokens or 0),
                "seconds": total / answered,
            }
    return found


def _stored(folder: Path) -> frozenset[str]:
    """Return the keys of the answers that this run's evaluation has, finished or not. Only read: it may be under
    way."""
    files = [folder / stored_answers.FILE, folder.with_name(f"{folder.name}.partial") / stored_answers.FILE]
    return frozenset(
        json.loads(line)["key"]
        for file in (*files, folder.parent / stored_answers.KEPT)
        if file.is_file()
        for line in file.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    )


def _answered(
    spec: TargetSpec, machine: MachineConfig, task: Task, rows: Sequence[ScoredRow], stored: frozenset[str]
) -> int:
    """Return how many of the questions this target has answered in this run. What they cost stays in the plan's
    figures."""
    generation, who = task.file.generation.model_dump(mode="json"), target_identity(spec, machine.gemini)
    return sum(stored_answers.answer_key(spec.name, who, task.name, row, generation) in stored for row in rows)


def _problems(body: Body, settings: EvaluateConfig) -> list[str]:
    """Return what would end or spoil the evaluation, as far as it can be known now."""
    found = [
        f"{item['hidden']:,} rows of {item['task']} may not be sent to {item['target']}: the evaluation would refuse; "
        "evaluate.hidden=skip leaves them out"
        for item in body["targets"]
        if item["hidden"] and settings.hidden == "refuse"
    ]
    found += [
        f"{item['hidden']:,} rows of {item['task']} may not be shown to the judge {item['judge']}: it would refuse"
        for item in body["judges"]
        if item["hidden"]
    ]
    worst, budget = body["worst_usd"], body["budget_usd"]
    if worst and budget is None:
        found.append("machine.gemini.budget_usd is not set, and nothing that costs money is sent without it")
    elif worst and (body["likely_usd"] or 0.0) > budget:
        found.append(
            f"the likely cost is above machine.gemini.budget_usd={budget:g}: the evaluation would stop at the cap"
        )
    for task in body["tasks"]:
        found += forecast_gates.gate_problems(task)
    return found


def forecast_lines(body: Body) -> list[str]:
    """Return the plan for a terminal."""
    text = []
    if body["look"]["number"] > 1:
        text.append(
            f"look {body['look']['number']}, if the models are those of the evaluation before: its gates have a "
            f"level of {body['look']['level']:.3g}"
        )
    for task in body["tasks"]:
        text += forecast_gates.gate_lines(task)
        text += [f"  {_line(item)}" for item in body["targets"] if item["task"] == task["task"]]
        text += [f"  {_judge(item)}" for item in body["judges"] if item["task"] == task["task"]]
    if body["worst_usd"] is not None:
        cap = "no budget is set" if body["budget_usd"] is None else f"budget ${body['budget_usd']:g}"
        text.append(
            f"Gemini in all: likely {_usd(body['likely_usd'])}, at worst {_usd(body['worst_usd'])}, at the prices of "
            f"{body['prices_at']}; {cap}"
        )
        text.append("answers that are in the store already cost nothing")
    return text + [f"problem: {problem}" for problem in body["problems"]]


def _line(item: Body) -> str:
    parts = [f"{item['target']}: {item['requests']:,} questions"]
    parts += [f"{item['answered']:,} of them answered already, which cost nothing again"] if item["answered"] else []
    parts += [f"{item['hidden']:,} not shown to it"] if item["hidden"] else []
    if item["worst_usd"] is not None:
        parts.append(f"likely {_usd(item['likely_usd'])}, at worst {_usd(item['worst_usd'])} ({item['tier']})")
    elif item["likely_usd"] is not None:
        parts.append(f"{_usd(item['likely_usd'])} of this machine's time")
    if item["seconds"] is not None:
        parts.append(f"about {item['seconds']:,.0f} s")
    return ", ".join(parts) + f" ({item['basis']})"


def _judge(item: Body) -> str:
    sides = item["first"] + (f" against {item['versus']}" if item["versus"] else "")
    parts = [f"judge {item['judge']} of {sides}: {item['requests']:,} requests and {item['canaries']} canaries"]
    if item["worst_usd"] is not None:
        parts.append(f"likely {_usd(item['likely_usd'])}, at worst {_usd(item['worst_usd'])} ({item['tier']})")
    return ", ".join(parts)


def _usd(value: float) -> str:
    return prices.dollars(prices.nanodollars(value))
