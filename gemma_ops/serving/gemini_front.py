"""Gemini's protocol in front of a service: generateContent, whole and streamed, countTokens, and the list of models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from gemma_ops.data.gemini_rows import gemini
from gemma_ops.data.normal import conversation
from gemma_ops.data.rowerror import RowError
from gemma_ops.serving.engine import TokenChance
from gemma_ops.serving.model import Said
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.showing import read_with_media
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire import gemini_chat
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import gemini_beyond
from gemma_ops.wire.gemini_wire import camel

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "calls": "STOP"}


def read_request(body: Any, *, stream: bool = False) -> Ask:
    """Read the request of generateContent. Raises RefusalError."""
    if not isinstance(body, dict):
        raise RefusalError("Invalid JSON payload received: an object is expected.")
    ask, row = gemini_chat.read_generate(camel(body), stream=stream)
    try:
        raw, tools = gemini(row)
        messages, declared, _ = conversation(raw, tools, asked=True)
    except RowError as error:
        raise RefusalError(error.reason, field="contents", code=error.code) from error
    return replace(ask, messages=messages, tools=declared or ())


def read_shown(body: Any, service: ModelService, *, stream: bool = False) -> Ask:
    """Read the request of generateContent, with its images and sounds where the model takes them. Raises
    RefusalError."""
    senses = service.model.engine.senses
    return read_with_media(body, partial(read_request, stream=stream), lambda one: gemini_beyond(camel(one)), senses)


async def whole_gemini(service: ModelService, ask: Ask, request: str) -> tuple[dict[str, Any], Said]:
    """Return a response with all its candidates, and their usage together."""
    replies, total = await service.replies(ask)
    candidates = [_candidate(said, number, ask) for number, said in enumerate(replies)]
    return {"candidates": candidates, "usageMetadata": _usage(total), **_marks(service, request)}, total


async def gemini_events(
    service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a streamed response; the last says how it ended, and its usage."""
    marks, told = _marks(service, request), 0
    shows = bool(ask.extra.get("thoughts"))
    async for piece in pieces:
        if piece.kind == "thought":
            if not shows:
                continue
            part: dict[str, Any] = {"text": piece.text, "thought": True}
        elif piece.call is not None:
            part = {"functionCall": {"name": piece.call.name, "args": piece.call.arguments}}
        else:
            part = {"text": piece.text}
        candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        new, told = said.chances[told:], len(said.chances)
        yield {"candidates": [candidate | _logprobs(new, ask)], **marks}
    last = {"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": _FINISH[said.end], "index": 0}
    yield {"candidates": [last], "usageMetadata": _usage(said), **marks}


def count_tokens(service: ModelService, body: Any) -> dict[str, Any]:
    """Return what countTokens says: the tokens of the very prompt that generateContent would ask with."""
    asked = body.get("generateContentRequest", body) if isinstance(body, dict) else body
    tokens = len(service.model.prompt(read_shown(asked, service)))
    return {"totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}]}


def gemini_model(service: ModelService) -> dict[str, Any]:
    """Return the served model as Gemini lists one."""
    facts, context = service.facts, service.model.engine.context
    return {
        "name": f"models/{facts.model}",
        "version": facts.version or facts.digest[:12],
        "displayName": facts.model,
        "description": f"{facts.source}, {facts.format}, on {facts.engine}",
        "inputTokenLimit": context,
        "outputTokenLimit": context,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "thinking": service.model.thinks or service.model.both,
    }


def _candidate(said: Said, index: int, ask: Ask) -> dict[str, Any]:
    calls = [(call.name, call.arguments) for call in said.calls]
    parts = gemini_chat.content_parts(said.text, said.thought, calls, thoughts=bool(ask.extra.get("thoughts")))
    content = {"parts": parts, "role": "model"} if parts else {"role": "model"}
    found: dict[str, Any] = {"content": content, "finishReason": _FINISH[said.end], "index": index}
    return found | _logprobs(said.chances, ask)


def _logprobs(chances: list[TokenChance], ask: Ask) -> dict[str, Any]:
    if ask.logprobs is None or not chances:
        return {}
    chosen = [_chance(one) for one in chances]
    top = [{"candidates": [_chance(other) for other in one.likeliest[: ask.logprobs]]} for one in chances]
    mean = sum(one.logprob for one in chances) / len(chances)
    result = {"chosenCandidates": chosen, **({"topCandidates": top} if ask.logprobs else {})}
    return {"avgLogprobs": mean, "logprobsResult": result}


def _chance(one: TokenChance) -> dict[str, Any]:
    return {"token": one.text, "tokenId": one.id, "logProbability": one.logprob}


def _usage(said: Said) -> dict[str, Any]:
    return gemini_chat.usage_metadata(said.prompt_tokens, said.tokens, said.thought_tokens, said.cached_tokens)


def _marks(service: ModelService, request: str) -> dict[str, Any]:
    version = service.facts.version or service.facts.digest[:12]
    return {
        "modelVersion": f"{service.facts.model}/{version}" if version else service.facts.model,
        "responseId": request,
    }
