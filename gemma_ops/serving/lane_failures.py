"""Failures of lanes: what a failed lane, or having no lane, means for a request to `auto`, and how it is reported."""

from __future__ import annotations

from dataclasses import replace

from gemma_ops.routing.decision import LaneDecision
from gemma_ops.routing.routing_policy import Place
from gemma_ops.routing.signals import Signals
from gemma_ops.serving.gemini_service import GeminiFailedError
from gemma_ops.serving.routed_request import PRIVACY_HEADER
from gemma_ops.wire.ask import RefusalError


def is_lane_failure(refusal: RefusalError, place: Place) -> bool:
    """True if the lane is to blame, and not the request."""
    return (
        isinstance(refusal, GeminiFailedError) if place == "gemini" else refusal.status >= 500 or refusal.status == 429
    )


def without_lane(signals: Signals, place: Place) -> Signals:
    """Return the facts about the request once a lane has failed."""
    if place == "local":
        return replace(signals, local=replace(signals.local, up=False))
    return replace(signals, gemini=replace(signals.gemini, why_not="it failed just now"))


def no_lane(decision: LaneDecision) -> RefusalError:
    """Return what a client is told of a request that no lane may answer."""
    words = "no lane may answer this: " + "; ".join(decision.reasons)
    if "no class was declared" in decision.reasons[0] and not decision.again:
        words += f". Where it may leave, declare its class in the header {PRIVACY_HEADER}"
    return RefusalError(words, status=503 if decision.again else 400, code="no_lane")


def header_text(reasons: tuple[str, ...]) -> str:
    """Return reasons as a header may hold them."""
    text = "; ".join(reasons).encode("ascii", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)[:1000]
