"""Models that the emulator serves, and what each refuses: those of `models.yaml`, an alias, and two that embed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

from gemma_ops.gemini.models import models_table
from gemma_ops.wire.gemini_wire import Refusal

_OUTPUT = 65_536
"""Most tokens of output where no source says: what the service documents for most models."""
_NO_BUDGETS = ("gemini-4-",)
"""Families that refuse `thinkingBudget`, the older way to bound thinking."""


@dataclass(frozen=True)
class Card:
    """One model of the emulator. Sizes in tokens."""

    name: str
    levels: tuple[str, ...] = ()
    """Thinking levels that it takes."""
    default_level: str | None = None
    """Thinking level where the request names none; None for models that don't think."""
    budgets: bool = True
    candidates: bool = True
    """Whether it returns several candidates at once."""
    input_limit: int = 1_048_576
    output_limit: int = _OUTPUT
    embeds: int = 0
    """Length of its vectors; 0 for models that answer."""
    beta_only: bool = False
    """Whether only v1beta knows it, as with aliases."""

    def describe(self, cloud: bool = False) -> dict[str, object]:
        """Return the entry in the list of models."""
        methods = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
        if self.embeds:
            methods = ["embedContent", "countTokens", "asyncBatchEmbedContent"]
        return {
            "name": f"publishers/google/models/{self.name}" if cloud else f"models/{self.name}",
            "version": "001",
            "displayName": self.name.replace("-", " ").title(),
            "description": f"Emulated {self.name}",
            "inputTokenLimit": self.input_limit,
            "outputTokenLimit": 1 if self.embeds else self.output_limit,
            "supportedGenerationMethods": methods,
            "thinking": self.default_level is not None,
        }


@cache
def cards() -> dict[str, Card]:
    """Return all models by name."""
    found = []
    for name, facts in models_table().models.items():
        default = facts.default_thinking or ("medium" if "medium" in facts.thinking else None)
        found.append(
            Card(
                name,
                facts.thinking,
                default or (facts.thinking[0] if facts.thinking else "high"),
                budgets=not name.startswith(_NO_BUDGETS),
                candidates=not name.startswith(_NO_BUDGETS),
                input_limit=facts.context,
                output_limit=facts.output or _OUTPUT,
            )
        )
    found += [
        Card("gemini-flash-latest", ("low", "medium", "high"), "medium", beta_only=True),
        Card("gemini-embedding-2", embeds=3072, input_limit=8_192),
        Card("gemini-embedding-001", embeds=3072, input_limit=2_048),
    ]
    return {card.name: card for card in found}


def known_routes(on: date) -> dict[str, str]:
    """Return retired models with the one that answers for each on a day, as `models.yaml` knows them."""
    routed = {name: facts.routed for name, facts in models_table().models.items() if facts.routed}
    return {name: where.to for name, where in routed.items() if on >= where.since}


def find_model(name: str, version: str, task: str, *, embeds: bool = False) -> Card:
    """Return the card of a model, or raise the service's 404; `task` is the method that the message names."""
    card = cards().get(name)
    if card is None or (card.beta_only and version == "v1") or bool(card.embeds) != embeds:
        raise Refusal(
            404,
            f"models/{name} is not found for API version {version}, or is not supported for {task}. "
            "Call ModelService.ListModels to see the list of available models and their supported methods.",
        )
    return card
