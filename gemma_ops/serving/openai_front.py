"""OpenAI's protocol in front of a service: chat completions, whole and streamed, and the list of models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from gemma_ops.serving.engine import TokenChance
from gemma_ops.serving.model import Said
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire import openai
from gemma_ops.wire.ask import Ask

_FINISH = {"stop": "stop", "length": "length", "calls": "tool_calls"}


async def whole_chat(service: ModelService, ask: Ask, request: str) -> tuple[dict[str, Any], Said]:
    """Return a chat completion with all its choices, and their usage together."""
    replies, total = await service.replies(ask)
    choices = [
        {
            "index": number,
            "message": _message(said, request),
            "finish_reason": _FINISH[said.end],
            "logprobs": _logprobs(said.chances, ask),
        }
        for number, said in enumerate(replies)
    ]
    body = _head(service, request, "chat.completion") | {"choices": choices, "usage": usage_of(total)}
    return body, total


async def chat_chunks(
    service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed completion, its usage last where it was asked for."""
    head = _head(service, request, "chat.completion.chunk")
    empty = {"usage": None} if ask.extra.get("usage") else {}

    def chunk(
        delta: dict[str, Any], finish: str | None = None, chances: list[TokenChance] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": _logprobs(chances or [], ask)}
        return {**head, "choices": [choice], **empty}

    yield chunk({"role": "assistant", "content": ""})
    told = 0
    async for piece in pieces:
        if piece.kind == "thought":
            yield chunk({"reasoning_content": piece.text})
        elif piece.call is not None:
            (call,) = openai.tool_calls([(piece.call.name, piece.call.arguments)], request, first=len(said.calls) - 1)
            yield chunk({"tool_calls": [{"index": len(said.calls) - 1, **call}]})
        else:
            new, told = said.chances[told:], len(said.chances)
            yield chunk({"content": piece.text}, chances=new)
    yield chunk({}, _FINISH[said.end], said.chances[told:])
    if ask.extra.get("usage"):
        yield {**head, "choices": [], "usage": usage_of(said)}


def models(service: ModelService) -> dict[str, Any]:
    """Return the list of models: the one that is served."""
    return {"object": "list", "data": [openai_model(service)]}


def openai_model(service: ModelService) -> dict[str, Any]:
    """Return the served model as OpenAI lists one."""
    return {"id": service.facts.model, "object": "model", "created": int(service.began), "owned_by": "gemma-ops"}


def _head(service: ModelService, request: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request}", "object": kind, "created": int(time.time()), "model": service.facts.model,
        "system_fingerprint": service.facts.digest[:16] or None,
    }  # fmt: skip


def _message(said: Said, request: str) -> dict[str, Any]:
    calls = openai.tool_calls([(call.name, call.arguments) for call in said.calls], request)
    message: dict[str, Any] = {"role": "assistant", "content": said.text or (None if calls else ""), "refusal": None}
    if said.thought:
        message["reasoning_content"] = said.thought
    if calls:
        message["tool_calls"] = calls
    return message


def _logprobs(chances: list[TokenChance], ask: Ask) -> dict[str, Any] | None:
    if ask.logprobs is None:
        return None
    shown = [
        chance_body(one) | {"top_logprobs": [chance_body(other) for other in one.likeliest[: ask.logprobs]]}
        for one in chances
    ]
    return {"content": shown, "refusal": None}


def chance_body(one: TokenChance) -> dict[str, Any]:
    """Return a token with its logprob."""
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode())}


def usage_of(said: Said) -> dict[str, Any]:
    """Return the usage of a reply."""
    return openai.completion_usage(said.prompt_tokens, said.tokens, said.thought_tokens, said.cached_tokens)
