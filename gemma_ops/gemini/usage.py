"""Token usage of one reply, as the service counts it.

Five counts decide the bill: input is `prompt` less `cached`, plus `tool`; the cached part has a price of its own;
output is `output` plus `thoughts`, because thinking is billed as output and hidden from the text. A tool that reads
only the visible candidates under-reports a thinking model by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_NAMES = {
    "prompt": ("prompt_token_count", "promptTokenCount"),
    "cached": ("cached_content_token_count", "cachedContentTokenCount"),
    "output": ("candidates_token_count", "candidatesTokenCount"),
    "thoughts": ("thoughts_token_count", "thoughtsTokenCount"),
    "tool": ("tool_use_prompt_token_count", "toolUsePromptTokenCount"),
    "total": ("total_token_count", "totalTokenCount"),
}
"""Field names in the SDK's snake case and the wire's camel case; files of batch results mix the two."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request. `prompt` includes `cached`; `output` excludes `thoughts`."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    thoughts: int = 0
    tool: int = 0
    """Tokens that built-in tools fed to the model on top of the prompt."""

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any] | None) -> Usage | None:
        """Read `usageMetadata`. A count that is missing is zero; a reply without any count is None: nobody knows what
        it used, and zero would be a claim.

        Where the service's own total is larger than the counts it names, the rest counts as thoughts: tokens were
        billed that have no name here, and output is the most expensive they can have been.
        """
        if metadata is None:
            return None
        counts = {name: _count(metadata, spellings) for name, spellings in _NAMES.items()}
        if all(count is None for count in counts.values()):
            return None
        known = {name: count or 0 for name, count in counts.items()}
        total = known.pop("total")
        named = known["prompt"] + known["output"] + known["thoughts"] + known["tool"]
        known["thoughts"] += max(total - named, 0)
        return cls(**known)

    @property
    def fresh(self) -> int:
        """Return the input tokens at the full price."""
        return max(self.prompt - self.cached, 0) + self.tool

    @property
    def size(self) -> int:
        """Return all input tokens, which the long-context threshold looks at."""
        return max(self.prompt, self.cached) + self.tool

    @property
    def generated(self) -> int:
        """Return the output tokens that are billed: the visible ones and the thoughts."""
        return self.output + self.thoughts

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def _count(metadata: Mapping[str, Any], spellings: tuple[str, ...]) -> int | None:
    for name in spellings:
        value = metadata.get(name)
        if value is not None:
            return max(int(value), 0)
    return None
