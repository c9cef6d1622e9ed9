"""A conversation that a model is asked, and its answer: text that stopped, was cut, was refused or failed, told
apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gemma_ops.config import Privacy

End = Literal["stop", "length", "blocked", "error"]


@dataclass(frozen=True)
class Prompt:
    """One conversation to be answered. `messages` are OpenAI-style turns, the last one from the user or a tool.

    `repeat` tells apart several answers to the same conversation: models sample, and a cache must not hide it. `media`
    tells where the bytes of images and sounds lie, by the path that their parts have.
    """

    messages: Sequence[dict[str, Any]]
    privacy: Privacy = "local_only"
    id: str = ""
    repeat: int = 0
    media: Mapping[str, Path | bytes] = field(default_factory=dict)
    tools: Sequence[dict[str, Any]] = ()
    """Functions that the model may call, as OpenAI declares them."""


@dataclass(frozen=True)
class Answer:
    """One reply.

    `seconds`: wall time; for local models that of a batch divided by the rows in it, so that a sum is a total.
    `new_tokens` are those of the visible reply; thoughts are counted apart. The rest is what services say.
    """

    text: str
    end: End
    prompt_tokens: int
    new_tokens: int
    seconds: float
    reason: str = ""
    """Why the answer ended `blocked` or `error`, in the service's words."""
    first_seconds: float | None = None
    """Seconds to the first token; None where they were not measured."""
    thought_tokens: int = 0
    thought: str = ""
    """What the model thought before it answered, where that is known; never scored."""
    cached_tokens: int = 0
    """Tokens of the prompt that were billed as cached."""
    dollars: float | None = None
    """US dollars that the reply cost; None where nothing is billed."""
    model: str = ""
    """Version that answered, as the service names it."""
    response_id: str = ""
    tier: str = ""
    """Billing tier: `standard`, `flex`, `priority` or `batch`; empty where nothing was billed."""
