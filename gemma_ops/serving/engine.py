"""The interface between server and engine: it takes token ids and gives token ids back, as they come."""

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
    """Sampling settings of a reply. What is None is the model's own default (`generation_config.json`)."""

    max_tokens: int
    temperature: float | None = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    schema: dict[str, Any] | None = None
    """JSON schema that decoding is held to."""
    calls: tuple[str, ...] = ()
    """Names of functions, one of which must be called after an opened call; empty where no call is opened."""
    logprobs: int | None = None
    """Number of top logprobs per token; None for no logprobs."""

    def drawn(self, own: Mapping[str, Any]) -> tuple[float, int, float]:
        """Return temperature, top_k and top_p; what is left open is the model's `own` (`generation_config.json`)."""
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
    """Further tokens of a reply, and on the last of them how it ended."""

    ids: tuple[int, ...]
    chances: tuple[TokenChance, ...] = ()
    end: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class ShownMedia:
    """Images and sounds of a prompt, at the places where its soft tokens stand."""

    parts: tuple[dict[str, Any], ...]
    """Stored parts, in the order of the prompt (see `data.media`)."""
    data: Mapping[str, bytes]
    """Bytes of these parts, by the parts' paths."""
    types: tuple[int, ...]
    """`mm_token_type_ids`, one for each token of the prompt."""

    def longer(self, count: int) -> ShownMedia:
        """Return the media of a prompt that is longer by so many tokens of text."""
        return replace(self, types=(*self.types, *[0] * count))


class Engine(Protocol):
    """The interface of an engine, which runs the weights of one format."""

    name: str
    """Public name of the engine, with its version: `llama.cpp (xllamacpp 2026.10)`."""
    slots: int
    context: int
    """Tokens that a prompt and its reply may take together."""
    senses: Senses | None
    """Images and sounds that it takes; None where it reads text only."""

    @property
    def restarts(self) -> int:
        """Return how often it died and was started again."""

    async def start(self) -> None:
        """Load the weights, and return when it answers. Raises ModelError for weights that it refuses."""

    async def stop(self) -> None:
        """Stop it, whatever it is doing."""

    def alive(self) -> bool:
        """True if it would answer now."""

    def complete(self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None) -> AsyncIterator[Tokens]:
        """Yield tokens as they come. `shown` is for an engine with senses. Closing the iterator ends the work. Raises
        EngineGoneError and EngineRefusedError."""
