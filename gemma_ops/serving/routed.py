"""The model `auto`: each request is decided by the policy, and answered by the local model or by Gemini.

Where a lane fails, the request is decided again without it; the first decision is what is logged, with what came of
it. A class that stays here therefore never leaves after a failure either: the same function says so. Where a request
was answered, by what and why is reported in headers of the reply and next to its usage.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gemma_ops.config import Privacy
from gemma_ops.errors import OpsError
from gemma_ops.routing.decision import LaneDecision, decide_lane
from gemma_ops.routing.decision_log import DecisionLog, Outcome, RouteRecord
from gemma_ops.routing.gemini_lane import GeminiLane, classed
from gemma_ops.routing.routing_evidence import EvidenceTable
from gemma_ops.routing.routing_policy import Lane, Place, RoutingPolicy
from gemma_ops.routing.signals import Signals
from gemma_ops.serving.gemini_service import GeminiService
from gemma_ops.serving.key_budgets import KeyBudgets
from gemma_ops.serving.keys import Grant
from gemma_ops.serving.lane_failures import header_text, is_lane_failure, no_lane, without_lane
from gemma_ops.serving.lanes import LaneSummary, LaneTally
from gemma_ops.serving.model import Said
from gemma_ops.serving.reply_way import Events, PendingRequest, Shape, answer_whole, streamed
from gemma_ops.serving.routed_request import RoutedRequest, read_declared, read_routed
from gemma_ops.serving.sending import failed, refusal_response, then
from gemma_ops.serving.serving_state import ModelService, ServedFacts
from gemma_ops.serving.token_reader import Piece
from gemma_ops.targets.gemini_target import gemini_identity
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import Beyond

AUTO = "auto"
"""The model name whose requests are routed."""


LANE_HEADER = "x-gemma-ops-lane"
"""Header of a reply that says where it was made: `local`, `gemini` or `refuse`."""


@dataclass(frozen=True)
class SpokenProtocol:
    """Functions of a protocol: its whole reply, its events, its refusals, and whether `[DONE]` closes a stream."""

    whole_reply: Any
    events: Events
    shape: Shape
    done: bool


@dataclass
class _Course:
    """One request on its way through the lanes."""

    body: Any
    asked: PendingRequest
    routed: RoutedRequest
    first: LaneDecision
    decision: LaneDecision
    began: float
    tried: list[Place] = field(default_factory=list)
    gemini: GeminiService | None = None
    settle: Callable[[float | None], None] | None = None
    """Function that tells the key's budget what was billed."""


@dataclass
class _NoLease:
    """Placeholder for a lease: Gemini has none."""

    service: Any


