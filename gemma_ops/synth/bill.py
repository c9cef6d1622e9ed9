"""Dollars of planned requests to Gemini, at today's prices: what is likely, and what they can cost at worst.

The worst case counts the way the door reserves: every byte of a prompt a token, every reply as long as it may be. What
the teacher has not written yet is in some prompts; it is bounded by the limit of its reply, at `BYTES` for each token.
Each request is then counted with its one repair, on the more expensive of the tiers it may go by: what is left of an
interrupted batch may be too few for another. A retry whose first reply was lost is billed once more, and no plan can
know how many are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gemma_ops.answer import Prompt
from gemma_ops.config import GeminiConfig
from gemma_ops.gemini import prices, request_wire
from gemma_ops.gemini.door import MANY
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.request import Use
from gemma_ops.gemini.usage import Usage
from gemma_ops.targets.gemini_target import output_limit, request
from gemma_ops.targets.spec import TargetSpec

BYTES = 4
"""Bytes counted for each token that a model has yet to write: nearly all read as one token when they are read again."""
_REPAIR = 1024
"""Bytes of the two turns of a repair, without the reply that is repaired."""


@dataclass(frozen=True)
class PlannedBill:
    """A request, or several of the same size. `kind` names those that are asked at once, which may go as a batch."""

    kind: str
    messages: Sequence[dict[str, Any]]
    schema: dict[str, Any]
    tokens: int
    """Tokens of the prompt, as counted, for the likely figure."""
    later: int = 0
    """Bytes that the prompt will hold and `messages` doesn't, because nobody has written them yet."""
    times: int = 1


@dataclass(frozen=True)
class Bill:
    """Dollars, the tiers in words, and tokens that all replies and repairs can hold."""

    likely: float
    worst: float
    tiers: str
    worst_new_tokens: int


def synthesis_bill(
    planned: Sequence[PlannedBill], spec: TargetSpec, gemini: GeminiConfig, *, reply: int, output: int, use: Use
) -> Bill:
    """Return the bill of requests whose visible replies hold at most `reply` tokens and likely `output`, thoughts
    included.

    Raises ConfigError for an unknown model or thinking level, BudgetError for an unknown price.
    """
    now, limit = datetime.now(UTC), written(spec, reply)
    counts: Counter[str] = Counter()
    for item in planned:
        counts[item.kind] += item.times
    batches = "batch" in model_facts(spec.model).tiers and not gemini.enterprise and gemini.batch != "never"
    always = batches and gemini.batch == "always"
    many = {kind for kind, count in counts.items() if batches and gemini.tier == "paid" and count >= MANY}
    first: set[str] = set()
    likely = worst = 0
    for item in planned:
        tier = "batch" if always or item.kind in many else gemini.service_tier
        tiers = {tier} if always else {tier, gemini.service_tier}
        first.add(tier)
        asked = request(spec, Prompt(item.messages, "any"), reply, use=use, schema=item.schema)
        bound = prices.prompt_bound(request_wire.body(asked)) + item.later
        likely += item.times * prices.request_price(
            spec.model, Usage(prompt=item.tokens, output=output), tier=tier, at=now
        )
        worst += item.times * max(
            prices.worst(spec.model, bound, limit, tier=name, at=now)
            + prices.worst(spec.model, bound + BYTES * limit + _REPAIR, limit, tier=name, at=now)
            for name in tiers
        )
    return Bill(
        likely / prices.NANO,
        worst / prices.NANO,
        f"{' and '.join(sorted(first) or [gemini.service_tier])} tier",
        2 * limit * counts.total(),
    )


def written(spec: TargetSpec, reply: int) -> int:
    """Return the tokens that one reply can hold, thoughts included."""
    return output_limit(model_facts(spec.model), spec.thinking, reply) if spec.kind == "gemini" else reply
