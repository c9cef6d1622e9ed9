"""Correction of a judge's rate for its own errors, with an interval that covers both samples: what the rate says about
people's.

The judge's rate p on n new items is a mixture of its sensitivity (rate on items that people accept) and 1 - specificity
(rate on items that people reject). Solved for the share that people would accept:

    theta = (p + specificity - 1) / (sensitivity + specificity - 1)

Point and interval are those of Lee et al., How to Correctly Report LLM-as-a-Judge Evaluations (arXiv 2511.21140), after
Rogan and Gladen (Am. J. Epidemiology 107, 1978) and Lang and Reiczigel (Prev. Vet. Med. 113, 2014). For the interval
each rate is drawn towards one half, p by z² pseudo-items and the other two by two each; then

    theta + 2 z² (theta se (1 - se) / m1 - (1 - theta) sp (1 - sp) / m0) ± z sqrt(V) / (se + sp - 1)
    V = p (1 - p) / n + theta² se (1 - se) / m1 + (1 - theta)² sp (1 - sp) / m0

Simulated with 100 to 200 labels it holds .95 to .96 of the time. One side of it alone errs up to .06 where sensitivity
and specificity differ, so gates use the score test of the same model: what p, sensitivity and specificity would be if
theta were the margin (their maximum-likelihood values, by EM over who is truly accepted), and how far the sample is
from it, in standard errors there. With half an item taken off, and Student's quantile for the smaller of the two
labelled groups, it errs .04 to .05 at a nominal .05.

Items in clusters, and pairs that count one half, enter with their effective number (`intervals.py`). Halves truly vary
less than yes and no do, but of few items one can't tell by how much: of ten where nine are a half and one is whole, the
plain number is 99. So where it exceeds the items themselves, their variance is drawn towards that of yes and no by two
pseudo-items, as the rates are, and degrees of freedom count items. Simulated with 8 to 24 items an interval of a rate
then holds at least .94 at every truth, where the plain number held .92 at some. Cutting the number off at the items
would hold .96 to 1 and make a corrected rate's interval up to 1.7 times as wide, with 100 labels too. A pair's ½ is
treated as linear: on items that people call a tie the judge is taken to give the mean of both rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gemma_ops.gates import detectable, gate_decision
from gemma_ops.stats.intervals import Interval, Sample

_PULL = 2
"""Pseudo-items that draw a variance towards that of yes and no."""
_STEPS = 200
"""Most EM steps; few are needed."""


@dataclass(frozen=True)
class Share:
    """A rate and the number of independent items that would be as certain."""

    value: float
    n: float
    items: float = math.inf
    """Number of independent items it was counted on, where n may say more than they do."""

    @classmethod
    def of(cls, sample: Sample) -> Share:
        """Return the mean of a sample in [0, 1]."""
        mean = min(max(sample.mean, 0.0), 1.0)
        n, groups = sample.effective(mean * (1 - mean)), sample.groups
        if n > sample.n:
            n = (groups - 1 + _PULL) / ((groups - 1) / n + _PULL / sample.n)
        return cls(mean, n, groups)


@dataclass(frozen=True)
class Correction:
    """A judge's rate with what is known of its errors."""

    rate: Share
    sensitivity: Share
    specificity: Share

    @property
    def skill(self) -> float:
        """Return sensitivity + specificity - 1: 0 is chance."""
        return self.sensitivity.value + self.specificity.value - 1

    @property
    def value(self) -> float:
        """Return the rate that people would give; in [0, 1]."""
        return float(np.clip((self.rate.value + self.specificity.value - 1) / self.skill, 0.0, 1.0))

    def ends(self, z: float) -> tuple[float, float]:
        """Return both ends at a normal quantile; the whole range where the judge might be no better than chance."""
        n, m0, m1 = self.rate.n + z * z, self.specificity.n + 2, self.sensitivity.n + 2
        p = (self.rate.n * self.rate.value + z * z / 2) / n
        sp = (self.specificity.n * self.specificity.value + 1) / m0
        se = (self.sensitivity.n * self.sensitivity.value + 1) / m1
        skill = se + sp - 1
        if skill <= 0:
            return 0.0, 1.0
        theta = (p + sp - 1) / skill
        shift = 2 * z * z * (theta * se * (1 - se) / m1 - (1 - theta) * sp * (1 - sp) / m0)
        variance = p * (1 - p) / n + theta**2 * se * (1 - se) / m1 + (1 - theta) ** 2 * sp * (1 - sp) / m0
        half = z * variance**0.5 / skill
        low, high = theta + shift - half, theta + shift + half
        return float(np.clip(min(low, self.value), 0, 1)), float(np.clip(max(high, self.value), 0, 1))

    def score(self, at: float, side: int) -> float:
        """Return the score statistic against a true rate of `at`: standard errors by which the sample lies above it,
        less half an item (`side` 1), or more (`side` -1), since the rate moves in whole items."""
        n, m1, m0 = self.rate.n, self.sensitivity.n, self.specificity.n
        hits, right, wrong = n * self.rate.value, m1 * self.sensitivity.value, m0 * self.specificity.value
        se, sp = (right + 1) / (m1 + 2), (wrong + 1) / (m0 + 2)
        for _ in range(_STEPS):
            p = at * se + (1 - at) * (1 - sp)
            # Accepted by people, among what the judge accepts and among what it rejects.
            yes = hits * at * se / p if p > 0 else 0.0
            no = (n - hits) * at * (1 - se) / (1 - p) if p < 1 else 0.0
            before, se = se, (right + yes) / (m1 + yes + no)
            other, sp = sp, (wrong + n - hits - no) / (m0 + n - yes - no)
            if abs(se - before) + abs(sp - other) < 1e-9:
                break
        p = at * se + (1 - at) * (1 - sp)
        gap = self.rate.value - at * self.sensitivity.value - (1 - at) * (1 - self.specificity.value)
        variance = p * (1 - p) / n + at**2 * se * (1 - se) / m1 + (1 - at) ** 2 * sp * (1 - sp) / m0
        return float((gap - side / (2 * n)) / max(variance, 1e-12) ** 0.5)

    @property
    def freedom(self) -> float:
        """Return the degrees of freedom of the score: labels of the smaller group less one."""
        return max(min(min(share.n, share.items) for share in (self.sensitivity, self.specificity)) - 1, 1.0)

    def interval(self, confidence: float, n: int, clusters: int) -> Interval:
        """Return the two-sided interval that covers the uncertainty of both samples."""
        low, high = self.ends(float(stats.norm.isf((1 - confidence) / 2)))
        return Interval(self.value, low, high, n, clusters, "Lee et al., plug-in")


