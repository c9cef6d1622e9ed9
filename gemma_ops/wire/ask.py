"""A request for an answer in one form for all protocols: what the protocol modules read, and what the model is
asked."""

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
        """Keep why the request is refused; `retry_after` says seconds after which it may be asked again, None where
        nothing says."""
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
    """Names of functions of which the reply must call one; empty where it is free."""
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
    """Number of top logprobs per token; None for no logprobs."""
    shown: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Images, sounds and files by the mark that stands for each in a message (see `wire.beyond`)."""
    count: int = 1
    """Number of replies wanted."""
    thinking: bool | None = None
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only the protocol's own replies depend on."""
