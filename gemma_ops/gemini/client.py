"""One request, from the store or from the service: look up, reserve, send, settle, keep.

Runs in the courier. Every try holds a reservation of its own, because every try can be billed: it is given back when
the service failed before serving, settled when it served, and counted in full when nobody knows (see `retry`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.config import GeminiConfig
from gemma_ops.errors import BudgetError, ServiceError
from gemma_ops.gemini import prices, reply, request_wire, retry
from gemma_ops.gemini.cache import Asked, Served, Store
from gemma_ops.gemini.jobs import Jobs
from gemma_ops.gemini.limiter import Limiter
from gemma_ops.gemini.models import answering_model, is_expected
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import connect_gemini, rehearsal
from gemma_ops.gemini.usage import Usage

_LOOK_AGAIN = 0.1
"""Seconds between looks at the store while another process has the same request on the wire."""
_PATIENCE = 3.0
"""Seconds that a server's client waits at most because Gemini asked for silence; beyond, the request fails."""
_IN_VAIN = 20
"""Failed requests in a row, each after all its tries, after which the service counts as down."""
_UNSENT = {"sdk_http_response", "parsed", "automatic_function_calling_history"}


@dataclass
class Sent:
    """The outcome of one request, and what went wrong on the way, for the journal."""

    answer: Answer
    tries: int = 0
    faults: list[str] = field(default_factory=list)


