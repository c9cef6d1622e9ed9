"""The cost of a request on Gemini, from its counts: expected, and at most."""

from __future__ import annotations

from datetime import datetime

from gemma_ops.errors import BudgetError
from gemma_ops.gemini import prices
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.usage import Usage
from gemma_ops.routing.routing_policy import GeminiRules
from gemma_ops.targets.gemini_target import output_limit


def estimate_reply(
    rules: GeminiRules, *, tokens: int, reply: int, bound: int, at: datetime, tier: str
) -> tuple[float | None, float | None]:
    """Return the dollars expected and at most. Expected: the prompt's tokens and a reply of full length, without
    thoughts. At most: what the ledger would reserve. None for both where no price is known. Raises ConfigError for an
    unknown model."""
    known = model_facts(rules.model)
    try:
        expected = prices.request_price(rules.model, Usage(prompt=tokens, output=reply), tier=tier, at=at)
        most = prices.worst(rules.model, bound, output_limit(known, rules.thinking, reply), tier=tier, at=at)
    except BudgetError:
        return None, None
    return expected / prices.NANO, most / prices.NANO
