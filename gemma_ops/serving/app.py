"""The server's routes: both protocols over one service, with health, metrics and a page.

A request is read whole (up to a limit), checked for a key, answered, counted and logged without its content. What is
refused is refused in the words of the protocol that it came in.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gemma_ops.errors import OpsError
from gemma_ops.serving import gemini_front, openai_front, page
from gemma_ops.serving.keys import Keys, is_this_machine
from gemma_ops.serving.model import Said
from gemma_ops.serving.sending import after, event_line, failed, then, unless_gone
from gemma_ops.serving.service import ModelService
from gemma_ops.serving.slots import QueueFullError
from gemma_ops.wire import gemini_chat, openai
from gemma_ops.wire.ask import Ask, RefusalError

Log = Callable[[dict[str, Any]], None]
_EVENTS = "text/event-stream"


class Front:
    """The routes of one service. `also` are further names that it answers to, `limit` the most bytes of a request."""

    def __init__(self, service: ModelService, *, keys: Keys, also: tuple[str, ...], limit: int, log: Log) -> None:
        self.service, self.keys, self.limit, self._log = service, keys, limit, log
        self._names = {service.facts.model, service.facts.source, *also}

    def app(self) -> Starlette:
        get = [
            ("/", self.home), ("/health", self.health), ("/ready", self.ready), ("/metrics", self.metrics),
            ("/v1/models", self.models), ("/v1/models/{name:path}", self.model),
            ("/v1beta/models", self.gemini_models), ("/v1beta/models/{name:path}", self.gemini_model),
        ]  # fmt: skip
        post = [("/v1/chat/completions", self.chat)]
        post += [(f"/{version}/models/{{call:path}}", self.generate) for version in ("v1", "v1beta")]
        routes = [Route(path, handler, methods=["GET"]) for path, handler in get]
        routes += [Route(path, handler, methods=["POST"]) for path, handler in post]
        return Starlette(routes=routes, exception_handlers={404: self.nowhere, 405: self.nowhere})

    async def chat(self, request: Request) -> Response:
        async def answer(body: Any, number: str, said: Said) -> Response | dict[str, Any]:
            self._check_name(str(body.get("model") or "") if isinstance(body, dict) else "")
            ask = openai.read_chat(body)
            if not ask.stream:
                return await self._whole(request, openai_front.whole(self.service, ask, number), said)
            if ask.count > 1:
                raise RefusalError("n above 1 is not streamed: send several requests", field="n")
            return await self._streamed(request, ask, said, number, openai_front.chunks, openai.error_body, done=True)

        return await self._handle(request, "openai", openai.error_body, answer)

    async def generate(self, request: Request) -> Response:
        name, _, verb = str(request.path_params["call"]).rpartition(":")

        async def answer(body: Any, number: str, said: Said) -> Response | dict[str, Any]:
            if verb not in ("generateContent", "streamGenerateContent", "countTokens"):
                raise RefusalError(f"models.{verb} is not supported by this server", status=404)
            self._check_name(name)
            if verb == "countTokens":
                return gemini_front.count(self.service, body)
            ask = gemini_front.read_request(body, stream=verb == "streamGenerateContent")
            if not ask.stream:
                return await self._whole(request, gemini_front.whole(self.service, ask, number), said)
            if request.query_params.get("alt") != "sse":
                raise RefusalError("streams are sent as server-sent events: ask with ?alt=sse", field="alt")
            if ask.count > 1:
                raise RefusalError("several candidates are not streamed", field="candidateCount")
            return await self._streamed(
                request, ask, said, number, gemini_front.events, gemini_chat.refusal_body, done=False
            )

        return await self._handle(request, "gemini", gemini_chat.refusal_body, answer)

    async def models(self, request: Request) -> Response:
        """OpenAI's list and Gemini's stand at one address: whoever sends Google's header is told Gemini's."""
        if _is_gemini(request):
            return await self.gemini_models(request)
        return self._listed(request, openai.error_body, openai_front.models(self.service))

    async def model(self, request: Request) -> Response:
        if _is_gemini(request):
            return await self.gemini_model(request)
        return self._named(request, openai.error_body, openai_front.model(self.service))

    async def gemini_models(self, request: Request) -> Response:
        return self._listed(request, gemini_chat.refusal_body, {"models": [gemini_front.model(self.service)]})

    async def gemini_model(self, request: Request) -> Response:
        return self._named(request, gemini_chat.refusal_body, gemini_front.model(self.service))

    async def home(self, request: Request) -> Response:
        try:
            self._check_host(request)
        except RefusalError as refusal:
            return PlainTextResponse(refusal.message, refusal.status)
        return HTMLResponse(page.render_page(self.service, str(request.base_url).rstrip("/"), keys=self.keys.needed))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        try:
            self.service.check()
        except RefusalError as refusal:
            return JSONResponse({"status": refusal.code}, 503, {"Retry-After": "1"})
        return JSONResponse(
            {"status": "ready", "model": self.service.facts.model, "version": self.service.facts.version}
        )

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.service.metrics(), media_type="text/plain; version=0.0.4")

    async def nowhere(self, request: Request, error: Exception) -> Response:
        shape = gemini_chat.refusal_body if _is_gemini(request) or "v1beta" in request.url.path else openai.error_body
        refusal = RefusalError(f"{request.method} {request.url.path} is not served here", status=404, code="not_found")
        return JSONResponse(shape(refusal), 404)

    def _listed(self, request: Request, shape: Callable[[RefusalError], Any], body: Any) -> Response:
        try:
            self._admit(request)
        except RefusalError as refusal:
            return JSONResponse(shape(refusal), refusal.status)
        return JSONResponse(body)

    def _named(self, request: Request, shape: Callable[[RefusalError], Any], body: Any) -> Response:
        try:
            self._check_name(str(request.path_params["name"]))
        except RefusalError as refusal:
            return JSONResponse(shape(refusal), refusal.status)
        return self._listed(request, shape, body)

    def _admit(self, request: Request) -> None:
        """Refuse a request without a known key, or from a page elsewhere."""
        self.keys.check(request)
        self._check_host(request)

    def _check_host(self, request: Request) -> None:
        """Where no key is needed, refuse what a page elsewhere sent here by a name of its own (DNS rebinding): whoever
        asks this machine says so."""
        name = request.url.hostname or ""
        if not self.keys.needed and not is_this_machine(name):
            raise RefusalError(f"{name} is no name of this machine", status=403, code="host")

    def _check_name(self, name: str) -> None:
        if name.removeprefix("models/") not in self._names:
            raise RefusalError(
                f"the model {name!r} is not served here: ask for {self.service.facts.model}, "
                "or let serve.also_called name it",
                field="model", status=404, code="model_not_found",
            )  # fmt: skip

    async def _handle(
        self,
        request: Request,
        protocol: str,
        shape: Callable[[RefusalError], dict[str, Any]],
        answer: Callable[[Any, str, Said], Awaitable[Response | dict[str, Any]]],
    ) -> Response:
        """Read, answer, count. A streamed reply is counted when it ends."""
        began, number, said = time.monotonic(), secrets.token_hex(12), Said()
        facts = {"id": number, "protocol": protocol, "path": request.url.path}

        def ended(status: int) -> None:
            seconds = time.monotonic() - began
            self.service.tally.add(protocol, status, said if status == 200 else None, seconds)
            counts = {"prompt_tokens": said.prompt_tokens, "tokens": said.tokens, "end": said.end}
            self._log(facts | {"status": status, "seconds": round(seconds, 4), **counts})

        try:
            self._admit(request)
            found = await answer(await self._body(request), number, said)
        except RefusalError as refusal:
            wait = {"Retry-After": str(refusal.retry_after)} if isinstance(refusal, QueueFullError) else {}
            response: Response = JSONResponse(shape(refusal), refusal.status, wait)
        except OpsError as error:
            response = JSONResponse(shape(failed(error)), 503, {"Retry-After": "1"})
        else:
            if isinstance(found, StreamingResponse):
                found.body_iterator = then(found.body_iterator, lambda: ended(200))
                found.headers["x-request-id"] = number
                return found
            response = found if isinstance(found, Response) else JSONResponse(found)
        response.headers["x-request-id"] = number
        ended(response.status_code)
        return response

    async def _body(self, request: Request) -> Any:
        parts, size = list[bytes](), 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > self.limit:
                raise RefusalError(f"the request is larger than {self.limit:,} bytes", status=413, code="too_large")
        try:
            return json.loads(b"".join(parts))
        except ValueError as error:
            raise RefusalError(f"the body is no JSON: {error}") from error

    async def _whole(self, request: Request, reply: Any, said: Said) -> Response | dict[str, Any]:
        """The reply, or nothing when the client has gone: then the work ends too."""
        found = await unless_gone(request, reply)
        if found is None:
            return Response(status_code=499)
        body, total = found
        said.__dict__.update(total.__dict__)
        return dict(body)

    async def _streamed(
        self,
        request: Request,
        ask: Ask,
        said: Said,
        number: str,
        pieces_to: Any,
        shape: Callable[[RefusalError], Any],
        *,
        done: bool,
    ) -> Response:
        """A stream of events. What is refused before the first token is an error of its own, with its status."""
        lines: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

        async def work() -> None:
            """In a task of its own, so that a slow client holds no slot, and one that has gone ends it."""
            try:
                async for line in self._lines(ask, said, number, pieces_to, shape, done=done):
                    lines.put_nowait(line)
            except Exception as error:
                lines.put_nowait(error)
            lines.put_nowait(None)

        working = asyncio.create_task(work())

        async def sent(line: bytes | Exception | None) -> AsyncIterator[bytes]:
            """What is there goes out at once: under load several tokens share the cost of sending one."""
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

    async def _lines(
        self, ask: Ask, said: Said, number: str, pieces_to: Any, shape: Callable[[RefusalError], Any], *, done: bool
    ) -> AsyncIterator[bytes]:
        begun = False
        try:
            async with self.service.replying(ask, said) as pieces:
                first = await anext(pieces, None)
                async for event in pieces_to(self.service, ask, said, after(first, pieces), number):
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


def _is_gemini(request: Request) -> bool:
    return "x-goog-api-key" in request.headers or "key" in request.query_params
