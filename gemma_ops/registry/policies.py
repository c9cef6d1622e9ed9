"""The policy of a registered model: its requirements for versions, set and changed by entries of its ledger, each with
a reason.

The first version that was judged by gates proposes it, so that a new model needs no extra command. From then on no
configuration changes it: `gemma-ops policy NAME --from CONFIG --reason …` does, and everybody can read who did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import GateConfig, MachineConfig, PromotionAsks
from gemma_ops.config.policy import PolicyTask, PromotionPolicy, make_policy, softer
from gemma_ops.errors import ConfigError, OpsError
from gemma_ops.registry import lock, promotion_ledger
from gemma_ops.registry.moving import opened_registry
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.shelves import Entry
from gemma_ops.runs import digest
from gemma_ops.verdicts import Verdict


@dataclass(frozen=True)
class PolicyInForce:
    """A policy with the ledger entry that set it; `softer` says in what it asks less than the one before."""

    name: str
    policy: PromotionPolicy
    number: int
    who: str
    at: str
    reason: str
    softer: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the policy, in hex."""
        return digest.of_json(self.policy)

    @property
    def words(self) -> str:
        """Return which policy it is, who set it and why, in a line."""
        return f"policy {self.digest[:12]} (entry {self.number}, {self.at}, {self.who}): {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "model": self.name, "digest": self.digest, "entry": self.number, "who": self.who, "at": self.at,
            "reason": self.reason, "softer": list(self.softer), "policy": self.policy.model_dump(mode="json"),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the policy as a person reads it."""
        text = [f"{self.name}: {self.words}"]
        text += [f"  {gate.task}: {gate.words}" for gate in self.policy.gates]
        text += [
            f"  asked on at least {task.rows:,} questions of {name} ({task.digest[:12]})"
            for name, task in self.policy.tasks.items()
        ]
        text.append(f"  confidence {self.policy.confidence:.0%}, shared by all gates and looks")
        text += [f"  {line}" for line in _asked_besides(self.policy.asks)]
        return text + [f"  softer than the policy before: {line}" for line in self.softer]


def policy_in_force(name: str, entries: list[Entry]) -> PolicyInForce | None:
    """Return the policy that the last entry about one has set; None where none was ever set."""
    for entry in reversed(entries):
        if entry["kind"] == "policy":
            return policy_of(name, entry)
    return None


def policy_of(name: str, entry: Entry) -> PolicyInForce:
    """Return the policy that an entry about one has set."""
    policy = PromotionPolicy.model_validate(entry["policy"])
    return PolicyInForce(name, policy, entry["n"], entry["who"], entry["at"], entry["reason"], tuple(entry["softer"]))


def proposed_policy(
    subject: Mapping[str, Any], verdict: Verdict, asks: PromotionAsks | None = None
) -> PromotionPolicy | None:
    """Return the policy that a version's own gates make, with `asks`; None where nothing was gated. Gates that were
    only reported, such as those on a judge that was not asked, are none."""
    settings = subject["settings"].get("evaluate") or {}
    gates = [GateConfig.model_validate(gate) for gate in settings.get("gates", ())]
    only = next(iter(verdict.tasks)) if len(verdict.tasks) == 1 else None
    keys = ("metric", "target", "test", "versus", "margin")
    undecided = [
        (gate.task, *(getattr(gate, key) for key in keys)) for gate in verdict.gates if gate.outcome == "report_only"
    ]
    decided = [gate for gate in gates if (gate.task or only, *(getattr(gate, key) for key in keys)) not in undecided]
    tasks = {
        name: PolicyTask(digest=task.digest, rows=task.rows, primary=task.primary)
        for name, task in verdict.tasks.items()
    }
    return make_policy(decided, tasks, float(verdict.confidence), asks)


def append_policy(book: PromotionLedger, policy: PromotionPolicy, reason: str) -> PolicyInForce:
    """Write a policy into the ledger, with in what it asks less than the one before."""
    before = policy_in_force(book.name, book.entries())
    less = softer(before.policy, policy) if before else []
    book.append("policy", policy=policy.model_dump(mode="json"), reason=reason, softer=less)
    found = policy_in_force(book.name, book.entries())
    assert found is not None
    return found


def show_policy(machine: MachineConfig, name: str) -> PolicyInForce:
    """Return the policy in force. Raises OpsError where there is none, GateError for a ledger that can't be trusted."""
    with opened_registry(machine, name) as tracking:
        found = policy_in_force(name, PromotionLedger(tracking, name).anchored())
    if found is None:
        raise OpsError(
            f"{name} has no policy: none of its versions was judged by gates",
            f"set one: gemma-ops policy {name} --from CONFIG --reason '…'",
        )
    return found


def set_policy(
    machine: MachineConfig, name: str, policy: PromotionPolicy | None, *, reason: str, new_ledger: bool = False
) -> PolicyInForce:
    """Set the policy of a model, with a reason that is kept. `new_ledger` begins a ledger anew where the old one is
    lost or was changed, and the new one says so.

    Raises ConfigError for a policy without gates, GateError for a ledger that can't be trusted, BusyError while
    somebody else writes.
    """
    why = promotion_ledger.reason_given(reason)
    if policy is None:
        raise ConfigError("a policy needs a gate", "put one into evaluate.gates of the configuration")
    with opened_registry(machine, name) as tracking, lock.held(tracking, name):
        book = PromotionLedger(tracking, name)
        if new_ledger:
            book.restart(why)
        known = policy_in_force(name, book.anchored())
        return known if known and known.policy == policy else append_policy(book, policy, why)


def _asked_besides(asks: PromotionAsks) -> list[str]:
    """Return what is asked besides gates, in words."""
    given, lost = f"{asks.memorized:.0%} of probed training rows given away", f"{asks.refusals_lost:.0%}"
    found = [f"at most {given}, and at most {lost} of the base's refusals lost"]
    found += [f"at most {asks.memory_gb:g} GB to serve"] if asks.memory_gb else []
    found += ["somebody's approval"] if asks.approval else []
    return found + (["a signature by a trusted key"] if asks.signature else [])
