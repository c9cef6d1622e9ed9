"""Gates: what must hold before a model is promoted, decided three ways.

A gate passes when a one-sided test, at a level shared by all gates through Holm's method (S. Holm, Scand. J. Stat. 6,
1979), shows that the condition holds. It fails when a one-sided test shows that it does not. Otherwise it is
inconclusive, and the number of rows is told that would settle it if things are as they look. So a small data set
can't promote, and can't condemn either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemma_ops.config import GateConfig
from gemma_ops.evaluation import paired, plan, statistics
from gemma_ops.evaluation.statistics import Array, Sample

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Evidence:
    """What the scores say about one gate. For paired gates `sample` holds differences; for a figure that is no mean of
    rows, such as macro F1, `draws` holds its bootstrap draws and `sample` only counts."""

    sample: Sample
    is_difference: bool
    value: float
    draws: Array | None = None

    def tests(self, margin: float) -> tuple[float, float]:
        """p-values against `value <= margin` and `value >= margin`."""
        if self.draws is not None:
            count = len(self.draws) + 1
            return (1 + int((self.draws <= margin).sum())) / count, (1 + int((self.draws >= margin).sum())) / count
        if self.is_difference:
            return paired.difference_tests(self.sample, margin)
        return statistics.mean_tests(self.sample, margin)

    def bound(self, alpha: float, *, upper: bool = False) -> float:
        """One-sided bound at level alpha."""
        if self.draws is not None:
            return float(np.quantile(self.draws, 1 - alpha if upper else alpha))
        if self.is_difference:
            return paired.difference_bound(self.sample, alpha, upper=upper)
        return statistics.mean_bound(self.sample, alpha, upper=upper)

    def rows_needed(self, margin: float, alpha: float) -> int | None:
        """Rows for power .8 at the observed value; None when no number of rows would do at this value."""
        n = self.sample.n
        if self.draws is not None:
            truth = null = float(self.draws.var()) * n
            scale = 1.0
        elif self.is_difference:
            plain = float((np.abs(self.sample.values)).mean() - self.sample.mean**2)
            truth, null = plain, paired.null_variance(self.sample, margin)
            scale = n / self.sample.effective(plain)
        else:
            truth, null = self.value * (1 - self.value), margin * (1 - margin)
            scale = n / self.sample.effective(truth)
        needed = plan.rows_needed(self.value - margin, max(null, 1e-9), max(truth, 0.0), alpha)
        return None if needed is None else max(n + 1, math.ceil(needed * scale))


@dataclass(frozen=True)
class Decision:
    """How a gate ended. `bound` is the lower one-sided bound at the level Holm gave this gate: it passes exactly when
    the bound is beyond the threshold. `upper` is the bound at the full level that would show a failure."""

    gate: GateConfig
    outcome: Outcome
    value: float
    threshold: float
    bound: float
    upper: float
    level: float
    p: float
    p_holm: float
    n: int
    clusters: int
    n_needed: int | None
    words: str


QUANTILES = {"p50": 0.5, "p95": 0.95}
"""Share of askers that a waiting time is about, by the last part of its name."""


def threshold(gate: GateConfig) -> float:
    """What the value must exceed: the margin, or minus the margin for `noninferior`. Dollars must stay below the margin;
    for seconds the value is the share of answers that came within it."""
    if gate.test == "at_most":
        return QUANTILES.get(gate.metric.rpartition("_")[2], gate.margin)
    return -gate.margin if gate.test == "noninferior" else gate.margin


def decide(gates: Sequence[GateConfig], evidence: Sequence[Evidence], confidence: float) -> list[Decision]:
    """Decide all gates together: the chance that any of them passes wrongly is at most 1 - confidence."""
    alpha = 1 - confidence
    decisions = []
    for gate, found, (outcome, p, adjusted, level) in zip(gates, evidence, judge(gates, evidence, alpha), strict=True):
        limit = threshold(gate)
        bound, upper = found.bound(level), found.bound(alpha, upper=True)
        needed = found.rows_needed(limit, level) if outcome == "inconclusive" else None
        decisions.append(
            Decision(
                gate=gate,
                outcome=outcome,
                value=found.value,
                threshold=limit,
                bound=bound,
                upper=upper,
                level=1 - level,
                p=p,
                p_holm=adjusted,
                n=found.sample.n,
                clusters=found.sample.groups,
                n_needed=needed,
                words=_words(gate, outcome, found, bounds=(bound, upper), needed=needed),
            )
        )
    return decisions


def judge(
    gates: Sequence[GateConfig], evidence: Sequence[Evidence], alpha: float
) -> list[tuple[Outcome, float, float, float]]:
    """Per gate: outcome, p-value, Holm-adjusted p-value, and the level it was tested at."""
    tests = [found.tests(threshold(gate)) for gate, found in zip(gates, evidence, strict=True)]
    adjusted, levels = holm([above for above, _ in tests], alpha)
    judged: list[tuple[Outcome, float, float, float]] = []
    for (above, below), p, level in zip(tests, adjusted, levels, strict=True):
        outcome: Outcome = "pass" if p <= alpha else "fail" if below <= alpha else "inconclusive"
        judged.append((outcome, above, p, level))
    return judged


def holm(p: Sequence[float], alpha: float) -> tuple[list[float], list[float]]:
    """Holm-adjusted p-values, and the level at which each hypothesis was tested (alpha over those still in play)."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, levels = [1.0] * len(p), [alpha] * len(p)
    running, stopped = 0.0, None
    for rank, index in enumerate(order):
        share = len(p) - rank
        running = max(running, min(1.0, share * p[index]))
        adjusted[index] = running
        if running > alpha and stopped is None:
            stopped = alpha / share
        levels[index] = alpha / share if stopped is None else stopped
    return adjusted, levels


