"""One request to Gemini: everything that decides the answer, and everything that decides whether it may be sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from gemma_ops import digest
from gemma_ops.config import Privacy

Use = Literal["evaluate", "judge", "synth"]
"""What money is spent on; `synth` is what trains, and must not come from grounding tools."""


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
    """`minimal`, `low`, `medium`, `high` or `xhigh`, where the model has that level; None takes its default."""
    temperature: float | None = None
    """Left out for models that ignore sampling parameters."""
    seed: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    """Function declarations (OpenAI style), or a grounding tool such as {"google_search": {}}."""
    repeat: int = 0
    stream: bool = False
    """Stream the reply, so that the time to the first token is known."""
    id: str = ""
    """The caller's name for the row, for messages and logs; decides nothing."""

    def key(self) -> str:
        """Digest of what decides the answer: 32 hex digits. The cache, the ledger and batch items go by it."""
        body = [self.model, list(self.messages), self.max_output_tokens, self.schema, self.thinking, self.temperature]
        return digest.of_json([*body, self.seed, list(self.tools), self.repeat])[:32]

    def to_json(self) -> dict[str, Any]:
        """The request as JSON, for the pipe to the courier."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """The request that `to_json` wrote."""
        return cls(**{**body, "messages": tuple(body["messages"]), "tools": tuple(body["tools"])})

    def grounding(self) -> list[str]:
        """Names of tools that are not functions of the caller's own: search, maps, pages, whatever the service runs."""
        return [_name(tool) for tool in self.tools if not isinstance(tool.get("function"), dict)]

    def texts(self) -> list[str]:
        """Every text that would leave the machine, the arguments of tool calls, schemas and tools included."""
        found: list[str] = []
        _collect([list(self.messages), list(self.tools), self.schema], found)
        return found


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("type") or next(iter(tool), "unnamed"))


def _collect(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)
