"""Relay between a client and a replica elsewhere: a request whose replica dies before anything was sent goes to
another, and a stream that breaks off ends with an error in its protocol's words.

It knows nothing of models or versions: whichever replica answers does so from prompt to last token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from gemma_ops.serving.engine import EngineGoneError
from gemma_ops.serving.keys import is_this_machine
from gemma_ops.serving.sending import event_line, failed, read_bytes, refusal_response
from gemma_ops.wire import gemini_chat, openai
from gemma_ops.wire.ask import RefusalError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asked = Callable[[dict[str, Any], bytes], AsyncGenerator[Message]]
"""Function that gives what a replica sends for a request's scope and body. Raises EngineGoneError where the replica
ends."""

_TRIES = 5
"""Replicas that a request may lose before it is told so."""
_PAUSE = 0.1
_CARRIED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
            "client", "server")  # fmt: skip
"""Parts of a request's scope that are passed on."""


class Relay:
    """ASGI application that lets `asked` answer. `limit` is the most bytes of a request; where it is not `reachable`,
    only this machine's clients are let in."""

    def __init__(self, asked: Asked, limit: int, *, reachable: bool) -> None:
        self._asked, self._limit, self._reachable = asked, limit, reachable

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request, shape = Request(scope, receive), _shape(str(scope["path"]))
        try:
            if not self._reachable and not is_this_machine(request.client.host if request.client else ""):
                raise RefusalError("other machines are let in with serve.keys only", status=403, code="keys")
            body = await read_bytes(request, self._limit)
        except RefusalError as refusal:
            await refusal_response(refusal, shape)(scope, receive, send)
            return
        carried = {name: scope[name] for name in _CARRIED if name in scope}
        working = asyncio.create_task(self._forward(carried, body, send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            leaving.cancel()
            working.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _forward(self, scope: dict[str, Any], body: bytes, send: Send) -> None:
        """Pass on what a replica sends; its head waits for the first of its body, so that nothing is sent too early."""
        head: Message | None = None
        for left in reversed(range(_TRIES)):
            head, begun = None, False
            try:
                async with aclosing(self._asked(scope, body)) as messages:
                    async for message in messages:
                        if message["type"] == "http.response.start":
                            head = message
                            continue
                        if head and not begun:
                            begun = True
                            await send(head)
                        await send(message)
            except EngineGoneError as error:
                refusal = failed(error)
                if begun and head:
                    await _break_off(head, refusal, str(scope["path"]), send)
                    return
                if not left:
                    await _whole(refusal, str(scope["path"]), send)
                    return
                await asyncio.sleep(_PAUSE)
            else:
                return


async def run_app(app: Any, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
    """Yield what an ASGI application sends to one request. Closing the generator ends its work."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    asked = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return asked.pop() if asked else await asyncio.Future[Message]()

    async def work() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    working = asyncio.create_task(work())
    try:
        while (message := await sent.get()) is not None:
            yield message
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _break_off(head: Message, refusal: RefusalError, path: str, send: Send) -> None:
    """End a reply that had begun: a stream of events with one that says why, anything else by breaking the
    connection."""
    if not any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in head["headers"]):
        raise ConnectionResetError(refusal.message)
    last = event_line(_shape(path)(refusal))
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _whole(refusal: RefusalError, path: str, send: Send) -> None:
    response = refusal_response(refusal, _shape(path))
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body)})


def _shape(path: str) -> Callable[[RefusalError], dict[str, Any]]:
    """Return how the protocol that a path belongs to words a refusal."""
    return gemini_chat.refusal_body if "v1beta" in path or "enerateContent" in path else openai.error_body