@dataclass(frozen=True)
class Corrected(gate_decision.GateEvidence):
    """Evidence for a gate on a corrected rate; `shift` is subtracted, so that a win rate is compared with one half."""

    correction: Correction = Correction(Share(0.5, 1), Share(1, 1), Share(1, 1))
    shift: float = 0.0

    def tests(self, margin: float) -> tuple[float, float]:
        """Return one-sided p-values of the score test against `value <= margin` and `value >= margin`."""
        at = margin + self.shift
        if not 0 < at < 1:
            return float(at >= 1), float(at <= 0)
        above, below = (self.correction.score(at, side) for side in (1, -1))
        return float(stats.t.sf(above, self.correction.freedom)), float(stats.t.cdf(below, self.correction.freedom))

    def bound(self, alpha: float, *, upper: bool = False) -> float:
        """Return the one-sided 1 - alpha bound: the margin at which the test's p-value is alpha, by bisection."""
        side = -1 if upper else 1
        z = side * float(stats.t.isf(alpha, self.correction.freedom))
        low, high = 0.0, 1.0
        for _ in range(25):
            middle = (low + high) / 2
            low, high = (middle, high) if self.correction.score(middle, side) >= z else (low, middle)
        return (high if upper else low) - self.shift

    def missing(self, margin: float, alpha: float) -> str | None:
        """Return what is missing: labels, where no number of rows settles it with those there are."""
        if self.rows_needed(margin, alpha) is not None:
            return None
        if self.value <= margin:
            return "as measured it would not pass; more rows and labels tell how sure that is"
        return "labels are what is missing, not rows"

    def rows_needed(self, margin: float, alpha: float) -> int | None:
        """Return the rows for power .8 with these labels; None where the labels, not the rows, are what is missing."""
        gap, found = self.value - margin, self.correction
        if gap <= 1e-9:
            return None
        theta, p = found.value, found.rate.value
        se, sp = found.sensitivity, found.specificity
        labels = theta**2 * se.value * (1 - se.value) / se.n + (1 - theta) ** 2 * sp.value * (1 - sp.value) / sp.n
        left = (gap * found.skill / sum(detectable.quantiles(alpha))) ** 2 - labels
        if left <= 0:
            return None
        return max(self.sample.n + 1, math.ceil(p * (1 - p) / left * self.sample.n / found.rate.n))
