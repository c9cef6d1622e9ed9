"""HTTP over a socket file, written by hand: one request, answered by a stream of events, over one connection.

A general client costs more CPU than the reply, and llama.cpp closes connections that it was to keep, so that a client
which reuses them loses requests. A connection that is closed early ends the work.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import orjson

from gemma_ops.errors import OpsError
from gemma_ops.serving.child import GONE
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError

_ANSWER = 10.0
"""Seconds within which a server must say whether it is ready."""


async def posted_events(engine: str, socket: str, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a reply, as JSON. `engine` is what it is called in words.

    Raises EngineRefusedError for a status of 4xx and for an event that holds such an `error`; EngineGoneError where
    nobody answers, for 5xx in either place, and where a reply breaks off.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=1 << 24)
    except OSError as error:
        raise EngineGoneError(f"{engine} is not there: {error.strerror or error}", GONE) from error
    try:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
        if status >= 500:
            raise EngineGoneError(f"{engine} does not answer (HTTP {status})", GONE)
        if status != 200:
            raise _refusal(engine, await reader.read())
        chunks = _Chunks()
        while not chunks.ended:
            if not (data := await reader.read(1 << 16)):
                raise asyncio.IncompleteReadError(b"", None)
            for event in chunks.events(data):
                if "error" in event:
                    raise _failure(engine, event)
                yield event
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise EngineGoneError(f"{engine} ended in the middle of a reply: {error}", GONE) from error
    finally:
        writer.close()


async def answers_at(socket: str, path: str) -> bool:
    """True if a server answers there, with a status of 200."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(_ANSWER):
            return (await reader.readline()).split(b" ", 2)[1:2] == [b"200"]
    except OSError:  # a TimeoutError is one
        return False
    finally:
        writer.close()


class _Chunks:
    """Events of a chunked stream, read from its bytes as they come. Neither chunks nor what comes at once need hold
    whole events."""

    def __init__(self) -> None:
        self.ended = False
        """Whether the last chunk has been read."""
        self._raw = self._left = b""

    def events(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that these bytes complete. Raises ValueError for what is no chunked stream."""
        self._raw += data
        while not self.ended and (line := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:line].split(b";")[0], 16)
            end = line + 2 + size
            if len(self._raw) < end + 2:
                return
            content, self._raw = self._raw[line + 2 : end], self._raw[end + 2 :]
            self.ended = size == 0
            *whole, self._left = (self._left + content).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: ") and event != b"data: [DONE]":
                    yield orjson.loads(event[6:])
                elif event.startswith(b"error: "):
                    yield {"error": orjson.loads(event[7:])}


def _failure(engine: str, event: dict[str, Any]) -> OpsError:
    """Return what an error in a stream means: that the engine failed (a `code` of 5xx), or that it refuses."""
    error = event["error"]
    if isinstance(error, dict) and isinstance(error.get("code"), int) and error["code"] >= 500:
        return EngineGoneError(f"{engine} fails: {error.get('message')}", GONE)
    return _refusal(engine, json.dumps(event).encode())


def _refusal(engine: str, body: bytes) -> EngineRefusedError:
    try:
        error = json.loads(body)["error"]
        said = str(error.get("message") if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace")[:200]
    return EngineRefusedError(f"{engine} refuses the request: {said}", "shorten the prompt, or correct the request")
