"""HTTP helpers: reading a whole request, sending bit by bit, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemma_ops.errors import OpsError
from gemma_ops.wire.ask import RefusalError

_Item = TypeVar("_Item")


def failed(error: OpsError) -> RefusalError:
    """Return what a client is told of an engine that failed: come back."""
    return RefusalError(f"{error.what}; {error.fix}", status=503, code="engine", retry_after=1)


async def read_json_body(request: Request, limit: int) -> Any:
    """Read the JSON body of a request. Raises RefusalError for one that is no JSON, or larger than `limit` bytes."""
    try:
        return json.loads(await read_bytes(request, limit))
    except ValueError as error:
        raise RefusalError(f"the body is no JSON: {error}") from error


async def read_bytes(request: Request, limit: int) -> bytes:
    """Read the body of a request as it is. Raises RefusalError for one larger than `limit` bytes."""
    parts, size = list[bytes](), 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise RefusalError(f"the request is larger than {limit:,} bytes", status=413, code="too_large")
    return b"".join(parts)


def refusal_response(refusal: RefusalError, shape: Callable[[RefusalError], dict[str, Any]]) -> Response:
    """Return a refusal in the words of a protocol."""
    wait = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse(shape(refusal), refusal.status, wait)


def event_line(body: Any) -> bytes:
    """Return a server-sent event, named where its protocol names events."""
    named = b"event: " + body["type"].encode() + b"\n" if "sequence_number" in body else b""
    try:
        text = orjson.dumps(body)
    except TypeError:  # half a surrogate pair in a call's arguments: UTF-8 can't hold it, escapes can
        text = json.dumps(body, separators=(",", ":")).encode()
    return named + b"data: " + text + b"\n\n"


class Resumed(Generic[_Item]):
    """Iterator whose first item was taken already: it gives that, unless it is None, and the rest. It adds no coroutine
    of its own to each item."""

    def __init__(self, first: _Item | None, rest: AsyncIterator[_Item]) -> None:
        self._first, self._rest = first, rest

    def __aiter__(self) -> Resumed[_Item]:
        return self

    def __anext__(self) -> Awaitable[_Item]:
        if self._first is None:
            return self._rest.__anext__()
        first, self._first = self._first, None
        return _given(first)


async def _given(item: _Item) -> _Item:
    return item


async def then(parts: Any, end: Callable[[], None]) -> AsyncIterator[Any]:
    """Yield the parts, and call `end()` when they end, whoever ends them."""
    try:
        async for part in parts:
            yield part
    finally:
        end()


async def unless_gone(request: Request, work: Any) -> Any:
    """Return the work's result; None when the client goes before, and then the work is ended."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
