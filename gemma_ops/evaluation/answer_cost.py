"""The cost of answers besides their quality: time, dollars, and data that leaves the machine.

Dollars are what was billed, where something was. On this machine they are its hours: the machine's seconds per answer
at its hourly price, over the share of hours it would be busy. Where neither price nor bill is known, the figure is
unknown, which is not zero. Time is what whoever asks waits: with 16 prompts decoded together, every one waits for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.config import GateConfig, MachineConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.gates.gate_decision import QUANTILES, GateEvidence
from gemma_ops.planning import devices
from gemma_ops.privacy.classes import HERE
from gemma_ops.stats.betting import BoundedSample
from gemma_ops.stats.fewest import fewest
from gemma_ops.stats.intervals import Sample
from gemma_ops.stats.power import clusters_needed
from gemma_ops.tasks.stored_answers import StoredAnswer

Facts = dict[str, Any]


def hour(machine: MachineConfig) -> Facts:
    """Return what an hour of this machine costs: `dollars` (None when unknown), where the figure is `from`, and
    `utilisation`."""
    if machine.dollars_per_hour is not None:
        return {
            "dollars": machine.dollars_per_hour,
            "from": "machine.dollars_per_hour",
            "utilisation": machine.utilisation,
        }
    found = devices.present_devices() if machine.device != "cpu" else []
    if not found or found[0].dollars is None:
        name = found[0].name if found else "this processor"
        return {"dollars": None, "from": f"no list price of {name}", "utilisation": machine.utilisation}
    where = f"{found[0].name}, {found[0].priced}"
    return {"dollars": found[0].dollars, "from": where, "utilisation": machine.utilisation}


@dataclass(frozen=True)
class Money:
    """US dollars per answer, one figure for each; None when unknown, and `basis` says why, or where they are from."""

    dollars: tuple[float, ...] | None
    kind: str
    """Kind of the dollars: `billed`, `machine`, or `unknown`."""
    basis: str


def answer_money(answers: Sequence[StoredAnswer], facts: Facts, target: str) -> Money:
    """Return what each answer of a target cost. `facts` are those of the verdict: `targets`, and `machine` (see
    `hour`)."""
    shown = [answer for answer in answers if answer.end != "hidden"]
    billed = [answer.dollars for answer in shown]
    if any(value is not None for value in billed):
        unpriced = sum(answer.dollars is None and answer.end not in ("blocked", "error") for answer in shown)
        if unpriced:
            return Money(None, "unknown", f"{unpriced:,} of {len(shown):,} answers came without usage")
        tiers = sorted({answer.tier for answer in shown if answer.tier})
        return Money(tuple(value or 0.0 for value in billed), "billed", f"billed ({', '.join(tiers) or 'standard'})")
    if answer_place(facts, target) != HERE:
        return Money(None, "unknown", "no price known: list it in machine.endpoints")
    rate = facts.get("machine") or {"dollars": None, "from": "not recorded", "utilisation": 1.0}
    if rate["dollars"] is None:
        return Money(None, "unknown", f"{rate['from']}: set machine.dollars_per_hour")
    each = rate["dollars"] / 3600 / rate["utilisation"]
    basis = f"${rate['dollars']:g} an hour ({rate['from']}), busy {rate['utilisation']:.0%} of the time"
    return Money(tuple(answer.seconds * each for answer in shown), "machine", basis)


def answer_place(facts: Facts, target: str) -> str:
    """Return where a target's prompts go; evaluations from before services were supported all stayed here."""
    return str(facts.get("targets", {}).get(target, {}).get("place", HERE))


def spent(
    answers: Sequence[StoredAnswer], facts: Facts, target: str, confidence: float, most: float | None = None
) -> Facts:
    """Return `usd_per_1k` with its interval, `kind` and `basis`; figures are None where unknown. So is the upper end
    without `most`, what 1,000 answers can cost at most: the next answer may then be of any price."""
    found = answer_money(answers, facts, target)
    body: Facts = {"usd_per_1k": None, "low": None, "high": None, "kind": found.kind, "basis": found.basis}
    if found.dollars:
        sample = Sample.of([1000 * value for value in found.dollars])
        known = Below(sample, False, sample.mean, None, most)
        low, high = (known.bound((1 - confidence) / 2, upper=upper) for upper in (True, False))
        body |= {"usd_per_1k": sample.mean, "low": low, "high": high}
    return body


