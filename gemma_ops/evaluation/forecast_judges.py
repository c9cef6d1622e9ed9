"""The forecast of what judges will be asked: requests, and for Gemini dollars, guessed from the references."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.gemini import prices
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.usage import Usage
from gemma_ops.judging import judge_canaries, rubric
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.judge_protocol import Protocol
from gemma_ops.targets.gemini_target import output_limit, request, seen_by
from gemma_ops.targets.spec import TargetSpec, parse_target
from gemma_ops.tasks.task import Task

Body = dict[str, Any]
CHARACTERS = 4
"""Characters of a token, as a guess."""
_VERDICT = 200
"""Tokens of a verdict, as a guess."""
THOUGHTS = 0.25
"""Share of the room for thoughts that is used, as a guess."""


def forecast_judges(settings: EvaluateConfig, machine: MachineConfig, task: Task) -> list[Body]:
    """Return one entry per judge and comparison of a task. Raises ConfigError for unknown judges and models,
    BudgetError for unknown prices."""
    judge = settings.judge
    if not judge.judges:
        return []
    protocol = Protocol(judge.mode, rubric.parse_rubric(task.rubric, f"the rubric of {task.name}"))
    rivals = judge.versus if judge.mode == "pairwise" else judge.versus or ("",)
    rows = task.first(judge.rows).rows
    limit = task.file.generation.max_new_tokens
    likely, longest = (_pairs(rows, text) for text in ("", "x" * limit * CHARACTERS))
    each = 2 * judge.repeats if judge.mode == "pairwise" or judge.versus else judge.repeats
    found = []
    for name in judge.judges:
        spec = parse_target(name)
        for rival in rivals:
            body: Body = {"task": task.name, "judge": name, "first": judge.first, "versus": rival or None}
            body |= {
                "requests": len(rows) * each,
                "canaries": len(judge_canaries.canary_questions(likely, judge.mode)),
                "hidden": 0,
            }
            body |= dict.fromkeys(("worst_usd", "likely_usd", "tier"))
            if spec.kind == "gemini":
                sees = seen_by(spec.model, machine.gemini)
                body["hidden"] = sum(row.privacy not in sees for row in rows)
                body |= _dollars(spec, machine, protocol, likely, longest, each, judge.max_new_tokens)
            found.append(body)
    return found


def _pairs(rows: Sequence[Any], answer: str) -> list[JudgedPair]:
    """Return pairs as long as the references, or as a given answer."""
    return [
        JudgedPair(
            id=row.id,
            messages=row.messages,
            first=answer or _gold(row),
            second=(answer or _gold(row)) + ".",
            reference=None if row.reference is None else row.gold,
            privacy=row.privacy,
        )
        for row in rows
    ]


def _gold(row: Any) -> str:
    return "an answer of a few words, for want of a reference" if row.reference is None else str(row.gold)


def _dollars(
    spec: TargetSpec,
    machine: MachineConfig,
    protocol: Protocol,
    likely: Sequence[JudgedPair],
    longest: Sequence[JudgedPair],
    each: int,
    verdict: int,
) -> Body:
    from gemma_ops.gemini import request_wire

    now = datetime.now(UTC)
    tier = "batch" if machine.gemini.batch == "always" else machine.gemini.service_tier
    room = output_limit(model_facts(spec.model), spec.thinking, verdict) - verdict
    total = {"worst_usd": 0, "likely_usd": 0}
    for guess, bound in zip(likely, longest, strict=True):
        shown = protocol.messages(guess, _answers(protocol, guess))
        words = sum(len(str(message["content"])) for message in shown) // CHARACTERS
        usage = Usage(prompt=words, output=min(_VERDICT, verdict), thoughts=int(room * THOUGHTS))
        total["likely_usd"] += each * prices.request_price(spec.model, usage, tier=tier, at=now)
        prompt = Prompt(protocol.messages(bound, _answers(protocol, bound)), bound.privacy)
        asked = request(spec, prompt, verdict, use="judge", schema=protocol.shape.model_json_schema())
        size = prices.prompt_bound(request_wire.body(asked))
        total["worst_usd"] += each * prices.worst(spec.model, size, asked.max_output_tokens, tier=tier, at=now)
    return {name: value / prices.NANO for name, value in total.items()} | {"tier": tier}


def _answers(protocol: Protocol, pair: JudgedPair) -> list[str]:
    return [pair.first, pair.second or ""] if protocol.mode == "pairwise" else [pair.first]
