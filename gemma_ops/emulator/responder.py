"""The interface of a responder, which answers requests. A responder takes a `Body`, the request in readable form, and
returns text or a `Reply`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gemma_ops.wire.gemini_wire import contents_of, texts_of


@dataclass(frozen=True)
class Body:
    """One request to a model, as a responder reads it."""

    model: str
    raw: Mapping[str, Any]
    """JSON body with field names in camel case."""
    digest: str
    """Digest of model and body."""
    nth: int
    """Times that this question was put before."""
    seed: int
    """Seed of the emulator."""

    @cached_property
    def texts(self) -> list[str]:
        """Return the texts of all turns, in order."""
        return texts_of(self.raw.get("contents"))

    @property
    def text(self) -> str:
        """Return all turns as one text."""
        return "\n".join(self.texts)

    @property
    def last(self) -> str:
        """Return the text of the last turn."""
        turns = contents_of(self.raw.get("contents"))
        return "\n".join(texts_of(turns[-1:]))

    @property
    def system(self) -> str:
        return "\n".join(texts_of(self.raw.get("systemInstruction")))

    @property
    def config(self) -> Mapping[str, Any]:
        found = self.raw.get("generationConfig")
        return found if isinstance(found, dict) else {}

    @property
    def schema(self) -> dict[str, Any] | None:
        """Return the JSON schema (or OpenAPI schema) that the reply must follow."""
        found = self.config.get("responseJsonSchema") or self.config.get("responseSchema")
        return found if isinstance(found, dict) else None

    @property
    def functions(self) -> list[dict[str, Any]]:
        """Return the declarations of functions that may be called."""
        tools = [tool for tool in self.raw.get("tools") or [] if isinstance(tool, dict)]
        return [item for tool in tools for item in tool.get("functionDeclarations") or []]

    @property
    def max_output_tokens(self) -> int | None:
        found = self.config.get("maxOutputTokens")
        return int(found) if found is not None else None

    @property
    def level(self) -> str | None:
        """Return the thinking level that is asked for, in lower case."""
        found = (self.config.get("thinkingConfig") or {}).get("thinkingLevel")
        return str(found).lower() if found else None

    def chance(self, *names: object) -> random.Random:
        """Return random numbers that depend on the seed, the question and these names, and on nothing else."""
        text = "/".join(map(str, (self.seed, self.digest, *names)))
        return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))


@dataclass(frozen=True)
class EmulatedReply:
    """What a model replies. Token counts left at None are counted by the emulator."""

    text: str = ""
    finish: str = "STOP"
    calls: tuple[dict[str, Any], ...] = ()
    """Function calls: {"name": …, "args": {…}}."""
    blocked: str | None = None
    """Block reason of the prompt: no candidate is returned."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    thought_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that count as cached."""
    headers: Mapping[str, str] = field(default_factory=dict)


Responder = Callable[[Body], str | EmulatedReply]
"""Function that answers a request. An exception becomes the service's 500."""
