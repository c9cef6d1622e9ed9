"""A request for an answer, whichever protocol it came in: what the fronts read, and what the model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class RefusalError(Exception):
    """A request that is not answered: why, which field is to blame, and the HTTP status. Each protocol words it its own
    way."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        status: int = 400,
        code: str = "",
        retry_after: int | None = None,
    ) -> None:
        """`retry_after`: seconds after which it is worth asking again; None where nothing says."""
        super().__init__(message)
        self.message, self.field, self.status, self.code = message, field, status, code
        self.retry_after = retry_after


@dataclass(frozen=True)
class Ask:
    """One conversation to be answered. Where a setting is None, the model's own holds."""

    messages: Sequence[Mapping[str, Any]]
    """OpenAI-style turns, as they came."""
    tools: Sequence[Mapping[str, Any]] = ()
    must_call: tuple[str, ...] = ()
    """Names of functions of which the reply must call one; empty where it may say what it likes."""
    raw: str | tuple[int, ...] | None = None
    """A text, or token ids, that is continued as it stands instead of a conversation."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    """JSON schema that the reply must follow."""
    logprobs: int | None = None
    """How many of the likeliest tokens to tell with each; None for no probabilities."""
    shown: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is shown, by the mark that stands for it in a message (see `wire.beyond`)."""
    count: int = 1
    """Replies wanted."""
    thinking: bool | None = None
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only the protocol's own replies depend on."""
