"""Gate decisions: whether each condition for promotion passes, fails or is inconclusive.

A gate passes when a one-sided test shows that the condition holds, and fails when one shows that it does not. Both
sides share their level over all gates through Holm's method (S. Holm, Scand. J. Stat. 6, 1979), each for itself: the
chance that any gate passes wrongly is at most the level, and so is the chance that any fails wrongly. Otherwise a gate
is inconclusive, and the number of rows is told that would settle it. So a small data set can't promote, and can't
condemn. The tests hold for every distribution of scores, those of F1 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gemma_ops.config import GateConfig
from gemma_ops.gates import label_evidence
from gemma_ops.gates.gate_words import Told, gate_sentence
from gemma_ops.stats import intervals, paired
from gemma_ops.stats import rows_needed as needed
from gemma_ops.stats.fewest import fewest
from gemma_ops.stats.intervals import Sample
from gemma_ops.stats.ratios import RatioSample

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class GateEvidence:
    """The evidence of the scores about one gate. For paired gates `sample` holds differences; for F1, which is no mean
    of rows, `ratios` holds the counts of its labels, and `sample` only counts rows. `labels` names them for macro
    F1."""

    sample: Sample
    is_difference: bool
    value: float
    ratios: RatioSample | None = None
    labels: tuple[str, ...] = field(default=(), kw_only=True)

    def tests(self, margin: float) -> tuple[float, float]:
        """Return p-values against `value <= margin` and `value >= margin`."""
        if self.ratios is not None:
            return self.ratios.p_value(margin), self.ratios.p_value(margin, below=True)
        if self.is_difference:
            return paired.difference_tests(self.sample, margin)
        return intervals.mean_tests(self.sample, margin)

    def bound(self, alpha: float, *, upper: bool = False) -> float | None:
        """Return the one-sided bound at level alpha; None where no valid one is known."""
        if self.ratios is not None:
            return self.ratios.bound(alpha, upper=upper)
        if self.is_difference:
            return paired.difference_bound(self.sample, alpha, upper=upper)
        return intervals.mean_bound(self.sample, alpha, upper=upper)

    def hope(self, margin: float, alpha: float) -> float | None:
        """Return the true value that rows are planned for: what was measured, where that is beyond the margin. Else a
        better one that can't be excluded: no difference, or the upper bound. None where nothing beyond the margin is
        left."""
        if self.value > margin:
            return self.value
        top = self.bound(alpha, upper=True)
        if top is None:
            return None
        if self.is_difference and margin < 0 < top:
            top = 0.0
        return top if top > margin + 1e-6 else None

    def rows_needed(self, margin: float, alpha: float) -> int | None:
        """Return the rows for power .8 if `hope` is the truth; None when no number of rows would do."""
        if self.ratios is not None:
            found = label_evidence.label_rows_needed(self.ratios, margin, alpha)
            return None if found is None else max(self.sample.n + 1, found)
        truth = self.hope(margin, alpha)
        if truth is None:
            return None
        found = needed.paired_rows(self.sample, margin, alpha, truth, is_difference=self.is_difference)
        return None if found is None else max(self.sample.n + 1, found)

    def missing(self, margin: float, alpha: float) -> str | None:
        """Return what keeps every test from passing, whatever the answers: a bound, or independent rows."""
        if self.ratios is not None:
            return label_evidence.missing_labels(self.ratios, self.labels, margin, alpha)
        best, even_if = (
            (1.0, "all answers are right") if not self.is_difference or margin >= 0 else (0.0, "no row differs")
        )
        least, groups = fewest(margin, best, -float(self.is_difference), alpha), self.sample.groups
        if least is None or groups >= least:
            return None
        return (
            f"{groups:,} {'clusters' if self.sample.clustered else 'rows'} can't show it, {least:,} could even if "
            f"{even_if}"
        )


@dataclass(frozen=True)
class Decision:
    """The outcome of one gate. `bound` is the lower one-sided bound at the level Holm gave this gate: it passes exactly
    when the bound is beyond the threshold. `upper` is the bound on the other side, at the level at which it would
    fail."""

    gate: GateConfig
    outcome: Outcome
    value: float
    threshold: float
    bound: float | None
    upper: float | None
    level: float
    p: float
    p_holm: float
    n: int
    clusters: int
    n_needed: int | None
    words: str


QUANTILES = {"p50": 0.5, "p95": 0.95}
"""Share of askers that a waiting time covers, by the last part of its name."""


def threshold(gate: GateConfig) -> float:
    """Return what the value must exceed: the margin, or minus the margin for `noninferior`. Dollars must stay below the
    margin; for seconds the value is the share of answers that came within it."""
    if gate.test == "at_most":
        return QUANTILES.get(gate.metric.rpartition("_")[2], gate.margin)
    return -gate.margin if gate.test == "noninferior" else gate.margin


def decide_gates(
    gates: Sequence[GateConfig], evidence: Sequence[GateEvidence], confidence: float, *, later: float | None = None
) -> list[Decision]:
    """Decide all gates together: the chance that any passes wrongly is at most 1 - confidence, and that any fails
    wrongly too. `later` is the confidence of the next look, for which the rows needed are reported; the same unless
    said."""
    alpha = 1 - confidence
    again = alpha if later is None else 1 - later
    decisions = []
    for gate, found, tested in zip(gates, evidence, _tested(gates, evidence, alpha), strict=True):
        limit, level, outcome = threshold(gate), tested.level, tested.outcome
        bound, upper = found.bound(level), found.bound(tested.level_below, upper=True)
        if outcome == "pass" and gate.test != "at_most" and bound is not None:
            bound = max(bound, limit)  # bounds are known on a grid only
        rows = hope = missing = None
        if outcome == "inconclusive":
            missing, hope = found.missing(limit, level), found.hope(limit, level)
            rows = found.rows_needed(limit, level * again / alpha)
        told = Told(found.value, found.sample.n, bound, upper, rows, missing, hope)
        decisions.append(
            Decision(
                gate=gate,
                outcome=outcome,
                value=found.value,
                threshold=limit,
                bound=bound,
                upper=upper,
                level=1 - level,
                p=tested.p,
                p_holm=tested.p_holm,
                n=found.sample.n,
                clusters=found.sample.groups,
                n_needed=rows,
                words=gate_sentence(gate, outcome, told, is_difference=found.is_difference),
            )
        )
    return decisions


def judge_gates(
    gates: Sequence[GateConfig], evidence: Sequence[GateEvidence], alpha: float
) -> list[tuple[Outcome, float, float, float]]:
    """Return for each gate its outcome, p-value, Holm-adjusted p-value, and the level it was tested at."""
    return [(one.outcome, one.p, one.p_holm, one.level) for one in _tested(gates, evidence, alpha)]


@dataclass(frozen=True)
class _Tested:
    """The tests of one gate. `level` is that of passing, `level_below` that of failing."""

    outcome: Outcome
    p: float
    p_holm: float
    level: float
    level_below: float


def _tested(gates: Sequence[GateConfig], evidence: Sequence[GateEvidence], alpha: float) -> list[_Tested]:
    tests = [found.tests(threshold(gate)) for gate, found in zip(gates, evidence, strict=True)]
    passing, levels = holm([above for above, _ in tests], alpha)
    failing, below = holm([p for _, p in tests], alpha)
    return [
        _Tested("pass" if p <= alpha else "fail" if q <= alpha else "inconclusive", above, p, level, other)
        for (above, _), p, level, q, other in zip(tests, passing, levels, failing, below, strict=True)
    ]


def holm(p: Sequence[float], alpha: float) -> tuple[list[float], list[float]]:
    """Return Holm-adjusted p-values, and the level at which each hypothesis was tested (alpha over those still in
    play)."""
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
    """Return `fail` if any gate failed, else `inconclusive` if any is, else `pass`; `ungated` when there was none."""
    if not decisions:
        return "ungated"
    outcomes = {decision.outcome for decision in decisions}
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
