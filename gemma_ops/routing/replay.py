"""Replay of a log under another policy: what it would have cost, whose requests it would have sent out, and what it
would have lost.

Each record's request is decided again from what was known of it then. What Gemini would have cost is priced at the
tokens that the request had, at today's prices; where a request went there under both policies and to the same model,
at what it did cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.prices import usd_of
from gemma_ops.routing.decision import LaneDecision, decide_lane
from gemma_ops.routing.decision_log import RouteRecord
from gemma_ops.routing.reply_estimate import estimate_reply
from gemma_ops.routing.routing_evidence import EvidenceTable, SliceEvidence
from gemma_ops.routing.routing_policy import RoutingPolicy
from gemma_ops.targets.gemini_target import gemini_identity


@dataclass
class Replay:
    """A log under the recorded policy and under another."""

    requests: int = 0
    before: Counter[str] = field(default_factory=Counter)
    """Number of requests by the lane that answered them."""
    after: Counter[str] = field(default_factory=Counter)
    """Number of requests by the lane that the other policy decides."""
    dollars_before: float = 0.0
    dollars_after: float = 0.0
    unpriced: int = 0
    """Number of requests that would go to Gemini at a price that isn't known."""
    leaked: list[str] = field(default_factory=list)
    """Ids of requests that it would have sent out although the recorded policy kept their class here."""
    withheld: list[str] = field(default_factory=list)
    """Ids of requests that were sent out, and whose class it keeps here."""
    lost: list[str] = field(default_factory=list)
    """Ids of requests that were answered, and that it would have refused."""
    gained: list[str] = field(default_factory=list)
    """Ids of requests that were refused, and that it would have had answered."""
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of requests whose lane changes, by the lane before and after."""
    policies: Counter[str] = field(default_factory=Counter)
    """Digests of the recorded policies."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "requests": self.requests, "before": dict(self.before), "after": dict(self.after),
            "dollars_before": self.dollars_before, "dollars_after": self.dollars_after, "unpriced": self.unpriced,
            "leaked": self.leaked, "withheld": self.withheld, "lost": self.lost, "gained": self.gained,
            "moved": [{"before": a, "after": b, "requests": n} for (a, b), n in sorted(self.moved.items())],
            "policies": dict(self.policies),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the result as a person reads it."""
        lanes = [lane for lane in ("local", "gemini", "refuse") if self.before[lane] or self.after[lane]]
        text = [f"{self.requests:,} requests   then  with this policy"]
        text += [f"  {lane:<12}{self.before[lane]:>9,}{self.after[lane]:>18,}" for lane in lanes]
        text.append(f"  {'dollars':<12}{usd_of(self.dollars_before):>9}{usd_of(self.dollars_after):>18}")
        if self.unpriced:
            text.append(f"  {self.unpriced:,} would go to Gemini at a price that is not known")
        told = (
            ("would be sent out, and the policy of then kept their class here", self.leaked),
            ("were sent out, and this policy keeps their class here", self.withheld),
            ("were answered, and would be refused", self.lost),
            ("were refused, and would be answered", self.gained),
        )
        for words, ids in told:
            shown = f": {', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}" if ids else ""
            text.append(f"{len(ids):,} {words}{shown}")
        return text


def replay_log(records: Iterable[RouteRecord], policy: RoutingPolicy) -> Replay:
    """Decide every request of a log again. Raises ConfigError for a model that is not known."""
    found = Replay()
    for record in records:
        decided = _again(record, policy)
        before, after = record.outcome.lane, decided.lane
        found.requests += 1
        found.policies[record.decision.policy] += 1
        found.before[before] += 1
        found.after[after] += 1
        found.dollars_before += record.outcome.dollars or 0.0
        if after == "gemini":
            cost = _cost(record, policy)
            found.dollars_after += cost or 0.0
            found.unpriced += cost is None
        if before != after:
            found.moved[before, after] += 1
        if after == "gemini" and "gemini" not in record.allowed:
            found.leaked.append(record.id)
        if before == "gemini" and "gemini" not in policy.classes.of(decided.privacy):
            found.withheld.append(record.id)
        if after == "refuse" and before != "refuse":
            found.lost.append(record.id)
        if before == "refuse" and after != "refuse":
            found.gained.append(record.id)
    return found


def _again(record: RouteRecord, policy: RoutingPolicy) -> LaneDecision:
    """Return the decision by another policy: its own price, its own model's terms and context, the evidence only about
    that."""
    signals, rules = record.signals, policy.gemini
    table = EvidenceTable()
    state = signals.gemini
    if record.asked != gemini_identity(rules.model, rules.thinking):
        known = model_facts(rules.model)
        expected, most = estimate_reply(
            rules, tokens=signals.tokens, reply=signals.reply, bound=signals.bound, at=datetime.now(UTC),
            tier="standard",
        )  # fmt: skip
        sees = state.sees if known.paid_tier else ("any",)
        state = replace(state, context=known.context, dollars=expected, most=most, sees=sees)
    elif record.decision.evidence:
        words = f"the evaluation said {record.decision.evidence}"
        line = SliceEvidence(record.decision.evidence, words)  # type: ignore[arg-type]
        table = EvidenceTable({(signals.task, "", ""): line})
    return decide_lane(policy, replace(signals, slices=(), gemini=state), table)


def _cost(record: RouteRecord, policy: RoutingPolicy) -> float | None:
    """Return what a request costs at Gemini under a policy, in dollars."""
    same = record.asked == gemini_identity(policy.gemini.model, policy.gemini.thinking)
    if same and record.outcome.lane == "gemini" and record.outcome.dollars is not None:
        return record.outcome.dollars
    signals, outcome = record.signals, record.outcome
    written = outcome.reply_tokens if outcome.lane == "local" and outcome.reply_tokens else signals.reply
    expected, _ = estimate_reply(
        policy.gemini, tokens=signals.tokens, reply=written, bound=signals.bound, at=datetime.now(UTC), tier="standard"
    )
    return expected