def overall(decisions: Sequence[Decision]) -> Literal["pass", "fail", "inconclusive", "ungated"]:
    """Fail if any gate failed, else inconclusive if any is, else pass; `ungated` when there was none."""
    if not decisions:
        return "ungated"
    outcomes = {decision.outcome for decision in decisions}
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


def _words(
    gate: GateConfig, outcome: Outcome, found: Evidence, *, bounds: tuple[float, float], needed: int | None
) -> str:
    """One sentence for a person."""
    bound, upper = bounds
    what = plan.describe(gate)
    if gate.test == "at_most":
        return _running_words(gate, outcome, found, bounds=bounds, needed=needed)
    figure = f"{found.value:+.3f}" if found.is_difference else f"{found.value:.3f}"
    sign = "+" if found.is_difference else ""
    if outcome == "pass":
        return f"{what}: yes. Measured {figure}, and at least {bound:{sign}.3f} at this confidence."
    if outcome == "fail":
        return f"{what}: no. Measured {figure}, and at most {upper:{sign}.3f} at this confidence."
    settle = f"about {needed:,} rows would settle it" if needed else "at this value no number of rows would pass it"
    return f"{what}: not shown either way. Measured {figure}, at least {bound:{sign}.3f}, from {found.sample.n:,} rows; {settle}."


def _running_words(
    gate: GateConfig, outcome: Outcome, found: Evidence, *, bounds: tuple[float, float], needed: int | None
) -> str:
    """One sentence about dollars or seconds."""
    if gate.metric == "usd_per_1k":
        measured, bound, other = (f"${figure:,.4g}" for figure in (found.value, *bounds))
        sides = {"pass": f"at most {bound}", "fail": f"at least {other}", "inconclusive": f"up to {bound}"}
    else:
        measured, bound, other = (f"{figure:.1%}" for figure in (found.value, *bounds))
        measured += " came in time"
        sides = {"pass": f"at least {bound}", "fail": f"at most {other}", "inconclusive": f"at least {bound}"}
    told = {"pass": "yes", "fail": "no", "inconclusive": "not shown either way"}[outcome]
    settle = ""
    if outcome == "inconclusive":
        settle = f", from {found.sample.n:,} rows; " + (
            f"about {needed:,} rows would settle it" if needed else "at this value no number of rows would pass it"
        )
    return f"{plan.describe(gate)}: {told}. Measured {measured}, {sides[outcome]} at this confidence{settle}."
