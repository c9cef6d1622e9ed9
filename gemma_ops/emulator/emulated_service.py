"""The service behind the wire: it decides who may ask, which fault strikes and who answers, and writes the log."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemma_ops.emulator import embeddings, faults, generating
from gemma_ops.emulator.emulated_batches import Answered, EmulatedBatches, Item, Pace
from gemma_ops.emulator.emulated_caches import Caches
from gemma_ops.emulator.emulated_files import Files, files_page
from gemma_ops.emulator.emulated_interactions import read_interaction, show_interaction
from gemma_ops.emulator.emulated_models import Card, cards, find_model
from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.emulator.emulator_log import Log, digest_of
from gemma_ops.emulator.faults import Faults, Rule
from gemma_ops.emulator.generating import Generator, Produced
from gemma_ops.emulator.responder import Body, Responder
from gemma_ops.emulator.validation import check_key, check_request
from gemma_ops.wire.gemini_wire import Refusal, camel, contents_of


class Service:
    """State of one emulator."""

    def __init__(
        self,
        responder: Responder,
        *,
        seed: int,
        thoughts: tuple[int, int] | None,
        keys: frozenset[str] | None,
        pace: Pace,
        log: Path | None,
        routes: Mapping[str, str | None],
    ) -> None:
        self.seed = seed
        self._routes = routes
        self.log = Log(log)
        self.faults = Faults(seed)
        self.address = ""
        self._keys = keys
        self._generator = Generator(responder, thoughts)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._files = Files(lambda: self.address, self._new_id)
        self._caches = Caches(self._new_id)
        self._batches = EmulatedBatches(self._files, self._new_id, self._answer_item, pace)
        self._ops: dict[str, Callable[[EmulatedCall], Reaction]] = {
            "models": self._models,
            "model": lambda call: Reaction(200, find_any(call).describe(call.cloud)),
            "count": self._count,
            "batch_get": self._batches.get,
            "batch_list": self._batches.list,
            "batch_cancel": self._batches.cancel,
            "batch_delete": self._batches.delete,
            "upload_start": self._files.start,
            "upload": self._files.receive,
            "file_get": self._files.describe,
            "file_list": self._files.list,
            "file_download": self._files.download,
            "file_delete": self._files.delete,
            "cache_create": self._caches.create,
            "cache_get": self._caches.get,
            "cache_list": self._caches.list,
            "cache_patch": self._caches.patch,
            "cache_delete": self._caches.delete,
        }

    def react(self, call: EmulatedCall) -> Reaction:
        """Decide one request and log it."""
        digest = digest_of(call.name, call.body or call.raw.decode("utf-8", "replace"))
        asks = call.op in ("generate", "stream")
        nth = self.log.nth(digest if asks else f"{call.op} {digest}")
        entry = self._entry(call, digest)
        rule: Rule | None = None
        try:
            if call.op != "upload":  # its address is the permission
                check_key(call, self._keys)
            rule = self.faults.take(call, call.op, f"{digest}/{nth}")
            reaction = self._decide(call, rule, digest, nth, entry)
        except Refusal as refusal:
            entry |= {"usage": {}, "billed": False}
            reaction = Reaction(refusal.code, refusal.body())
        self.log.add(**entry, status=reaction.status, fault=rule.name if rule else "")
        if call.op == "stream" and call.query.get("alt") != "sse" and reaction.status != 200:
            return Reaction(
                reaction.status, [reaction.body], reaction.headers
            )  # streams of JSON are arrays, errors too
        return reaction

    def unrouted(self, method: str, path: str, raw: bytes, refusal: Refusal) -> Reaction:
        """Log and refuse a request that is no operation, or no JSON."""
        call = EmulatedCall(method, path, "", raw=raw)
        self.log.add(**self._entry(call, digest_of("", raw.decode("utf-8", "replace"))), status=refusal.code, fault="")
        return Reaction(refusal.code, refusal.body())

    def _entry(self, call: EmulatedCall, digest: str) -> dict[str, Any]:
        sent = call.sent if call.sent is not None else call.raw.decode("utf-8", "replace")
        return {
            "time": time.time(),
            "method": call.method,
            "path": call.path,
            "op": call.op,
            "model": call.name
            if call.op in ("generate", "stream", "count", "batch_create", "embed", "embed_many")
            else "",
            "key": digest,
            "digest": digest,
            "body": sent or None,
            "tier": generating.tier_of(call.body),
        }

    def _decide(self, call: EmulatedCall, rule: Rule | None, digest: str, nth: int, entry: dict[str, Any]) -> Reaction:
        if rule and rule.name in faults.HTTP:
            return faults.refuse_request(rule, call.name)
        if rule and rule.name == "upload_failed":
            return self._files.abort(call)
        if call.op in ("generate", "stream"):
            return self._generate(call, rule, digest, nth, entry)
        if call.op == "interaction":
            model, body = read_interaction(call.sent if isinstance(call.sent, dict) else {})
            made = self._produce(call, model, body, digest, nth, rule)
            entry |= {"model": model, "usage": made.usage, "billed": True, "response_id": made.response_id}
            return _delivered(Reaction(200, show_interaction(made.response), made.headers), rule)
        if call.op == "batch_create":
            find_model(call.name, call.version, "batchGenerateContent")
            fate = rule.name if rule and rule.name in faults.JOBS else ""
            return _delivered(self._batches.create(call, call.name, fate), rule)
        if call.op in ("embed", "embed_many"):
            card = find_model(call.name, call.version, "embedContent", embeds=True)
            reaction, tokens = (embeddings.embed_text if call.op == "embed" else embeddings.many)(call, card)
            entry |= {"usage": {"promptTokenCount": tokens, "totalTokenCount": tokens}, "billed": True}
            return _delivered(reaction, rule)
        return _delivered(self._ops[call.op](call), rule)

    def _generate(
        self, call: EmulatedCall, rule: Rule | None, digest: str, nth: int, entry: dict[str, Any]
    ) -> Reaction:
        made = self._produce(call, call.name, call.body, digest, nth, rule)
        entry |= {"usage": made.usage, "billed": True, "response_id": made.response_id}
        headers = {"x-gemini-service-tier": entry["tier"]} | dict(made.headers)
        if call.op == "stream":
            events = generating.generated_events(made.response)
            if call.query.get("alt") == "sse":
                return _delivered(Reaction(200, None, headers, events), rule)
            return _delivered(Reaction(200, list(events), headers), rule)
        return _delivered(Reaction(200, made.response, headers), rule)

    def _produce(
        self, call: EmulatedCall, model: str, body: dict[str, Any], digest: str, nth: int, rule: Rule | None
    ) -> Produced:
        if model in self._routes and self._routes[model] is None:
            raise Refusal(
                404, f"This model models/{model} is no longer available. Please update your code to use a newer model."
            )
        card = find_model(self._routes.get(model) or model, call.version, "generateContent")
        check_request(body, card)
        cached = self._caches.use(str(body["cachedContent"]), card.name) if body.get("cachedContent") else None
        fault = rule.name if rule and rule.name in faults.REPLIES else ""
        return self._generator.produce(
            Body(card.name, body, digest, nth, self.seed), card, cached=cached, fault=fault, cloud=call.cloud
        )

    def _answer_item(self, model: str, item: Item) -> Answered:
        """Answer one request of a batch; it has its own line in the log."""
        sent = item.get("request") or {}
        body = camel(sent)
        body.pop("model", None)
        digest = digest_of(model, body)
        nth = self.log.nth(digest)
        metadata = item.get("metadata") or {}
        key = str(item.get("key") or metadata.get("key") or digest)
        call = EmulatedCall(
            "ITEM",
            f"/v1beta/models/{model}:generateContent",
            "item",
            model,
            "v1beta",
            sent=sent,
            body=body,
            raw=json.dumps({"key": key, "request": sent}, ensure_ascii=False).encode(),
        )
        rule = self.faults.take(call, "item", f"{key}/{nth}")
        entry = self._entry(call, digest) | {"key": key, "model": model, "tier": "batch"}
        answered: Answered = {}
        status = 200
        try:
            if rule and rule.name in ("item_503", "503"):
                raise Refusal(503, "The service is currently unavailable.")
            if not rule or rule.name != "item_missing":
                made = self._produce(call, model, body, digest, nth, rule)
                entry |= {"usage": made.usage, "billed": True, "response_id": made.response_id}
                answered = {"response": made.response}
        except Refusal as refusal:
            status = refusal.code
            code = {400: 3, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14}.get(status, 2)  # gRPC's numbers stand in results
            answered = {"error": {"code": code, "message": refusal.message}}
        self.log.add(**entry, status=status, fault=rule.name if rule else "")
        return answered

    def _count(self, call: EmulatedCall) -> Reaction:
        card = find_any(call)
        asked = call.body.get("generateContentRequest") or call.body
        tokens = generating.prompt_tokens(Body(card.name, asked, "", 0, 0))
        if asked.get("cachedContent"):
            tokens += int(self._caches.use(str(asked["cachedContent"]), card.name)["usageMetadata"]["totalTokenCount"])
        if not contents_of(asked.get("contents")):
            raise Refusal(400, "* CountTokensRequest.contents: contents is not specified")
        body = {"totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}]}
        return Reaction(200, body)

    def _models(self, call: EmulatedCall) -> Reaction:
        found = [card for card in cards().values() if not (card.beta_only and call.version == "v1")]
        shown = [card.describe(call.cloud) for card in found]
        return Reaction(200, files_page(call, "publisherModels" if call.cloud else "models", shown, 50))

    def _new_id(self) -> str:
        """Return twelve letters and digits; the same sequence for the same seed."""
        with self._lock:
            return "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=12))


def find_any(call: EmulatedCall) -> Card:
    """Return the card of the model that a call names, whether it answers or embeds."""
    card = cards().get(call.name)
    return find_model(call.name, call.version, "this method", embeds=bool(card and card.embeds))


def _delivered(reaction: Reaction, rule: Rule | None) -> Reaction:
    """Return the reply after a transport fault has been applied to it."""
    if rule is None or rule.name not in faults.TRANSPORT:
        return reaction
    if rule.name == "bad_json":
        headers: Mapping[str, str] = {**reaction.headers, "Content-Type": "application/json; charset=UTF-8"}
        return Reaction(200, b'{"candidates": [{"content": {"parts": [{"text": "', headers)
    return Reaction(reaction.status, reaction.body, reaction.headers, reaction.events, rule.name, rule.seconds)
