"""What an engine is to the server: it takes token ids and gives token ids back, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from gemma_ops.errors import OpsError, ServiceError
from gemma_ops.family.media import Senses


class EngineGoneError(ServiceError):
    """The engine died, or doesn't answer. The request may be sent again: the engine is started anew."""


class EngineRefusedError(OpsError):
    """The engine refuses this request, and would refuse it again."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. What is None is the model's own default (`generation_config.json`)."""

    max_tokens: int
    temperature: float | None = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    schema: dict[str, Any] | None = None
    """A JSON schema that decoding is held to."""
    calls: tuple[str, ...] = ()
    """Names of functions, one of which is called by what follows an opened call; empty where no call is opened."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each token; None for no probabilities."""

    def drawn(self, own: Mapping[str, Any]) -> tuple[float, int, float]:
        """Temperature, top_k and top_p; what is left open is the model's `own` (`generation_config.json`)."""
        temperature = own.get("temperature", 1.0) if self.temperature is None else self.temperature
        top_k = own.get("top_k", 0) if self.top_k is None else self.top_k
        return float(temperature), int(top_k), float(own.get("top_p", 1.0) if self.top_p is None else self.top_p)


@dataclass(frozen=True)
class TokenChance:
    """A token with its log-probability (natural logarithm, over the whole vocabulary before sampling)."""

    id: int
    text: str
    logprob: float
    likeliest: tuple[TokenChance, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Some more tokens of a reply, and on the last of it how it ended."""

    ids: tuple[int, ...]
    chances: tuple[TokenChance, ...] = ()
    end: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class ShownMedia:
    """Images and sounds that a prompt shows at the places where its soft tokens stand."""

    parts: tuple[dict[str, Any], ...]
    """Stored parts, in the order of the prompt (see `data.media`)."""
    data: Mapping[str, bytes]
    """Their bytes, by the parts' paths."""
    types: tuple[int, ...]
    """`mm_token_type_ids`, one for each token of the prompt."""

    def longer(self, count: int) -> ShownMedia:
        """The same before a prompt that goes on with so many tokens of text."""
        return replace(self, types=(*self.types, *[0] * count))


class Engine(Protocol):
    """Something that runs the weights of one format."""

    name: str
    """As the world calls it, with its version: `llama.cpp (xllamacpp 2026.10)`."""
    slots: int
    context: int
    """Tokens that a prompt and its reply may take together."""
    senses: Senses | None
    """What it sees and hears besides text; None where it reads text only."""

    @property
    def restarts(self) -> int:
        """How often it died and was started again."""

    async def start(self) -> None:
        """Load the weights; returns when it answers. Raises ModelError for weights that it refuses."""

    async def stop(self) -> None:
        """End it, and whatever it is doing."""

    def alive(self) -> bool:
        """Whether it would answer now."""

    def complete(self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None) -> AsyncIterator[Tokens]:
        """Tokens as they come. `shown` is for an engine with senses. Closing the iterator ends the work. Raises
        EngineGoneError and EngineRefusedError."""
