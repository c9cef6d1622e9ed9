"""Faults on order: each by name, how often, for which requests, or for a share of them by a seed.

429            too many requests, with RetryInfo (`seconds`)          billed: no
429_daily      the day's quota is used up                            no
429_bare       too many requests, in words alone: no value, no wait  no
429_closed     a model that is not open to the tier, in words alone  no
500, 503       internal error, overloaded                            no
502            an HTML page from something in between                no
400            a request the service does not take                   no
401, 403       credentials missing, or without the right             no
404            a model that is not there                             no
408, 504       the service gave up on a request that took too long   no
slow           the reply comes after `seconds`                       yes
cut            the connection closes instead of a reply              yes: the work was done
cut_reply      half the reply, then the connection closes            yes
cut_stream     a stream ends after its first event                   yes
stream_error   a stream sends an error after its first event         yes
bad_json       200 with something that is not JSON                   yes
violates_schema  JSON that lacks what the schema asks for            yes
truncated      MAX_TOKENS in the middle of the text                  yes
max_tokens     MAX_TOKENS and no text: thinking took all of it       yes
blocked_prompt promptFeedback with a block reason, no candidates     prompt
blocked_reply  finish reason SAFETY, no content                      yes
recitation     finish reason RECITATION, no content                  yes
no_candidates  200 without candidates and without a reason           prompt
no_usage       a reply without usageMetadata                         yes
continuation   half the text, to be fetched by a second request      yes
item_503       an error in place of one reply in a batch             no
item_missing   one reply of a batch is not in its results            no
batch_failed   the job ends in BATCH_STATE_FAILED                    no
batch_expired  the job ends in BATCH_STATE_EXPIRED                   no
output_late    the job has succeeded, its results come a poll later  yes
upload_failed  the upload session ends in an error                   no
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.emulator.routes import GROUPS
from gemma_ops.errors import ConfigError
from gemma_ops.wire.gemini_wire import Refusal

HTTP = frozenset(
    {"400", "401", "403", "404", "408", "429", "429_bare", "429_closed", "429_daily", "500", "502", "503", "504"}
)
TRANSPORT = frozenset({"slow", "cut", "cut_reply", "cut_stream", "stream_error", "bad_json"})
REPLIES = frozenset({"violates_schema", "truncated", "max_tokens", "blocked_prompt", "blocked_reply"}) | {
    "recitation",
    "no_candidates",
    "no_usage",
    "continuation",
}
ITEMS = frozenset({"item_503", "item_missing"})
JOBS = frozenset({"batch_failed", "batch_expired", "output_late"})
UPLOADS = frozenset({"upload_failed"})
NAMES = HTTP | TRANSPORT | REPLIES | ITEMS | JOBS | UPLOADS
_GOOGLE = "type.googleapis.com/google.rpc."


def _where(name: str) -> frozenset[str]:
    """Return the operations a fault strikes unless told otherwise."""
    if name in ITEMS:
        return frozenset({"item"})
    if name in JOBS:
        return frozenset({"batch_create"})
    if name in UPLOADS:
        return frozenset({"upload"})
    if name in ("cut_stream", "stream_error"):
        return frozenset({"stream"})
    return frozenset({"generate", "stream", "item"} if name in REPLIES else {"generate", "stream"})


@dataclass
class Rule:
    """One fault on order."""

    name: str
    times: int | None = 1
    """Times that it still strikes; None for always."""
    match: str | Callable[[EmulatedCall], bool] | None = None
    """Text that the path or body of a call must hold, or a function that must be true of the call."""
    on: frozenset[str] = frozenset()
    share: float = 1.0
    """Share of the calls that it strikes, chosen by the seed, the question and how often it was put."""
    seconds: float = 1.0
    """Seconds of delay that a 429 asks for, or that `slow` takes."""
    salt: str = field(default="", compare=False)

    def strikes(self, call: EmulatedCall, op: str, chance: str) -> bool:
        if self.times == 0 or op not in self.on:
            return False
        if self.share < 1.0:
            draw = hashlib.blake2b(f"{self.salt}/{chance}".encode(), digest_size=8).digest()
            if int.from_bytes(draw) / 2**64 >= self.share:
                return False
        if self.match is None:
            return True
        if callable(self.match):
            return self.match(call)
        return self.match in call.path or self.match in call.raw.decode("utf-8", "replace")


class Faults:
    """Faults on order, first come first served."""

    def __init__(self, seed: int) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._seed = seed
        self._orders = 0

    def add(self, name: str, *, on: str | None, **how: Any) -> None:
        if name not in NAMES:
            raise ConfigError(f"no fault is called {name!r}", f"take one of {', '.join(sorted(NAMES))}")
        if on is not None and on != "any" and on not in GROUPS:
            raise ConfigError(f"no operation is called {on!r}", f"take one of any, {', '.join(GROUPS)}")
        ops = (
            frozenset(op for group in GROUPS.values() for op in group)
            if on == "any"
            else frozenset(GROUPS.get(on or "", ()))
        )
        with self._lock:
            self._orders += 1
            self._rules.append(Rule(name, on=ops or _where(name), salt=f"{self._seed}/{self._orders}", **how))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def take(self, call: EmulatedCall, op: str, chance: str) -> Rule | None:
        """Return the fault that strikes this call, if any, and count it as done."""
        with self._lock:
            for rule in self._rules:
                if rule.strikes(call, op, chance):
                    if rule.times is not None:
                        rule.times -= 1
                    return rule
        return None


def refuse_request(rule: Rule, model: str) -> Reaction:
    """Return the reply of a fault that is an HTTP status."""
    if rule.name == "502":
        page = b"<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
        return Reaction(502, page, {"Content-Type": "text/html"})
    if rule.name.startswith("429"):
        return Reaction(429, _quota(rule, model).body())
    text = {
        "400": "Request contains an invalid argument.",
        "401": "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or "
        "other valid authentication credential.",
        "403": "Permission denied on resource project.",
        "404": f"models/{model} is not found for API version v1, or is not supported for generateContent.",
        "408": "The request timed out. Please try again.",
        "504": "The request timed out. Please try again.",
        "500": "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
        "503": "The model is overloaded. Please try again later.",
    }[rule.name]
    return Reaction(int(rule.name), Refusal(int(rule.name), text).body())


def _quota(rule: Rule, model: str) -> Refusal:
    """Return the body of a 429, as the Developer API words it."""
    daily = rule.name == "429_daily"
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    if rule.name in ("429_bare", "429_closed"):
        limit = 0 if rule.name == "429_closed" else 10
        failure = {
            "@type": _GOOGLE + "QuotaFailure",
            "violations": [
                {
                    "quotaMetric": metric,
                    "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
                    "quotaDimensions": {"location": "global", "model": model},
                }
            ],
        }
        words = "You exceeded your current quota, please check your plan and billing details."
        return Refusal(
            429, f"{words}\n* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}", [failure]
        )
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_requests_per_model" + ("_per_day" if daily else ""),
        "quotaId": f"GenerateRequestsPer{'Day' if daily else 'Minute'}PerProjectPerModel",
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": "10",
    }
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
    )
    details: list[dict[str, Any]] = [
        {"@type": _GOOGLE + "QuotaFailure", "violations": [violation]},
        {"@type": _GOOGLE + "Help", "links": [{"url": "https://ai.google.dev/gemini-api/docs/rate-limits"}]},
        {"@type": _GOOGLE + "RetryInfo", "retryDelay": f"{rule.seconds:g}s"},
    ]
    return Refusal(429, message, details)
