"""OpenAI's completions in front of a service: continuations of a text, whole and streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from gemma_ops.serving.engine import TokenChance
from gemma_ops.serving.model import Said
from gemma_ops.serving.openai_front import usage_of
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire.ask import Ask
from gemma_ops.wire.completions import choice


async def whole_completion(service: ModelService, ask: Ask, request: str) -> tuple[dict[str, Any], Said]:
    """Return a completion with all its choices, and their usage together."""
    replies, total = await service.replies(ask)
    choices = [choice(at, said.text, said.end, _logprobs(said.chances, ask)) for at, said in enumerate(replies)]
    return {**_head(service, request), "choices": choices, "usage": usage_of(total)}, total


async def completion_chunks(
    service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed completion, its usage last where it was asked for."""
    head, told = _head(service, request), 0
    async for piece in pieces:
        new, told = said.chances[told:], len(said.chances)
        yield {**head, "choices": [choice(0, piece.text, None, _logprobs(new, ask))]}
    yield {**head, "choices": [choice(0, "", said.end, _logprobs(said.chances[told:], ask))]}
    if ask.extra.get("usage"):
        yield {**head, "choices": [], "usage": usage_of(said)}


def _head(service: ModelService, request: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request}", "object": "text_completion", "created": int(time.time()), "model": service.facts.model,
        "system_fingerprint": service.facts.digest[:16] or None,
    }  # fmt: skip


def _logprobs(chances: list[TokenChance], ask: Ask) -> dict[str, Any] | None:
    """Return logprobs as this older protocol has them: four lists, a place for each token."""
    if ask.logprobs is None:
        return None
    offsets, at = list[int](), 0
    for one in chances:
        offsets.append(at)
        at += len(one.text)
    return {
        "tokens": [one.text for one in chances],
        "token_logprobs": [one.logprob for one in chances],
        "top_logprobs": [{other.text: other.logprob for other in one.likeliest[: ask.logprobs]} for one in chances],
        "text_offset": offsets,
    }
