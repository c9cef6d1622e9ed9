"""What is known of a request when it is decided where it is answered. No word of it: traits and counts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gemma_ops.config import Privacy
from gemma_ops.privacy.classes import class_of


@dataclass(frozen=True)
class LocalState:
    """The local engine now."""

    up: bool = True
    waiting: int = 0
    """Requests that wait for it."""
    wait_seconds: float = 0.0
    """How long one more would wait, as far as that can be told."""
    context: int = 0
    """Tokens that prompt and reply may have together."""
    why_not: str = ""
    """Why it can't be asked this at all, in words; empty where it can."""


@dataclass(frozen=True)
class GeminiState:
    """The way to Gemini now."""

    why_not: str = ""
    """Why it can't be asked this at all (no key, terms, offline, a field that isn't carried); empty where it can."""
    sees: tuple[Privacy, ...] = ("any",)
    """Privacy classes that may be sent under the declared terms."""
    context: int = 0
    """Tokens of input that its model takes."""
    left: float = 0.0
    """Dollars that may still be spent today."""
    of: str = "the budget"
    """What they are left of."""
    dollars: float | None = None
    """What the request would cost there, a reply of full length included; None where no price is known."""
    most: float | None = None
    """The most that it can cost there, which is reserved."""


@dataclass(frozen=True)
class Signals:
    """One request."""

    declared: Privacy | None = None
    """The class that it declares; None is `local_only`."""
    floor: Privacy = "any"
    """The laxest class that the server lets it declare."""
    found: tuple[str, ...] = ()
    """Detectors that found something, by name."""
    scanned: bool = True
    """Whether the detectors saw all of it in their time."""
    learned: Privacy = "any"
    """Where a model spoke in the conversation before: the class of what the local one learned, for it may have been
    it."""
    tokens: int = 0
    """Of the prompt."""
    reply: int = 0
    """Tokens kept free for the reply."""
    bound: int = 0
    """The most tokens that the prompt can have in any model's counting."""
    modalities: tuple[str, ...] = ("text",)
    functions: int = 0
    """Functions of the client's own that the model may call; both lanes take them."""
    hosted: tuple[str, ...] = ()
    """Tools that only a service runs: `search`, `code`, `url`, or as the request calls them."""
    task: str = ""
    slices: tuple[tuple[str, str], ...] = ()
    """The values of the task's slices, as far as they are declared: (`lang`, `de`)."""
    local: LocalState = field(default_factory=LocalState)
    gemini: GeminiState = field(default_factory=GeminiState)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for a log."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """What `to_json` wrote. Raises TypeError for keys that are none."""
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
