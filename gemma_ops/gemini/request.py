"""One request to Gemini: everything that decides the answer, and everything that decides whether it may be sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from gemma_ops.config import Privacy
from gemma_ops.runs import digest

Use = Literal["evaluate", "judge", "synth", "serve"]
"""Purpose that money is spent on; `synth` is what trains, and must not come from grounding tools. Answers to `serve`
are not kept."""

HOSTED = ("code_execution", "url_context")
"""Tools of the service whose bill has a bound: their tokens count as input, and a model takes no more than its
context."""
MEDIA = "media"
"""Type of a part that is an image, sound, film or document: `{"type": "media", "mime": "image/png", "data": base64}`,
in a user turn."""


@dataclass(frozen=True)
class Request:
    """A conversation for one model. `messages` are OpenAI-style turns; `schema` is a JSON schema of the reply."""

    model: str
    messages: tuple[dict[str, Any], ...]
    max_output_tokens: int
    use: Use
    privacy: Privacy = "local_only"
    schema: dict[str, Any] | None = None
    thinking: str | None = None
    """Thinking level, `minimal`, `low`, `medium`, `high` or `xhigh`, where the model has it; None takes its default."""
    temperature: float | None = None
    """Sampling temperature; left out for models that ignore sampling parameters."""
    seed: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    """Function declarations (OpenAI style), or a grounding tool such as {"google_search": {}}."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further settings of the reply by their wire names: `stop_sequences`, `top_p`, `top_k`."""
    repeat: int = 0
    stream: bool = False
    """Whether to stream the reply, so that the time to the first token is known."""
    id: str = ""
    """The caller's name for the row, for messages and logs; it decides nothing."""

    def key(self) -> str:
        """Return the digest of what decides the answer: 32 hex digits. The cache, the ledger and batch items go by
        it."""
        body = [self.model, list(self.messages), self.max_output_tokens, self.schema, self.thinking, self.temperature]
        last = [self.more] if self.more else []
        return digest.of_json([*body, self.seed, list(self.tools), self.repeat, *last])[:32]

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON, for the pipe to the courier."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Read the request that `to_json` wrote."""
        return cls(**{**body, "messages": tuple(body["messages"]), "tools": tuple(body["tools"])})

    def grounding(self) -> list[str]:
        """Return the names of tools that are not functions of the caller's own: search, maps, pages, whatever the
        service runs."""
        return [_name(tool) for tool in self.tools if not isinstance(tool.get("function"), dict)]

    def plain(self) -> bool:
        """True if all that reaches the model is the caller's text."""
        return not self.media() and not self.grounding()

    def media(self) -> list[dict[str, Any]]:
        """Return every image, sound, film and document, in order."""
        contents = [message.get("content") for message in self.messages]
        return [part for content in contents if isinstance(content, list) for part in content if is_media_item(part)]

    def texts(self) -> list[str]:
        """Return every text that would leave the machine, the arguments of tool calls, schemas and tools included."""
        found: list[str] = []
        _collect([list(self.messages), list(self.tools), self.schema], found)
        return found


def is_media_item(part: Any) -> bool:
    """True if a part of a turn is an image, a sound, a film or a document."""
    return isinstance(part, dict) and part.get("type") == MEDIA


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("type") or next(iter(tool), "unnamed"))


def _collect(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict) and not is_media_item(value):
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)