class Router:
    """The policy in force with its access to Gemini, its log and its counts."""

    def __init__(
        self,
        policy: RoutingPolicy,
        lane: GeminiLane,
        log: DecisionLog,
        budgets: KeyBudgets,
        *,
        name: str,
        floor: Privacy,
        rehearsal: bool,
    ) -> None:
        """Open the router; `floor` is the least strict class that a client may declare, `rehearsal` says whether an
        emulator stands in for Gemini."""
        self.policy, self.lane, self.log, self.budgets = policy, lane, log, budgets
        self.tally = LaneTally()
        self._name, self._floor, self._rehearsal = name, floor, rehearsal
        self._tables: dict[int, tuple[ServedFacts, EvidenceTable]] = {}

    async def answer(
        self, request: Request, body: Any, ask: Ask, beyond: Beyond, asked: PendingRequest, manner: SpokenProtocol
    ) -> Response:
        """Return the reply to one request, from whichever lane. Raises RefusalError for a request that is wrong in
        itself."""
        declared = read_declared(request, body, asked.grant.privacy)
        table = self._evidence(asked.service.facts)
        routed = await read_routed(
            declared, ask, beyond, service=asked.service, lane=self.lane, policy=self.policy, table=table,
            floor=self._floor, number=asked.number,
        )  # fmt: skip
        signals = self._within_budget(routed.signals, asked.grant)
        first = decide_lane(self.policy, signals, table)
        course = _Course(body, asked, replace(routed, signals=signals), first, first, time.monotonic())
        while course.decision.lane != "refuse":
            try:
                return await self._by(request, course, manner)
            except (RefusalError, OpsError) as error:
                refusal = error if isinstance(error, RefusalError) else failed(error)
                place: Place = "gemini" if course.decision.lane == "gemini" else "local"
                course.tried.append(place)
                if not is_lane_failure(refusal, place):
                    return self._refused(course, refusal, manner)
                signals = without_lane(signals, place)
                other = decide_lane(self.policy, signals, table)
                why = f"{place} failed ({refusal.code or refusal.status})"
                course.decision = replace(other, reasons=(other.reasons[0], why, *other.reasons[1:]))
                if other.lane in ("refuse", *course.tried):
                    return self._refused(course, refusal, manner)
        return self._refused(course, no_lane(course.decision), manner)

    def _within_budget(self, signals: Signals, grant: Grant) -> Signals:
        """Return the facts about the request with its key's budget, where that is the smaller."""
        left = self.budgets.left(grant)
        if left >= signals.gemini.left:
            return signals
        return replace(signals, gemini=replace(signals.gemini, left=left, of=f"{grant.name}'s budget"))

    def summary(self) -> LaneSummary:
        """Return the policy in force and what each lane answered."""
        return LaneSummary(self._words(), self.tally.rows())

    def told(self) -> str:
        """Return what a person is told of it when the server listens."""
        return f"routing: model {AUTO} by {self._words()}; decisions in {self.log.path}"

    def _words(self) -> str:
        way = f"Gemini is shut ({self.lane.shut})"
        if not self.lane.shut:
            place = "an emulator stands in for " if self._rehearsal else ""
            way = f"{place}{self.lane.rules.model}, ${self.lane.state().left:,.2f} left today"
        return f"{self._name} ({self.policy.digest[:12]}); {way}"

    def as_gemini(self) -> dict[str, Any]:
        """Return what `auto` is in Gemini's list of models, where it differs from the local one."""
        told = f"answered here or by {self.lane.rules.model}, by policy {self._name}"
        takes = self.lane.facts.context
        return {"name": f"models/{AUTO}", "displayName": AUTO, "description": told, "inputTokenLimit": takes}

    def metrics(self) -> str:
        """Return the counts by lane in Prometheus' text format."""
        return self.tally.render(self.lane.state().left)

    def close(self) -> None:
        """Let the courier go, and write what is left of the log."""
        self.lane.close()
        self.log.close()

    def _evidence(self, facts: ServedFacts) -> EvidenceTable:
        """Return what is shown of the version that answers; made once for each."""
        known = self._tables.get(id(facts))
        if known is None or known[0] is not facts:
            table = EvidenceTable.of(
                facts.evidence, served=facts.format, rules=self.policy.gemini, rehearsal=self._rehearsal
            )
            known = self._tables[id(facts)] = (facts, table)
        return known[1]

    async def _by(self, request: Request, course: _Course, manner: SpokenProtocol) -> Response:
        """Return the reply of the lane that was decided, with the lane in it."""
        ask, asked = course.routed.ask, course.asked
        if course.decision.lane == "gemini":
            sent = classed(course.routed.carried.request, course.decision.privacy)
            course.gemini = GeminiService(self.lane, sent)
            course.settle = self.budgets.reserve(asked.grant, course.routed.signals.gemini.most or 0.0)
            asked = PendingRequest(asked.number, _NoLease(course.gemini))  # type: ignore[arg-type]
        if ask.stream:
            response = await streamed(request, ask, asked, self._marked(course, manner), manner.shape, done=manner.done)
        else:
            found = await answer_whole(request, manner.whole_reply(asked.service, ask, asked.number), asked)
            if isinstance(found, dict):
                self._mark(found, course)
            response = found if isinstance(found, Response) else JSONResponse(found)
        return self._ended(course, response, course.decision.lane, asked.said)

    def _marked(self, course: _Course, manner: SpokenProtocol) -> Events:
        """Return the protocol's events, with the lane next to the usage."""

        async def events(
            service: ModelService, ask: Ask, said: Said, pieces: AsyncIterator[Piece], request: str
        ) -> AsyncIterator[dict[str, Any]]:
            async for event in manner.events(service, ask, said, pieces, request):
                self._mark(event, course)
                yield event

        return events

    def _mark(self, body: dict[str, Any], course: _Course) -> None:
        lane, model, dollars = course.decision.lane, self._model(course), self._dollars(course)
        for key, name in (("usage", "gemma_ops"), ("usageMetadata", "gemmaOps")):
            if isinstance(body.get(key), dict):
                body[key][name] = {"lane": lane, "model": model, "dollars": dollars}

    def _model(self, course: _Course) -> str:
        facts = (
            course.gemini.facts if course.decision.lane == "gemini" and course.gemini else course.asked.service.facts
        )
        return facts.model + (f"/{facts.version}" if facts.version else "")

    def _dollars(self, course: _Course) -> float | None:
        """Return what was billed so far, for whichever lane: a reply of Gemini's that failed may have cost
        something."""
        gemini = course.gemini
        if gemini is None or not gemini.sent:
            return 0.0
        return gemini.answer.dollars if gemini.answer else None

    def _refused(self, course: _Course, refusal: RefusalError, manner: SpokenProtocol) -> Response:
        """Return an error in the protocol's own shape, with the reasons in its headers."""
        response = refusal_response(refusal, manner.shape)
        if refusal.status == 503:
            response.headers.setdefault("Retry-After", "1")
        return self._ended(course, response, "refuse", Said())

    def _ended(self, course: _Course, response: Response, lane: Lane, said: Said) -> Response:
        """Say where the request was answered, and log it once it was."""
        notes = course.routed.carried.notes if lane == "gemini" else ()
        told = {
            "lane": lane,
            "privacy": course.decision.privacy,
            "reasons": header_text((*course.decision.reasons, *notes)),
        }
        told |= {"policy": self.policy.digest[:12]} | ({} if lane == "refuse" else {"model": self._model(course)})
        streams = isinstance(response, StreamingResponse)
        if not streams and (dollars := self._dollars(course)) is not None:
            told["dollars"] = f"{dollars:.9f}".rstrip("0").rstrip(".")
        for name, value in told.items():
            response.headers[f"x-gemma-ops-{name}"] = value
        if isinstance(response, StreamingResponse):
            status = response.status_code
            response.body_iterator = then(response.body_iterator, lambda: self._record(course, lane, said, status))
        else:
            self._record(course, lane, said, response.status_code)
        return response

    def _record(self, course: _Course, lane: Lane, said: Said, status: int) -> None:
        signals, first = course.routed.signals, course.first
        outcome = Outcome(
            lane, status, "" if lane == "refuse" else self._model(course), said.end, said.prompt_tokens, said.tokens,
            said.thought_tokens, self._dollars(course), round(time.monotonic() - course.began, 4),
            tuple(place for place in course.tried if place != lane),
        )  # fmt: skip
        asks = gemini_identity(self.policy.gemini.model, self.policy.gemini.thinking)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        allowed = self.policy.classes.of(first.privacy)
        key = course.asked.grant.name
        self.log.add(RouteRecord(at, self.log.id_of(course.body), first, signals, allowed, asks, outcome, key))
        if course.settle:
            course.settle(outcome.dollars)
        self.tally.add(first.privacy, outcome)
        course.asked.outcome, course.asked.privacy, course.asked.said = outcome, first.privacy, said
        course.asked.ask = course.routed.ask if lane == "local" else None
