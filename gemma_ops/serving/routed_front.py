"""Requests for the model `auto` in each protocol, read so that nothing of them is dropped, in front of the router; and
the router itself, as a configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.gemini.service_access import rehearsal
from gemma_ops.routing.decision_log import DecisionLog, read_log
from gemma_ops.routing.gemini_lane import GeminiLane
from gemma_ops.routing.routing_policy import load_policy
from gemma_ops.serving import gemini_front
from gemma_ops.serving.key_budgets import KeyBudgets
from gemma_ops.serving.reply_way import PendingRequest
from gemma_ops.serving.routed import Router, SpokenProtocol
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import gemini_beyond, openai_beyond
from gemma_ops.wire.gemini_wire import camel


def open_router(machine: MachineConfig, settings: ServeConfig, *, budgeted: bool = False) -> Router | None:
    """Return the router that `serve.routing` asks for; None where it asks for none. Gemini may be shut: then it says
    why. `budgeted`: whether keys have budgets, so that what they spent today is read from the log.

    Raises ConfigError for a policy that is none or names an unknown model, MachineError where its log can't be written,
    DataError where it holds something else.
    """
    if settings.routing is None:
        return None
    policy = load_policy(settings.routing)
    lane = GeminiLane(machine, policy)
    path = Path(settings.routing_log) if settings.routing_log else Path(machine.runs) / "routing.jsonl"
    try:
        log = DecisionLog(path)
        budgets = KeyBudgets(read_log(path) if budgeted else ())
    except BaseException:
        lane.close()
        raise
    name = Path(settings.routing).stem
    return Router(policy, lane, log, budgets, name=name, floor=settings.privacy, rehearsal=rehearsal(machine.gemini))


async def routed_openai(
    router: Router,
    request: Request,
    body: Any,
    read: Callable[[Any], Ask],
    asked: PendingRequest,
    manner: SpokenProtocol,
) -> Response:
    """Answer a request of one of OpenAI's protocols."""
    beyond = openai_beyond(body)
    ask = replace(read(beyond.body), shown=beyond.shown)
    if ask.stream and ask.count > 1:
        raise RefusalError("n above 1 is not streamed: send several requests", field="n")
    return await router.answer(request, body, ask, beyond, asked, manner)


async def routed_gemini(
    router: Router, request: Request, body: Any, asked: PendingRequest, manner: SpokenProtocol, *, stream: bool
) -> Response:
    """Answer a request of Gemini's protocol."""
    if not isinstance(body, dict):
        raise RefusalError("Invalid JSON payload received: an object is expected.")
    beyond = gemini_beyond(camel(body))
    ask = replace(gemini_front.read_request(beyond.body, stream=stream), shown=beyond.shown)
    if stream and request.query_params.get("alt") != "sse":
        raise RefusalError("streams are sent as server-sent events: ask with ?alt=sse", field="alt")
    if stream and ask.count > 1:
        raise RefusalError("several candidates are not streamed", field="candidateCount")
    return await router.answer(request, body, ask, beyond, asked, manner)
