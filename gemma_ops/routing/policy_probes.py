"""Probes of a policy: each example is decided, and must end in the lane that it names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from gemma_ops.gemini.models import model_facts
from gemma_ops.routing.decision import LaneDecision, decide_lane
from gemma_ops.routing.reply_estimate import estimate_reply
from gemma_ops.routing.routing_evidence import EvidenceTable, SliceEvidence
from gemma_ops.routing.routing_policy import Probe, ProbeTraits, RoutingPolicy
from gemma_ops.routing.scan import scan
from gemma_ops.routing.signals import GeminiState, LocalState, Signals

_TASK = "task"


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of one probe."""

    probe: Probe
    decision: LaneDecision

    @property
    def passed(self) -> bool:
        """True if lane and reasons are as the probe says."""
        because = self.probe.because.lower() in " ".join(self.decision.reasons).lower()
        return self.decision.lane == self.probe.lane and because

    @property
    def words(self) -> str:
        """Return the result as a line."""
        mark, decided = "ok  " if self.passed else "FAIL", self.decision
        if self.passed:
            return f"{mark} {self.probe.name}: {decided.lane}"
        wanted = self.probe.lane + (f" because {self.probe.because!r}" if self.probe.because else "")
        return f"{mark} {self.probe.name}: {decided.lane}, not {wanted} ({'; '.join(decided.reasons)})"


def check_probes(policy: RoutingPolicy) -> tuple[ProbeResult, ...]:
    """Decide every probe of a policy. Raises ConfigError for a model that is not known."""
    return tuple(ProbeResult(probe, _decided(policy, probe.given)) for probe in policy.probes)


def _decided(policy: RoutingPolicy, given: ProbeTraits) -> LaneDecision:
    seen = scan([given.text], policy.detectors)
    expected, most = estimate_reply(
        policy.gemini, tokens=given.tokens, reply=given.reply, bound=4 * given.tokens, at=datetime.now(UTC),
        tier="standard",
    )  # fmt: skip
    known = model_facts(policy.gemini.model)
    paid = given.paid_terms and known.paid_tier
    signals = Signals(
        declared=given.privacy, found=seen.kinds, scanned=seen.whole, learned=given.learned, tokens=given.tokens,
        reply=given.reply, bound=4 * given.tokens, modalities=given.modalities, functions=given.functions,
        hosted=given.hosted_tools, task=_TASK if given.evidence else "",
        local=LocalState(given.up, given.waiting, given.wait_seconds, given.context),
        gemini=GeminiState(
            sees=("paid", "any") if paid else ("any",), context=known.context, dollars=expected, most=most,
            left=policy.budget.dollars_per_day if given.left is None else given.left,
        ),
    )  # fmt: skip
    lines = (
        {(_TASK, "", ""): SliceEvidence(given.evidence, f"the evaluation says {given.evidence}")}
        if given.evidence
        else {}
    )
    return decide_lane(policy, signals, EvidenceTable(lines))
