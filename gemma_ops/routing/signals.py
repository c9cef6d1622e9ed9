"""Facts about a request, from which it is decided where it is answered. No word of it: traits and counts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gemma_ops.config import Privacy
from gemma_ops.privacy.classes import class_of


@dataclass(frozen=True)
class LocalState:
    """State of the local engine."""

    up: bool = True
    waiting: int = 0
    """Number of requests that wait for the engine."""
    wait_seconds: float = 0.0
    """Seconds that one more request would wait, as far as that can be estimated."""
    context: int = 0
    """Most tokens that prompt and reply may have together."""
    why_not: str = ""
    """Reason why it can't be asked this at all, in words; empty where it can."""


@dataclass(frozen=True)
class GeminiState:
    """State of the access to Gemini."""

    why_not: str = ""
    """Reason why it can't be asked this at all (no key, terms, offline, a field that can't be sent); empty where it
    can."""
    sees: tuple[Privacy, ...] = ("any",)
    """Privacy classes that may be sent under the declared terms."""
    context: int = 0
    """Most tokens of input that its model takes."""
    left: float = 0.0
    """US dollars that may still be spent today."""
    of: str = "the budget"
    """Limit that they are left of, in words."""
    dollars: float | None = None
    """US dollars that the request would cost there, a reply of full length included; None where no price is known."""
    most: float | None = None
    """US dollars that it can cost there at most, which are reserved."""


@dataclass(frozen=True)
class Signals:
    """Facts about one request."""

    declared: Privacy | None = None
    """Privacy class that it declares; None is `local_only`."""
    floor: Privacy = "any"
    """Least strict class that the server lets it declare."""
    found: tuple[str, ...] = ()
    """Names of detectors that found something."""
    scanned: bool = True
    """Whether the detectors scanned all of it in their time."""
    learned: Privacy = "any"
    """Privacy class of what the local model learned, where a model spoke earlier in the conversation: it may have been
    that one."""
    tokens: int = 0
    """Number of tokens of the prompt."""
    reply: int = 0
    """Number of tokens kept free for the reply."""
    bound: int = 0
    """Upper bound of the prompt's tokens with any model's tokenizer."""
    modalities: tuple[str, ...] = ("text",)
    functions: int = 0
    """Number of the client's own functions that the model may call; both lanes take them."""
    hosted: tuple[str, ...] = ()
    """Tools that only a service runs: `search`, `code`, `url`, or as the request calls them."""
    task: str = ""
    slices: tuple[tuple[str, str], ...] = ()
    """The values of the task's slices, as far as they are declared: (`lang`, `de`)."""
    local: LocalState = field(default_factory=LocalState)
    gemini: GeminiState = field(default_factory=GeminiState)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a JSON object, for a log."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises TypeError for keys that are none."""
        declared = body.get("declared")
        return cls(
            **{
                **body,
                "declared": None if declared is None else class_of(declared),
                "found": tuple(body.get("found", ())),
                "modalities": tuple(body.get("modalities", ("text",))),
                "hosted": tuple(body.get("hosted", ())),
                "slices": tuple((str(name), str(value)) for name, value in body.get("slices", ())),
                "local": LocalState(**body.get("local", {})),
                "gemini": GeminiState(
                    **{**body.get("gemini", {}), "sees": tuple(body.get("gemini", {}).get("sees", ()))}
                ),
            }
        )