class Client:
    """Client of one run: sends requests, from any number of threads."""

    def __init__(self, config: GeminiConfig, store: Store, *, since: float = 0.0, lasting: bool = False) -> None:
        """Open the client; answers older than the moment `since` are not taken from the store. `lasting` says that it
        serves others, so that what ends one request ends no other, and none waits for room under a cap."""
        self.config, self.store, self.since, self.lasting = config, store, since, lasting
        self.jobs = Jobs(store)
        self.genai = connect_gemini(config)
        self.limiter = Limiter(config.concurrency)
        self.leaving = threading.Event()
        """Event that is set when nobody waits any more: what is on the wire is finished, nothing new is sent."""
        self.rehearsal = rehearsal(config)
        self._stopped: Exception | None = None
        self._unserved = 0
        self._gate = threading.Condition(threading.RLock())

    def answer(self, request: Request, hear: reply.Hear | None = None) -> Sent:
        """Answer one request. A failure that only concerns it is an answer that ended in `error`; raises BudgetError,
        ConfigError or ServiceError for one that concerns all, and from then on for every other request.

        `hear` is told the visible text of a stream as it comes; once it heard something, a failure is not tried again.
        """
        heard = reply.HeardStream(hear) if hear else None
        sent = Sent(Answer("", "error", 0, 0, 0.0))
        began = time.monotonic()
        worst = prices.worst(
            request.model,
            prices.prompt_bound(request_wire.body(request)) if request.plain() else prices.request_bound(request),
            request.max_output_tokens, tier=self.config.service_tier, at=datetime.now(UTC),
        )  # fmt: skip
        lost = 0
        fault = retry.Fault("failed", "never sent")
        while sent.tries < self.config.attempts and not self.leaving.is_set():
            if self.lasting and (silence := self.limiter.silence()) > _PATIENCE:
                fault = retry.Fault("busy", f"it asked for {silence:.0f} s of silence")
                break
            with self.limiter.slot() as started:
                found = self._reserve(request, worst)
                if isinstance(found, Answer):
                    sent.answer = found
                    return sent
                sent.tries += 1
                tried = self._try(request, found, heard)
            if isinstance(tried, Answer):
                self.limiter.served()
                sent.answer = tried
                return sent
            fault = tried
            sent.faults.append(fault.kind)
            lost += worst if fault.kind == "lost" else 0
            if fault.kind == "busy":
                self.limiter.too_many(started, fault.wait)
            if (
                fault.kind == "refused"
                or (heard and heard.anything)
                or (self.lasting and (fault.wait or 0) > _PATIENCE)
            ):
                break
            if fault.stop is not None:
                raise self.stop(fault.stop)
            if sent.tries < self.config.attempts:
                self.leaving.wait(retry.backoff(sent.tries, fault.wait, rehearsal=self.rehearsal))
        if fault.kind != "refused" and not self.leaving.is_set():
            self._give_up(fault)
        seconds = time.monotonic() - began
        told = fault.reason if sent.tries < 2 else f"{fault.reason} (the last of {sent.tries} tries)"
        sent.answer = Answer(
            "", "error", 0, 0, seconds, reason=told, dollars=lost / prices.NANO, tier=self.config.service_tier
        )
        return sent

    def stop(self, error: Exception) -> Exception:
        """Stop sending, and return what to raise: the first reason stays the reason. Whoever serves others goes on."""
        if self.lasting and not self.leaving.is_set():
            return error
        with self._gate:
            self._stopped = self._stopped or error
            self._gate.notify_all()
        self.limiter.end()
        return self._stopped

    def _give_up(self, fault: retry.Fault) -> None:
        """Raise ServiceError when the service fails, not the request: no connection, or request after request in
        vain."""
        self._unserved += 1
        fix = "run the same command again later: what arrived is kept"
        if fault.unreachable:
            raise self.stop(ServiceError(f"Gemini can't be reached: {fault.reason}", fix))
        if self._unserved >= _IN_VAIN:
            raise self.stop(ServiceError(f"the last {self._unserved} requests to Gemini failed: {fault.reason}", fix))

    def _reserve(self, request: Request, worst: int) -> int | Answer:
        """Return the number of a reservation, or the answer if it has arrived in the meantime.

        When a cap has no room because of requests that are on the wire, waits for them: most cost far less than the
        most they could. Raises BudgetError when there is no room even if they cost nothing.
        """
        key = request.key()
        with self._gate:
            while True:
                if self._stopped:
                    raise self._stopped
                with self.store.ledger.connect():  # looking and reserving are one: two processes can't both send
                    found = self.store.find(key, since=self.since)
                    if found:
                        return found
                    if not self.store.on_its_way(key) and not self._in_a_job(key):
                        try:
                            number = self.store.ledger.reserve(
                                key, model=request.model, use=request.use, tier=self.config.service_tier, worst=worst
                            )
                        except BudgetError as error:
                            if self.lasting or not self.store.ledger.may_fit(worst):
                                raise self.stop(error) from None
                        else:
                            return number
                self._gate.wait(_LOOK_AGAIN)

    def _in_a_job(self, key: str) -> bool:
        """True if another run has planned the request as a batch meanwhile. Raises ServiceError if that run is gone:
        the next one collects what it left."""
        keeper = self.jobs.keeper(key)
        if keeper is not None and keeper.state() == "gone":
            what = "a request is in a batch job of a run that has ended, and would be paid twice"
            raise self.stop(ServiceError(what, "run the same command again: the job is found again"))
        return keeper is not None

    def _try(self, request: Request, reservation: int, heard: reply.HeardStream | None) -> Answer | retry.Fault:
        """Send once, and settle or release the reservation."""
        ledger = self.store.ledger
        at = datetime.now(UTC)
        try:
            served = self._call(request, at, heard)
        except Exception as error:
            fault = retry.fault_of(error)
            with self._closing():
                if fault is None:
                    ledger.settle(reservation, None, usage={"lost": type(error).__name__})
                elif fault.kind == "lost":
                    ledger.settle(reservation, None, usage={"lost": fault.reason})
                else:
                    ledger.release(reservation, fault.reason)
            if fault is None:
                raise
            return fault
        self._unserved = 0
        with self._closing():
            return self.store.settle(reservation, Asked.of(request), served)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Wrap the end of a reservation. When the store does not take it, nothing more is sent: the reservation stays
        held by this process, which lives, so that everybody who waits for room or for the answer would wait for
        good.
        """
        try:
            yield
        except Exception as error:
            self.stop(error)
            raise
        finally:
            with self._gate:
                self._gate.notify_all()

    def _call(self, request: Request, at: datetime, heard: reply.HeardStream | None) -> Served:
        """Send, and read the reply. Raises whatever the library and the network raise."""
        tier = self.config.service_tier
        ask: dict[str, Any] = {
            "model": request.model,
            "contents": request_wire.contents(request),
            "config": request_wire.request_config(request, service_tier=tier, enterprise=self.config.enterprise),
        }
        began = time.monotonic()
        first = None
        if request.stream:
            body, first = self._streamed(ask, began, heard)
        else:
            body = _plain(self.genai.models.generate_content(**ask))
        seconds = time.monotonic() - began
        found = reply.read_reply(body)
        return billed_answer(request.model, found, tier=tier, seconds=seconds, first=first, at=at)

    def _streamed(
        self, ask: dict[str, Any], began: float, heard: reply.HeardStream | None
    ) -> tuple[dict[str, Any], float | None]:
        """Return the whole stream as one reply, and when its first text came. The timeout holds for all of it."""
        chunks: list[dict[str, Any]] = []
        first = None
        try:
            for chunk in self.genai.models.generate_content_stream(**ask):
                chunks.append(_plain(chunk))
                elapsed = time.monotonic() - began
                if first is None and reply.has_text(chunks[-1]):
                    first = elapsed
                if heard:
                    heard.take(chunks[-1])
                if elapsed > self.config.timeout_seconds:
                    raise retry.Cut(f"after {elapsed:.0f} s, machine.gemini.timeout_seconds")
        except Exception as error:
            if chunks and retry.fault_of(error):
                raise retry.Cut(str(error) or type(error).__name__) from error
            raise
        whole = reply.merge_parts(chunks)
        if not reply.ended(whole):
            raise retry.Cut("before the reply ended")
        return whole, first


def billed_answer(
    model: str, found: reply.GeminiReply, *, tier: str, seconds: float, first: float | None, at: datetime
) -> Served:
    """Return a reply as an answer with its bill. `at`: when it was sent."""
    usage = found.usage
    answer = Answer(
        text=found.text,
        end=found.end,
        prompt_tokens=usage.size if usage else 0,
        new_tokens=usage.output if usage else 0,
        seconds=seconds,
        reason=found.reason,
        first_seconds=first,
        thought_tokens=usage.thoughts if usage else 0,
        cached_tokens=usage.cached if usage else 0,
        model=found.model_version,
        response_id=found.response_id,
        tier=tier,
    )
    if usage is None:
        return Served(answer, {"missing": True}, None)
    return Served(answer, usage.to_json(), _cost(model, found.model_version, usage, tier=tier, at=at))


def _cost(model: str, version: str, usage: Usage, *, tier: str, at: datetime) -> int | None:
    """Return what a reply cost by the price of the model that answered; None, the most it can have cost, where that
    model has no price."""
    name = model if is_expected(model, version) else answering_model(version)
    if name is None:
        return None
    try:
        return prices.request_price(name, usage, tier=tier, at=at)
    except BudgetError:
        if name == model:
            raise
        return None


def _plain(response: Any) -> dict[str, Any]:
    """Return a response of the library as the JSON it came from."""
    body: dict[str, Any] = response.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_UNSENT)
    return body
