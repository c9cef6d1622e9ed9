"""The server's routes: both protocols over one service, with health, metrics and a page.

A request is read whole (up to a limit), checked for a key, answered, counted and logged without its content. What is
refused is refused in the words of the protocol that it came in.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gemma_ops.config import Privacy
from gemma_ops.errors import OpsError
from gemma_ops.serving import completions_front, gemini_front, openai_front, page, responses_front, webhook
from gemma_ops.serving.accounting import Accounts, Log, RequestAccount
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.keys import Grant, Keys, is_this_machine
from gemma_ops.serving.prometheus import render_metrics
from gemma_ops.serving.reply_way import Events, PendingRequest, answer_whole, streamed
from gemma_ops.serving.routed import AUTO, LANE_HEADER, Router, SpokenProtocol
from gemma_ops.serving.routed_front import routed_gemini, routed_openai
from gemma_ops.serving.routed_request import declared_class
from gemma_ops.serving.sending import failed, read_bytes, read_json_body, refusal_response, then
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.shadow import Shadow
from gemma_ops.serving.showing import read_with_media
from gemma_ops.serving.traffic import TrafficRecorder
from gemma_ops.wire import completions, gemini_chat, openai, responses
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import openai_beyond


class Front:
    """The routes of a deployment. `also` are further names that it answers to, `limit` the most bytes of a request."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        keys: Keys,
        also: tuple[str, ...],
        limit: int,
        log: Log,
        nudged: Sequence[Callable[[], None]] = (),
        shadow: Shadow | None = None,
        router: Router | None = None,
        traffic: TrafficRecorder | None = None,
        floor: Privacy = "any",
    ) -> None:
        """Build the routes; `nudged` are called when MLflow reports that an alias has moved; `router` answers for the
        model `auto`; `traffic` receives every request that ended; `floor` is the least strict class that a client may
        declare."""
        self.deployment, self.keys, self.limit = deployment, keys, limit
        self._nudged, self.router = nudged, router
        self.accounts = Accounts(deployment, log, floor=floor, shadow=shadow, traffic=traffic)
        self._names = {self.service.facts.model, self.service.facts.source, *also, *([AUTO] if router else [])}

    @property
    def service(self) -> ModelService:
        """Return the service that answers now."""
        return self.deployment.current

    def app(self) -> Starlette:
        get = [
            ("/", self.home), ("/health", self.health), ("/ready", self.ready), ("/metrics", self.metrics),
            ("/v1/models", self.models), ("/v1/models/{name:path}", self.model),
            ("/v1beta/models", self.gemini_models), ("/v1beta/models/{name:path}", self.gemini_model),
        ]  # fmt: skip
        post = [
            ("/v1/chat/completions", self.chat), ("/v1/completions", self.completions),
            ("/v1/responses", self.responses),
            ("/mlflow/webhook", self.webhook),
        ]  # fmt: skip
        post += [(f"/{version}/models/{{call:path}}", self.generate) for version in ("v1", "v1beta")]
        routes = [Route(path, handler, methods=["GET"]) for path, handler in get]
        routes += [Route(path, handler, methods=["POST"]) for path, handler in post]
        return Starlette(routes=routes, exception_handlers={404: self.nowhere, 405: self.nowhere})

    async def _openai(self, request: Request, read: Callable[[Any], Ask], whole_reply: Any, events: Events) -> Response:
        """Answer a request of one of OpenAI's protocols."""

        async def answer(body: Any, asked: PendingRequest) -> Response | dict[str, Any]:
            name = str(body.get("model") or "") if isinstance(body, dict) else ""
            self._check_name(name)
            done = events is not responses_front.response_events
            if self.router and name == AUTO:
                manner = SpokenProtocol(whole_reply, events, openai.error_body, done)
                return await routed_openai(self.router, request, body, read, asked, manner)
            sees = asked.service.model.engine.senses if read is openai.read_chat else None
            ask = asked.ask = read_with_media(body, read, openai_beyond, sees)
            if not ask.stream:
                return await answer_whole(request, whole_reply(asked.service, ask, asked.number), asked)
            if ask.count > 1:
                raise RefusalError("n above 1 is not streamed: send several requests", field="n")
            return await streamed(request, ask, asked, events, openai.error_body, done=done)

        return await self._handle(request, "openai", openai.error_body, answer)

    async def chat(self, request: Request) -> Response:
        return await self._openai(request, openai.read_chat, openai_front.whole_chat, openai_front.chat_chunks)

    async def completions(self, request: Request) -> Response:
        return await self._openai(
            request,
            completions.read_completion,
            completions_front.whole_completion,
            completions_front.completion_chunks,
        )

    async def responses(self, request: Request) -> Response:
        return await self._openai(
            request, responses.read_response, responses_front.whole_response, responses_front.response_events
        )

    async def generate(self, request: Request) -> Response:
        name, _, verb = str(request.path_params["call"]).rpartition(":")

        async def answer(body: Any, asked: PendingRequest) -> Response | dict[str, Any]:
            if verb not in ("generateContent", "streamGenerateContent", "countTokens"):
                raise RefusalError(f"models.{verb} is not supported by this server", status=404)
            self._check_name(name)
            if verb == "countTokens":
                return gemini_front.count_tokens(asked.service, body)
            if self.router and name == AUTO:
                manner = SpokenProtocol(
                    gemini_front.whole_gemini, gemini_front.gemini_events, gemini_chat.refusal_body, done=False
                )
                return await routed_gemini(self.router, request, body, asked, manner, stream=verb != "generateContent")
            ask = asked.ask = gemini_front.read_shown(body, asked.service, stream=verb == "streamGenerateContent")
            if not ask.stream:
                return await answer_whole(request, gemini_front.whole_gemini(asked.service, ask, asked.number), asked)
            if request.query_params.get("alt") != "sse":
                raise RefusalError("streams are sent as server-sent events: ask with ?alt=sse", field="alt")
            if ask.count > 1:
                raise RefusalError("several candidates are not streamed", field="candidateCount")
            return await streamed(request, ask, asked, gemini_front.gemini_events, gemini_chat.refusal_body, done=False)

        return await self._handle(request, "gemini", gemini_chat.refusal_body, answer)

    async def models(self, request: Request) -> Response:
        """List the models, OpenAI's list and Gemini's at one address: a request with Google's header gets Gemini's."""
        if _is_gemini(request):
            return await self.gemini_models(request)
        found = openai_front.models(self.service)
        if self.router:
            found["data"].append(openai_front.openai_model(self.service) | {"id": AUTO})
        return self._listed(request, openai.error_body, found)

    async def model(self, request: Request) -> Response:
        if _is_gemini(request):
            return await self.gemini_model(request)
        return self._named(request, openai.error_body, openai_front.openai_model(self.service))

    async def gemini_models(self, request: Request) -> Response:
        found = [gemini_front.gemini_model(self.service)]
        if self.router:
            found.append(found[0] | self.router.as_gemini())
        return self._listed(request, gemini_chat.refusal_body, {"models": found})

    async def gemini_model(self, request: Request) -> Response:
        return self._named(request, gemini_chat.refusal_body, gemini_front.gemini_model(self.service))

    async def home(self, request: Request) -> Response:
        try:
            self._check_host(request)
        except RefusalError as refusal:
            return PlainTextResponse(refusal.message, refusal.status)
        url, lanes = str(request.base_url).rstrip("/"), self.router.summary() if self.router else None
        return HTMLResponse(page.render_page(self.deployment, url, keys=self.keys.needed, lanes=lanes))

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
        lanes = self.router.metrics() if self.router else ""
        text = render_metrics(self.deployment, **self.accounts.outcomes()) + lanes
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def webhook(self, request: Request) -> Response:
        """Look at the aliases after MLflow has reported that something moved. What it says is not believed, so that a
        message which was forged costs a look."""
        try:
            signed = webhook.is_from_mlflow(request.headers, await read_bytes(request, self.limit))
        except RefusalError as refusal:
            return PlainTextResponse(refusal.message, refusal.status)
        if not signed:
            return PlainTextResponse(f"the signature is not that of {webhook.VARIABLE}", 403)
        for nudge in self._nudged:
            nudge()
        return Response(status_code=204)

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

    def _admit(self, request: Request) -> Grant:
        """Return what the key of a request may. Refuses a request without a known key, or from a page elsewhere."""
        grant = self.keys.check(request)
        self._check_host(request)
        return grant

    def _check_host(self, request: Request) -> None:
        """Refuse, where no key is needed, requests that a page elsewhere sent here by a host name of its own (DNS
        rebinding): clients of this machine name it."""
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
        answer: Callable[[Any, PendingRequest], Awaitable[Response | dict[str, Any]]],
    ) -> Response:
        """Read a request, answer it, and count it. A streamed reply is counted when it ends."""
        account = RequestAccount(secrets.token_hex(12), protocol, request.url.path)
        asked: PendingRequest | None = None
        try:
            grant = self._admit(request)
            account.key = grant.name
            self.keys.spend(grant)
            body = await read_json_body(request, self.limit)
            asked = account.asked = PendingRequest(account.number, await self.deployment.lease(), grant, body=body)
            asked.privacy = declared_class(request, body, grant.privacy)
            found = await answer(body, asked)
        except RefusalError as refusal:
            response = refusal_response(refusal, shape)
        except OpsError as error:
            response = refusal_response(failed(error), shape)
        except BaseException:
            self.accounts.close(account, 500)
            raise
        else:
            response = found if isinstance(found, Response) else JSONResponse(found)
        response.headers["x-request-id"] = account.number
        if asked and asked.service.facts.version and response.headers.get(LANE_HEADER, "local") == "local":
            response.headers["x-gemma-ops-version"] = asked.service.facts.version
        if isinstance(response, StreamingResponse):
            response.body_iterator = then(response.body_iterator, lambda: self.accounts.close(account, 200))
        else:
            self.accounts.close(account, response.status_code)
        return response


def _is_gemini(request: Request) -> bool:
    return "x-goog-api-key" in request.headers or "key" in request.query_params
