"""The decision where a request is answered, and why: a pure function of the policy, what is known of the request, and
the evidence.

The class comes first and is only ever raised. Then each lane is asked what stands against it, and the local one what
speaks for leaving it. Gemini is taken where nothing stands against it and something speaks for it; else the local
model; else nothing is. So an unknown (no class, no price, a scan that was cut off) never leads out of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.gemini.prices import usd_of
from gemma_ops.privacy.classes import stricter, strictest
from gemma_ops.routing.routing_evidence import EvidenceTable
from gemma_ops.routing.routing_policy import Lane, Place, RoutingPolicy
from gemma_ops.routing.signals import Signals


@dataclass(frozen=True)
class LaneDecision:
    """The decision where one request is answered."""

    lane: Lane
    privacy: Privacy
    """Privacy class that the request has in the end."""
    reasons: tuple[str, ...]
    """Reasons, a sentence each; the first is about the privacy class."""
    policy: str
    """Digest of the policy."""
    dollars: float | None = None
    """Expected US dollars; 0 on this machine, None where the request is refused."""
    again: bool = False
    """Whether a refused request may be answered later, since only the engine is away."""
    evidence: str = ""
    """Evidence about its slice: `keep`, `send`, `undecided`, or nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return the decision as a JSON object."""
        return {
            "lane": self.lane, "privacy": self.privacy, "reasons": list(self.reasons), "dollars": self.dollars,
            "again": self.again, "evidence": self.evidence, "policy": self.policy,
        }  # fmt: skip


def decide_lane(policy: RoutingPolicy, signals: Signals, table: EvidenceTable | None = None) -> LaneDecision:
    """Decide one request."""
    privacy, why = request_class(policy, signals)
    lanes = policy.classes.of(privacy)
    shown = table.about(signals.task, signals.slices) if table and signals.task else None
    down = not signals.local.up
    here = _against_local(policy, signals, privacy, lanes)
    away = _against_gemini(policy, signals, privacy, lanes)
    pulls = _for_gemini(policy, signals, shown.decision if shown else "", shown.words if shown else "")
    if lanes[:1] == ("gemini",):
        pulls.append(f"the policy prefers Gemini for class {privacy}")
    lane: Lane
    if not away and (pulls or here or down):
        lane, said = "gemini", [*(["the local engine does not answer"] if down else []), *here, *pulls]
    elif not here and not down:
        lane, said = "local", [_fits(policy, signals), *(f"{pull}; not there, since {away[0]}" for pull in pulls)]
        if shown and not pulls:
            said.append(shown.words)
    else:
        lane, said = "refuse", [*(["the local engine does not answer"] if down else []), *here, *away]
    return LaneDecision(
        lane, privacy, (why, *said), policy.digest,
        dollars={"local": 0.0, "gemini": signals.gemini.dollars, "refuse": None}[lane],
        again=lane == "refuse" and not here, evidence=shown.decision if shown else "",
    )  # fmt: skip


def request_class(policy: RoutingPolicy, signals: Signals) -> tuple[Privacy, str]:
    """Return the class of a request, and why. Whatever is known only raises it."""
    declared: Privacy = signals.declared or "local_only"
    raised = {kind: policy.detectors.raised(kind) for kind in signals.found}
    unseen: Privacy = "any" if signals.scanned else "local_only"
    found = strictest([declared, signals.floor, signals.learned, unseen, *raised.values()])
    head = f"class {found}"
    if found == declared:
        return found, f"{head}: {'declared' if signals.declared else 'no class was declared'}"
    if kinds := [kind for kind, to in raised.items() if to == found]:
        return found, f"{head}: {', '.join(kinds)} found in it (declared {declared})"
    if unseen == found:
        return found, f"{head}: too long to be scanned in {policy.detectors.seconds:g} s (declared {declared})"
    if stricter(signals.learned, signals.floor) == signals.floor:
        return found, f"{head}: the laxest that this server takes (declared {declared})"
    return found, f"{head}: the model spoke before, and learned from rows of that class (declared {declared})"


def _against_local(policy: RoutingPolicy, signals: Signals, privacy: Privacy, lanes: tuple[Place, ...]) -> list[str]:
    """Return what rules out the local lane for good; that its engine is away is told apart."""
    found = [] if "local" in lanes else [f"the policy gives class {privacy} no local lane"]
    context = _context(policy, signals)
    if shown := sorted(set(signals.modalities) - set(policy.local.modalities)):
        found.append(f"{_listed(shown)} is not shown to the local model")
    if signals.hosted:
        found.append(f"{_listed(signals.hosted)} is run by a service, not here")
    if not shown and context and signals.tokens >= context:
        found.append(f"{signals.tokens:,} tokens are too many for the {context:,} here")
    if signals.local.why_not and not found:
        found.append(f"the local model can't be asked so: {signals.local.why_not}")
    return found


def _against_gemini(policy: RoutingPolicy, signals: Signals, privacy: Privacy, lanes: tuple[Place, ...]) -> list[str]:
    """Return what rules out Gemini. What the class forbids is reported alone: nothing else matters then."""
    rules, state = policy.gemini, signals.gemini
    if privacy == "local_only":
        return ["class local_only never leaves this machine"]
    if "gemini" not in lanes:
        return [f"the policy keeps class {privacy} on this machine"]
    if privacy not in state.sees:
        return [f"class {privacy} is sent under paid terms only, and {rules.model} is not asked under such"]
    found = [f"Gemini can't be asked: {state.why_not}"] if state.why_not else []
    if shown := sorted(set(signals.modalities) - set(rules.modalities)):
        found.append(f"the policy sends Gemini no {_listed(shown)}")
    if tools := [name for name in signals.hosted if name not in rules.hosted_tools]:
        found.append(f"the policy has no {_listed(tools)} run at Gemini")
    if state.context and signals.tokens > state.context:
        found.append(f"{signals.tokens:,} tokens are too many for the {state.context:,} of {rules.model}")
    if state.most is None:
        found.append(f"no price of {rules.model} is known")
    elif state.most > policy.budget.dollars_per_request:
        cap = usd_of(policy.budget.dollars_per_request)
        found.append(f"it could cost {usd_of(state.most)}, and {cap} is the most for a request")
    elif state.most > state.left:
        found.append(f"it could cost {usd_of(state.most)}, and {usd_of(state.left)} is left of {state.of}")
    return found


def _for_gemini(policy: RoutingPolicy, signals: Signals, shown: str, words: str) -> list[str]:
    """Return why work that could be done here is better sent."""
    found = []
    if (shown == "send" and policy.quality.send == "gemini") or (
        shown == "undecided" and policy.quality.undecided == "gemini"
    ):
        found.append(words)
    if signals.local.waiting > policy.latency.waiting:
        found.append(f"{signals.local.waiting} requests wait here, more than {policy.latency.waiting}")
    elif signals.local.wait_seconds > policy.latency.wait_seconds:
        wait, most = signals.local.wait_seconds, policy.latency.wait_seconds
        found.append(f"it would wait about {wait:.0f} s here, more than {most:g}")
    context = _context(policy, signals)
    if context and signals.tokens < context < signals.tokens + signals.reply:
        found.append(
            f"{signals.tokens:,} tokens leave no room for {signals.reply:,} of a reply in the {context:,} here"
        )
    return found


def _fits(policy: RoutingPolicy, signals: Signals) -> str:
    context = _context(policy, signals)
    return f"{signals.tokens:,} tokens fit here" + (f" ({context:,})" if context else "")


def _context(policy: RoutingPolicy, signals: Signals) -> int:
    """Return the tokens of prompt and reply that are taken here; 0 where nothing says."""
    known = [size for size in (policy.local.context, signals.local.context) if size]
    return min(known, default=0)


def _listed(names: Any) -> str:
    return " and ".join(names)
