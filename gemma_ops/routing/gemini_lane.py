"""The lane to Gemini: a request for a local model, sent through the door with nothing of it dropped.

What the service can't be asked (several replies, probabilities of tokens) stands against the lane and is reported by
name; what its model only ignores is reported next to the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemma_ops.config import MachineConfig, Privacy
from gemma_ops.errors import OpsError
from gemma_ops.gemini.live_door import LiveGemini
from gemma_ops.gemini.models import ModelFacts, model_facts
from gemma_ops.gemini.pipe import PipeMessage
from gemma_ops.gemini.request import Request
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.routing.routing_policy import BOUNDED, GeminiRules, RoutingPolicy
from gemma_ops.routing.signals import GeminiState
from gemma_ops.targets.gemini_target import output_limit, seen_by
from gemma_ops.wire.ask import Ask

_NONE = ("none", "minimal")


@dataclass(frozen=True)
class CarriedRequest:
    """A request as it would be sent, and remarks on that."""

    request: Request
    notes: tuple[str, ...]
    """Parts that Gemini's model ignores, a sentence each."""
    why_not: str
    """Parts of it that can't be sent, in words; empty where all of it can."""


class GeminiLane:
    """One policy's access to Gemini, closed where the settings or the environment don't allow it."""

    def __init__(self, machine: MachineConfig, policy: RoutingPolicy) -> None:
        """Open the lane; raises ConfigError for a model that is not known, or a thinking level that it doesn't have."""
        self.rules = policy.gemini
        self.facts = model_facts(self.rules.model)
        tries = min(self.rules.attempts, machine.gemini.attempts)
        settings = machine.gemini.model_copy(update={"attempts": tries, "batch": "never"})
        seen = seen_by(self.rules.model, settings)
        self._sees = tuple(one for one in PRIVACY if one in seen)
        self.tier = settings.service_tier
        self.shut = ""
        """Reason why nothing can be sent, in words; empty where it can."""
        self._live: LiveGemini | None = None
        try:
            self._live = LiveGemini(
                machine.model_copy(update={"gemini": settings}), dollars_per_day=policy.budget.dollars_per_day
            )
        except OpsError as error:
            self.shut = error.what.splitlines()[0]

    def state(self) -> GeminiState:
        """Return the state of the lane now, independent of any request."""
        left = self._live.left() if self._live else 0.0
        return GeminiState(why_not=self.shut, sees=self._sees, context=self.facts.context, left=left)

    async def answer(self, request: Request) -> AsyncGenerator[PipeMessage]:
        """Yield what comes of a request: pieces of a stream, and last an answer or an error. Raises BoundaryError and
        what else the door refuses; then nothing was sent."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[PipeMessage]()

        def hear(message: PipeMessage) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended: nobody listens
                loop.call_soon_threadsafe(heard.put_nowait, message)

        assert self._live is not None, "the lane is shut"
        await asyncio.to_thread(self._live.ask, request, hear)
        while True:
            message = await heard.get()
            yield message
            if not message.piece:
                return

    def close(self) -> None:
        """Let the courier go."""
        if self._live is not None:
            self._live.close()


def carried_content(
    ask: Ask,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    rules: GeminiRules,
    *,
    hosted: Sequence[str],
    level: str | None,
    reply: int,
    number: str,
) -> CarriedRequest:
    """Return a request for a local model as one to Gemini. `messages` are in OpenAI's spelling, with what is shown in
    it; `reply` are the tokens of the visible reply. Its class is the strictest until somebody decides it."""
    known = model_facts(rules.model)
    thinking, notes = _thinking(ask, rules, known, level)
    if known.sampling == "ignored":
        given = [name for name in ("temperature", "top_p", "top_k", "seed") if getattr(ask, name) not in (None, 1)]
        notes += [f"{rules.model} ignores {' and '.join(given)}"] if given else []
    if ask.extra.get("thoughts"):
        notes.append(f"the thoughts of {rules.model} are not shown")
    more: dict[str, Any] = {"stop_sequences": list(ask.stop)} if ask.stop else {}
    more |= {name: value for name in ("top_p", "top_k") if (value := getattr(ask, name)) is not None}
    services: list[dict[str, Any]] = [{BOUNDED.get(name, name): {}} for name in hosted]
    request = Request(
        model=rules.model,
        messages=tuple(dict(message) for message in messages),
        max_output_tokens=output_limit(known, thinking, reply),
        use="serve",
        schema=ask.schema,
        thinking=thinking,
        temperature=ask.temperature,
        seed=ask.seed,
        tools=(*(dict(tool) for tool in tools), *services),
        more=more,
        repeat=secrets.randbits(48),
        stream=ask.stream,
        id=number,
    )
    return CarriedRequest(request, tuple(notes), _why_not(ask))


def classed(request: Request, privacy: Privacy) -> Request:
    """Return the request under the class that was decided."""
    return replace(request, privacy=privacy)


def _why_not(ask: Ask) -> str:
    asked = {
        "several replies to one request": ask.count > 1,
        "probabilities of tokens": ask.logprobs is not None,
        "calls that are required": bool(ask.must_call),
        "texts that are continued as they stand": ask.raw is not None,
    }
    wanted = [words for words, is_wanted in asked.items() if is_wanted]
    return f"{' and '.join(wanted)} are not carried to it" if wanted else ""


def _thinking(ask: Ask, rules: GeminiRules, known: ModelFacts, level: str | None) -> tuple[Any, list[str]]:
    """Return the thinking level to ask for, and remarks on it."""
    if level in known.thinking:
        return level, []
    if level is None and ask.thinking is None:
        return rules.thinking, []
    least = known.thinking[0] if known.thinking else None
    if (level in _NONE or ask.thinking is False) and least:
        return least, [f"{known.name} always thinks: asked at its lowest level, {least}"]
    wanted = level or "on"
    return rules.thinking, [f"{known.name} has no level of thinking {wanted}: asked at {rules.thinking or 'its own'}"]
