"""The protocol of a target: whatever can answer a conversation.

A target takes conversations, not tokens: how a conversation becomes a prompt is its own business. It gets all batches
at once, so that it can size its context for the longest prompt or send them together, and yields one list of answers
per batch, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import Privacy
from gemma_ops.data.control import Policy
from gemma_ops.errors import BoundaryError
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.runs import digest

LOCAL: frozenset[str] = frozenset(PRIVACY)
"""Privacy classes that a target on this machine may see: all."""

TEXT = frozenset({"text"})
"""Kinds of input of a target that names no others."""


class Target(Protocol):
    """Something that answers."""

    name: str
    """Name in a configuration: `base`, `q8_0`, `gemini:gemini-3.8-flash`, `openai:http://host:8000/v1#name`."""
    identity: str
    """Digest of the model, or a service's model id with what it is asked for: part of every answer's key."""
    sees: frozenset[str]
    """Privacy classes of prompts that may be sent to it."""
    learned: Privacy
    """Strictest class of the rows that it learned from: its answers are at least as private."""
    family: str
    """Lineage: `gemma`, `gemini`, or the name of another family; models of related families judge each other kindly."""
    place: str
    """Destination of prompts, in words for a report: `stays here`, `sent: paid, not logged`."""
    lockstep: bool
    """Whether the prompts of a batch are decoded together: every one of them then waits as long as the whole batch
    takes."""

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Answer each batch, in order. A refusal is an answer that ended `blocked`, a failure one that ended `error`.

        `schema`, a JSON schema, asks for JSON of that shape: enforced while decoding where the engine can, asked for in
        words otherwise. Callers validate the text themselves.
        """
        ...

    def close(self) -> None:
        """Free what the target holds."""
        ...


@dataclass(frozen=True)
class AskingMode:
    """The mode in which local models are asked, the same for all targets of an evaluation."""

    thinking: bool = False
    thought_tokens: int = 1024
    """Tokens that a reply may spend on thoughts before its answer, with thinking on."""
    control: Policy = "refuse"
    """Treatment of a question whose text spells a control token."""

    def identity(self, model: str) -> str:
        """Return the identity of who answers: a model's digest, with the mode it is asked in where that is not the
        usual one."""
        return digest.of_json([model, asdict(self)]) if self.thinking or self.control != "refuse" else model


def reads(target: Target) -> frozenset[str]:
    """Return what a target takes: `text`, and of `image` and `audio` what its attribute `reads` names as well."""
    return TEXT | getattr(target, "reads", TEXT)


@dataclass(frozen=True)
class EnginePace:
    """What a target's engine computes with, for readers of its times."""

    device: str = ""
    """Device: `CPU`, or the name of a GPU; empty where the engine is not ours."""
    threads: int | None = None
    """CPU threads; None on a GPU, and where it is not known."""
    at_once: int | None = None
    """Concurrent requests; None where that is the size of a batch."""


def pace_of(target: Target) -> EnginePace:
    """Return what a target's attribute `pace` says; empty facts for a target without one."""
    found: EnginePace = getattr(target, "pace", EnginePace())
    return found


def learned_by(target: Target) -> Privacy:
    """Return the class of what a target learned; the strictest where it does not say."""
    return getattr(target, "learned", "local_only")


def guard_prompts(target: Target, prompts: Sequence[Prompt], what: str) -> None:
    """Refuse to show prompts to a target that may not see them, all of them, before the first is sent.

    `what` names where they are from. Raises BoundaryError naming the first that is hidden.
    """
    hidden = [prompt for prompt in prompts if prompt.privacy not in target.sees]
    if hidden:
        raise BoundaryError(
            f"{len(hidden)} of {len(prompts)} rows of {what} are {hidden[0].privacy} and target {target.name} may "
            f"not see them (the first: {hidden[0].id})",
            f"leave {target.name} out, or relax `privacy` of these rows if they may leave the machine",
        )