def answer_speed(answers: Sequence[StoredAnswer]) -> dict[str, float | None]:
    """Return the seconds that askers waited, the machine's seconds, and tokens. None where nothing was measured."""
    shown = [answer for answer in answers if answer.end != "hidden"]
    total = sum(answer.seconds for answer in shown)
    fresh = sum(answer.new_tokens for answer in shown)
    figures: dict[str, float | None] = {}
    for kind in ("seconds", "first_seconds"):
        found = answer_waits(shown, kind)
        for name, quantile in QUANTILES.items():
            figures[f"{kind}_{name}"] = float(np.quantile(found, quantile)) if found else None
    count = max(len(shown), 1)
    return figures | {
        "seconds_total": total,
        "new_tokens_per_second": fresh / total if total and fresh else None,
        "mean_prompt_tokens": sum(answer.prompt_tokens for answer in shown) / count,
        "mean_new_tokens": fresh / count,
        "mean_thought_tokens": sum(answer.thought_tokens for answer in shown) / count,
    }


def answer_waits(answers: Sequence[StoredAnswer], kind: str) -> list[float]:
    """Return waiting times; those for first tokens only when every answer that came has one, since some are no
    sample."""
    shown = [answer for answer in answers if answer.end != "hidden"]
    if kind == "seconds":
        return [answer.seconds if answer.waited is None else answer.waited for answer in shown]
    came = [answer for answer in shown if answer.end in ("stop", "length")]
    known = [answer.first_seconds for answer in came if answer.first_seconds is not None]
    return known if len(known) == len(came) else []


@dataclass(frozen=True)
class Below(GateEvidence):
    """Evidence for a mean without an upper end of its own, such as dollars, that is to stay below a limit. `most` is
    what a value can be at most; while it is None nothing can be shown to be below anything, as the next value may be
    endless."""

    most: float | None = None

    def tests(self, margin: float) -> tuple[float, float]:
        above = self._values().p_value(margin)
        return (1.0 if self.most is None else self._values().mirrored().p_value(-margin)), above

    def bound(self, alpha: float, *, upper: bool = False) -> float | None:
        if upper:
            return self._values().bound(alpha)
        return None if self.most is None else -self._values().mirrored().bound(alpha)

    def hope(self, margin: float, alpha: float) -> float | None:
        if self.value < margin:
            return self.value
        least = self._values().bound(alpha)
        return least if least < margin * (1 - 1e-6) else None

    def rows_needed(self, margin: float, alpha: float) -> int | None:
        truth = self.hope(margin, alpha)
        if truth is None or self.most is None:
            return None
        moved = None if truth == self.value else -truth
        found = clusters_needed(self._values().mirrored(), -margin, alpha, moved)
        return None if found is None else max(self.sample.n + 1, found)

    def missing(self, margin: float, alpha: float) -> str | None:
        if self.most is None:
            return "the most that an answer can cost is not known: say it in the gate's `most`"
        least = fewest(-margin, 0.0, -self.most, alpha)
        if least is None or self.sample.n >= least:
            return None
        return f"{self.sample.n:,} rows can't show it, {least:,} could even if they cost nothing"

    def _values(self) -> BoundedSample:
        return self.sample.bounded(0.0, math.inf if self.most is None else self.most)


def evidence(
    gate: GateConfig, answers: Sequence[StoredAnswer], facts: Facts, most: float | None = None
) -> GateEvidence:
    """Return the evidence for a gate on dollars or seconds. `most` is what 1,000 answers can cost at most, as far as it
    is known from what is reserved for each; the gate may say it. Raises DataError when what it asks about was not
    measured.

    That a quantile of the waiting times stays below a limit is tested as what it means: at least that share of answers
    came in time.
    """
    if gate.metric == "usd_per_1k":
        found = answer_money(answers, facts, gate.target)
        if not found.dollars:
            raise DataError(
                f"a gate asks what {gate.target} costs, and that is unknown: {found.basis}", "take the gate out"
            )
        sample, most = Sample.of([1000 * value for value in found.dollars]), gate.most or most
        if most is not None and float(sample.values.max()) > most:
            raise DataError(
                f"an answer of {gate.target} cost ${sample.values.max() / 1000:.4g}, more than the ${most / 1000:.4g} "
                "that an answer can cost at most",
                "correct `most` of the gate on usd_per_1k, in dollars per 1,000 answers",
            )
        return Below(sample, False, sample.mean, None, most)
    kind, _, _ = gate.metric.rpartition("_")
    known = answer_waits(answers, kind)
    if not known:
        raise DataError(f"a gate asks for {gate.metric} of {gate.target}, and it was not measured", "take the gate out")
    sample = Sample.of([float(wait <= gate.margin) for wait in known])
    return GateEvidence(sample, False, sample.mean)


def check_cost(gates: Sequence[GateConfig], facts: Facts) -> None:
    """Refuse gates on dollars that can't be known, before anything is answered. Raises ConfigError."""
    for index, gate in enumerate(gates):
        local = answer_place(facts, gate.target) == HERE
        if gate.metric == "usd_per_1k" and local and (facts.get("machine") or {}).get("dollars") is None:
            raise ConfigError(
                f"evaluate.gates.{index} asks what {gate.target} costs, and an hour of this machine has no known price",
                "set machine.dollars_per_hour",
            )
