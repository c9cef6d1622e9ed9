"""OpenAI's responses in front of a service: output items, whole, and as the events that build them up.

The events and their order: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gemma_ops.serving.model import Said
from gemma_ops.serving.openai_front import chance_body
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire import responses as wire
from gemma_ops.wire.ask import Ask


async def whole_response(service: ModelService, ask: Ask, request: str) -> tuple[dict[str, Any], Said]:
    """Return a response with its output items, and its usage."""
    said = await service.reply(ask)
    body = wire.response_body(ask, request, service.facts.model, int(time.time()))
    items = []
    if said.thought:
        items.append(wire.reasoning_item(request, said.thought, "completed"))
    if said.text or not said.calls:
        logprobs = _logprobs(said, ask, 0)
        items.append(wire.message_item(request, said.text, _status(said), logprobs))
    items += [
        wire.call_item(f"{request}_{at}", call.name, json.dumps(call.arguments, ensure_ascii=False), "completed")
        for at, call in enumerate(said.calls)
    ]
    return body | _ended(said) | {"output": items}, said


async def response_events(
    service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a streamed response."""
    body = wire.response_body(ask, request, service.facts.model, int(time.time()))
    made = _Items(request, ask, said)
    yield made.event("response.created", response=body)
    yield made.event("response.in_progress", response=body)
    async for piece in pieces:
        for event in made.take(piece):
            yield event
    for event in made.close(_status(said)):
        yield event
    kind = "response.completed" if said.end != "length" else "response.incomplete"
    yield made.event(kind, response=body | _ended(said) | {"output": made.output})


def _status(said: Said) -> str:
    return "incomplete" if said.end == "length" else "completed"


def _ended(said: Said) -> dict[str, Any]:
    counts = (said.prompt_tokens, said.tokens, said.thought_tokens, said.cached_tokens)
    cut = {"reason": "max_output_tokens"} if said.end == "length" else None
    return {"status": _status(said), "incomplete_details": cut, "usage": wire.response_usage(*counts)}


def _logprobs(said: Said, ask: Ask, first: int) -> list[dict[str, Any]]:
    if ask.logprobs is None:
        return []
    return [
        chance_body(one) | {"top_logprobs": [chance_body(other) for other in one.likeliest[: ask.logprobs]]}
        for one in said.chances[first:]
    ]


class _Items:
    """Output items that grow: at most one of them is open."""

    def __init__(self, request: str, ask: Ask, said: Said) -> None:
        self.output: list[dict[str, Any]] = []
        self._request, self._ask, self._said = request, ask, said
        self._number = self._told = 0
        self._open = ""
        self._text = ""

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return the next event."""
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def take(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield the events of a piece."""
        if piece.call is not None:
            yield from self.close("completed")
            yield from self._call(piece.call.name, json.dumps(piece.call.arguments, ensure_ascii=False))
            return
        if piece.kind != self._open:
            yield from self.close("completed")
            yield from self._begin(piece.kind)
        self._text += piece.text
        more = {"item_id": self._id, "output_index": len(self.output), "content_index": 0, "delta": piece.text}
        if piece.kind == "thought":
            yield self.event("response.reasoning_text.delta", **more)
        else:
            new, self._told = _logprobs(self._said, self._ask, self._told), len(self._said.chances)
            yield self.event("response.output_text.delta", **more, logprobs=new)

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """Yield the events that end the open item."""
        if not self._open:
            return
        place = {"item_id": self._id, "output_index": len(self.output), "content_index": 0}
        if self._open == "thought":
            item = wire.reasoning_item(self._request, self._text, status)
            yield self.event("response.reasoning_text.done", **place, text=self._text)
        else:
            item = wire.message_item(self._request, self._text, status, _logprobs(self._said, self._ask, 0))
            (part,) = item["content"]
            yield self.event("response.output_text.done", **place, text=self._text, logprobs=part["logprobs"])
            yield self.event("response.content_part.done", **place, part=part)
        yield self.event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._open = self._text = ""

    @property
    def _id(self) -> str:
        return f"{'rs' if self._open == 'thought' else 'msg'}_{self._request}"

    def _begin(self, kind: str) -> Iterator[dict[str, Any]]:
        self._open, at = kind, len(self.output)
        if kind == "thought":
            item = wire.reasoning_item(self._request, "", "in_progress")
        else:
            item = wire.message_item(self._request, None, "in_progress")
        yield self.event("response.output_item.added", output_index=at, item=item)
        if kind != "thought":
            part = wire.text_part("")
            yield self.event(
                "response.content_part.added", item_id=self._id, output_index=at, content_index=0, part=part
            )

    def _call(self, name: str, arguments: str) -> Iterator[dict[str, Any]]:
        at, number = len(self.output), f"{self._request}_{len(self._said.calls) - 1}"
        place = {"item_id": f"fc_{number}", "output_index": at}
        item = wire.call_item(number, name, "", "in_progress")
        yield self.event("response.output_item.added", output_index=at, item=item)
        yield self.event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self.event("response.function_call_arguments.done", **place, arguments=arguments, name=name)
        item = wire.call_item(number, name, arguments, "completed")
        yield self.event("response.output_item.done", output_index=at, item=item)
        self.output.append(item)
