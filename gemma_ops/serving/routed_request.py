"""A request for the model `auto`, read for both lanes: what it declares, what it needs, and how large it is.

Its class comes from the header `x-gemma-ops-privacy`, from its own metadata (OpenAI) or labels (Gemini), or from its
API key, and the strictest counts; task and slices the same way. What a client writes there reaches no log, unless the
evaluation knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from gemma_ops.config import Privacy
from gemma_ops.data.normal import conversation
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import OpsError
from gemma_ops.gemini import prices
from gemma_ops.privacy.classes import PRIVACY, strictest
from gemma_ops.routing.gemini_lane import CarriedRequest, GeminiLane, carried_content
from gemma_ops.routing.reply_estimate import estimate_reply
from gemma_ops.routing.routing_evidence import EvidenceTable
from gemma_ops.routing.routing_policy import RoutingPolicy
from gemma_ops.routing.scan import scan, text_leaves
from gemma_ops.routing.signals import LocalState, Signals
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import Beyond

PRIVACY_HEADER, TASK_HEADER, SLICES_HEADER = "x-gemma-ops-privacy", "x-gemma-ops-task", "x-gemma-ops-slices"
_SHOWN_TOKENS = 1120
"""Tokens that an image usually becomes at Gemini (https://ai.google.dev/gemini-api/docs/media-resolution)."""
_SAFE_FIELDS = ("thinking", "tool_choice")
"""Fields whose refusals are about the model alone, so that their words may be logged."""


@dataclass(frozen=True)
class Declared:
    """Declarations of a request about itself."""

    privacy: Privacy | None
    task: str
    slices: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RoutedRequest:
    """A request as both lanes would take it, and what decides between them."""

    ask: Ask
    carried: CarriedRequest
    signals: Signals


def read_declared(request: Request, body: Mapping[str, Any], of_key: Privacy | None) -> Declared:
    """Read the declarations of a request; `of_key` is the class of what is asked with its key. Raises RefusalError for
    a class that is none."""
    within = body.get("metadata") or body.get("labels") or {}
    within = within if isinstance(within, dict) else {}
    given = (request.headers.get(PRIVACY_HEADER), within.get("privacy"), of_key)
    classes = [value for value in given if value is not None]
    if strange := [value for value in classes if value not in PRIVACY]:
        raise RefusalError(
            f"{str(strange[0])[:40]!r} is no privacy class: declare {', '.join(PRIVACY)}",
            field="metadata.privacy", code="privacy",
        )  # fmt: skip
    task = str(request.headers.get(TASK_HEADER) or within.get("task") or "")
    pairs = [pair.partition("=") for pair in (request.headers.get(SLICES_HEADER) or "").split(",") if "=" in pair]
    slices = [(name.strip(), value.strip()) for name, _, value in pairs]
    slices += [
        (str(key).removeprefix("slice."), str(value)) for key, value in within.items() if str(key).startswith("slice.")
    ]
    return Declared(strictest(classes) if classes else None, task, tuple(slices))  # type: ignore[arg-type]


def declared_class(request: Request, body: Any, of_key: Privacy | None) -> Privacy | None:
    """Return the class that a request declares; None where it declares none, or something that is none."""
    try:
        return read_declared(request, body if isinstance(body, dict) else {}, of_key).privacy
    except RefusalError:
        return None


async def read_routed(
    declared: Declared,
    ask: Ask,
    beyond: Beyond,
    *,
    service: ModelService,
    lane: GeminiLane,
    policy: RoutingPolicy,
    table: EvidenceTable,
    floor: Privacy,
    number: str,
) -> RoutedRequest:
    """Read a request for both lanes. Raises RefusalError for a conversation that is none."""
    messages, tools = _conversation(ask)
    reply = ask.max_tokens or service.model.usual
    sent = carried_content(
        ask, beyond.restored(messages), tools, policy.gemini, hosted=beyond.hosted, level=beyond.level,
        reply=reply, number=number,
    )  # fmt: skip
    texts = list(_texts(ask, messages, tools))
    found, (prompt_tokens, why_not) = await asyncio.gather(
        asyncio.to_thread(scan, texts, policy.detectors), asyncio.to_thread(_counted, service, ask, texts)
    )
    shown = _SHOWN_TOKENS * len(beyond.shown)
    counted = bool(service.model.engine.senses) and not why_not  # what is shown, too
    tokens = prompt_tokens + (0 if counted else shown)
    bound = prices.request_bound(sent.request)
    expected, most = estimate_reply(
        policy.gemini, tokens=prompt_tokens + shown, reply=reply, bound=bound, at=datetime.now(UTC), tier=lane.tier
    )
    state, slots, context = lane.state(), service.slots, service.model.engine.context
    known = (declared.task, "", "") in table.lines
    spoken = any(message["role"] == "assistant" for message in messages)
    signals = Signals(
        declared=declared.privacy, floor=floor, found=found.kinds, scanned=found.whole,
        learned=service.facts.learned if spoken else "any", tokens=tokens, bound=bound,
        reply=ask.max_tokens or min(service.model.usual, context // 4),
        modalities=beyond.modalities, functions=len(tools), hosted=beyond.hosted,
        task=declared.task if known else "", slices=table.known(declared.task, declared.slices),
        local=LocalState(
            up=service.model.engine.alive() and not service.draining, waiting=slots.waiting,
            wait_seconds=slots.expected_wait(), context=context, why_not=why_not,
        ),
        gemini=replace(state, why_not=state.why_not or sent.why_not, dollars=expected, most=most),
    )  # fmt: skip
    return RoutedRequest(ask, sent, signals)


def _conversation(ask: Ask) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if ask.raw is not None:
        return [{"role": "user", "content": ask.raw if isinstance(ask.raw, str) else ""}], []
    try:
        messages, tools, _ = conversation([dict(one) for one in ask.messages], list(ask.tools) or None, asked=True)
    except RowError as error:
        raise RefusalError(error.reason, field="messages", code=error.code) from error
    return messages, tools or []


def _counted(service: ModelService, ask: Ask, texts: list[str]) -> tuple[int, str]:
    """Return the prompt's tokens as the local model counts them, and why it can't be asked so; then they are
    estimated."""
    try:
        tokens = len(service.model.prompt(ask))
        service.model.begun(ask)
    except RefusalError as refusal:
        safe = refusal.field in _SAFE_FIELDS
        return sum(
            map(len, texts)
        ) // 4, refusal.message if safe else f"its prompt is refused ({refusal.code or refusal.field})"
    except OpsError:
        return sum(map(len, texts)) // 4, "its prompt can't be made"
    return tokens, ""


def _texts(ask: Ask, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Iterator[str]:
    """Yield every text that would leave: a turn's parts joined, so that nothing hides between two of them."""
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        yield "".join(part.get("text", "") if isinstance(part, dict) else str(part or "") for part in parts)
        if content and str(content)[:1] in "{[":
            yield "\n".join(text_leaves(str(content)))
        yield "\n".join(text_leaves(message.get("tool_calls") or []))
    yield "\n".join(text_leaves([tools, ask.schema, list(ask.stop)]))
