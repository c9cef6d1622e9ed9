"""The most that an answer of a service can cost: what the ledger reserves before it is asked.

A bound on the mean cost needs it. Three runaway answers in a hundred, each fifty times as dear as the others, are seen
by chance only; that none is more expensive than its reservation is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gemma_ops.errors import BudgetError
from gemma_ops.evaluation.ask_targets import prompt_of
from gemma_ops.gemini import prices, request_wire
from gemma_ops.targets.gemini_target import request
from gemma_ops.targets.spec import parse_target
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.tasks.task import Task


def most_per_answer(task: Task, target: str, answers: Sequence[StoredAnswer]) -> float | None:
    """Return the dollars that the most expensive of these questions can cost at this target, at the prices of today and
    of the tiers that answered. None where nothing is reserved, no price is known, or an answer was more expensive."""
    spec = parse_target(target)
    if spec.kind != "gemini":
        return None
    now, found = datetime.now(UTC), 0
    for row, answer in zip(task.rows, answers, strict=True):
        if answer.end == "hidden":
            continue
        asked = request(spec, prompt_of(row), task.file.generation.max_new_tokens, use="evaluate")
        try:
            bound = prices.prompt_bound(request_wire.body(asked))
            found = max(
                found, prices.worst(spec.model, bound, asked.max_output_tokens, tier=answer.tier or "standard", at=now)
            )
        except BudgetError:
            return None
    most = found / prices.NANO
    # A bill above today's reservation is one of other prices, and no bound of it is known.
    return None if any((answer.dollars or 0.0) > most for answer in answers) else most
