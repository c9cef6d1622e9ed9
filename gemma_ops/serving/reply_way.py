"""The way of one request to its reply: whole, or as a stream of events; ended when its client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gemma_ops.config import Privacy
from gemma_ops.errors import OpsError
from gemma_ops.routing.decision_log import Outcome
from gemma_ops.serving.deployment import Lease
from gemma_ops.serving.keys import Grant
from gemma_ops.serving.model import Said
from gemma_ops.serving.sending import Resumed, event_line, failed, unless_gone
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire.ask import Ask, RefusalError

_EVENTS = "text/event-stream"
Shape = Callable[[RefusalError], dict[str, Any]]
"""Function that words a refusal in a protocol."""


class Events(Protocol):
    """Functions with which a protocol sends pieces."""

    def __call__(
        self, service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
    ) -> AsyncIterator[dict[str, Any]]: ...


@dataclass
class PendingRequest:
    """A request under way: its number, the service that it holds, what its key may, and what was said so far."""

    number: str
    lease: Lease
    grant: Grant = field(default_factory=Grant)
    ask: Ask | None = None
    """Request as it was read; None before."""
    said: Said = field(default_factory=Said)
    body: Any = None
    """Body as it was sent."""
    privacy: Privacy | None = None
    """Privacy class that it declares, or that a policy raised it to; None where nothing says."""
    outcome: Outcome | None = None
    """Outcome of a request whose lane was decided."""

    @property
    def service(self) -> ModelService:
        return self.lease.service


async def answer_whole(request: Request, reply: Any, asked: PendingRequest) -> Response | dict[str, Any]:
    """Return the reply, or nothing when the client has gone: then the work ends too."""
    found = await unless_gone(request, reply)
    if found is None:
        return Response(status_code=499)
    body, total = found
    asked.said.__dict__.update(total.__dict__)
    return dict(body)


async def streamed(
    request: Request, ask: Ask, asked: PendingRequest, events: Events, shape: Shape, *, done: bool = False
) -> Response:
    """Return a stream of events. What is refused before the first token is an error of its own, with its status.
    `done`: whether OpenAI's `[DONE]` closes it."""
    lines: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    async def work() -> None:
        """Answer in a task of its own, so that a slow client holds no slot, and one that has gone ends it."""
        try:
            async for line in _lines(ask, asked, events, shape, done=done):
                lines.put_nowait(line)
        except Exception as error:
            lines.put_nowait(error)
        lines.put_nowait(None)

    working = asyncio.create_task(work())

    async def sent(line: bytes | Exception | None) -> AsyncIterator[bytes]:
        """Send what is there at once: under load several tokens share the cost of sending one."""
        try:
            while isinstance(line, bytes):
                ready, ended = [line], False
                while not (ended or lines.empty()):
                    line = lines.get_nowait()
                    if isinstance(line, bytes):
                        ready.append(line)
                    else:
                        ended = True
                yield b"".join(ready)
                line = line if ended else await lines.get()
            if line is not None:
                raise line
        finally:
            working.cancel()

    first = await unless_gone(request, lines.get())
    if first is None:
        working.cancel()
        return Response(status_code=499)
    if isinstance(first, Exception):
        raise first
    return StreamingResponse(sent(first), media_type=_EVENTS, headers={"Cache-Control": "no-cache"})


async def _lines(ask: Ask, asked: PendingRequest, events: Events, shape: Shape, *, done: bool) -> AsyncIterator[bytes]:
    begun = False
    try:
        async with asked.service.replying(ask, asked.said) as pieces:
            first = await anext(pieces, None)
            rest = Resumed(first, pieces)
            async for event in events(asked.service, ask, asked.said, rest, asked.number):
                begun = True
                yield event_line(event)
        if done:
            yield b"data: [DONE]\n\n"
    except RefusalError as refusal:
        if not begun:
            raise
        yield event_line(shape(refusal))
    except OpsError as error:
        if not begun:
            raise
        yield event_line(shape(failed(error)))
