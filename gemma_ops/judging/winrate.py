"""Win rates, raw and length-controlled, and every other share that is computed from two orders.

A pair counts 1, ½ or 0. Twice that minus 1 is a paired difference, so the interval is Tango's, as for two targets on
the same rows (`paired.py`); where no pair ties it is Wilson's.

Length control follows AlpacaEval (Dubois et al., arXiv 2404.04475): a logistic regression of the outcome on how much
longer the first answer is, and the win rate it gives two answers of equal length. The length difference is divided by
its root mean square and squashed by tanh, so that a few endless answers don't decide. The interval is a cluster
bootstrap of the intercept, set on the logit scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from gemma_ops.stats import paired
from gemma_ops.stats.intervals import Array, Interval

_STEPS = 25
"""Newton steps of the fit to all pairs; the likelihood is smooth, concave and of two parameters."""
_DRAW_STEPS = 5
"""Newton steps of the fits to bootstrap draws, which begin at the fit to all pairs."""
_PRIOR = (0.5, 0.1)
"""Weight of the prior: half a win and half a loss at equal length keep an unbeaten side finite; a weak ridge does so
for the slope."""


@dataclass(frozen=True)
class Rate:
    """A share of outcomes in [0, 1] with its interval. `p` is two-sided against one half."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    wins: int
    ties: int
    losses: int
    p: float
    method: str


def win_rate(scores: Sequence[float], clusters: Sequence[str] | None, confidence: float) -> Rate | None:
    """Return the mean of outcomes in [0, 1], one half being even. None without outcomes."""
    if not scores:
        return None
    found = paired.compare_paired(
        list(scores), [1 - score for score in scores], None if clusters is None else list(clusters), confidence
    )
    return Rate(
        value=(1 + found.value) / 2,
        low=(1 + found.low) / 2,
        high=(1 + found.high) / 2,
        n=found.n,
        clusters=found.clusters,
        wins=found.wins,
        ties=found.n - found.wins - found.losses,
        losses=found.losses,
        p=found.p,
        method=found.method,
    )


def controlled(
    scores: Sequence[float],
    gaps: Sequence[float],
    clusters: Sequence[str] | None,
    confidence: float,
    seed: int,
    *,
    times: int = 400,
) -> Interval | None:
    """Return the win rate at equal length. `gaps` are words of the first answer minus words of the second.

    None where it can't be told: fewer than ten pairs, one outcome only, or no difference in length.
    """
    y, gap = np.asarray(scores, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    if len(y) < 10 or not y.std() or not gap.any():
        return None
    x = np.tanh(gap / float((gap**2).mean()) ** 0.5)
    names = range(len(y)) if clusters is None else clusters
    _, group = np.unique(np.asarray(names), return_inverse=True)
    groups = int(group.max()) + 1
    if groups < 2:
        return None
    fitted = _fit(x, y, np.ones((1, len(y))), (0.0, 0.0), _STEPS)
    alpha, beta = float(fitted[0][0]), float(fitted[1][0])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=times)[:, group].astype(np.float64)
    error = float(_fit(x, y, weights, (alpha, beta), _DRAW_STEPS)[0].std()) * (groups / (groups - 1)) ** 0.5
    half = float(stats.t.isf((1 - confidence) / 2, groups - 1)) * error
    value, low, high = (float(special.expit(place)) for place in (alpha, alpha - half, alpha + half))
    return Interval(value, low, high, len(y), groups, "logistic regression on length, cluster bootstrap")


def _fit(x: Array, y: Array, weights: Array, start: tuple[float, float], steps: int) -> tuple[Array, Array]:
    """Return intercept and slope of the weighted logistic regression of y on x, for each row of weights [draws,
    pairs]."""
    alpha, beta = (np.full(len(weights), place) for place in start)
    half, ridge = _PRIOR
    columns = np.stack([np.ones_like(x), x, x * x], axis=1)
    hits = weights @ (columns[:, :2] * y[:, None])
    for _ in range(steps):
        p = special.expit(alpha[:, None] + beta[:, None] * x)
        middle = special.expit(alpha)
        mass = weights * p
        met = mass @ columns[:, :2]
        spread = (mass * (1 - p)) @ columns
        g0 = hits[:, 0] - met[:, 0] + half - 2 * half * middle
        g1 = hits[:, 1] - met[:, 1] - ridge * beta
        h00 = spread[:, 0] + 2 * half * middle * (1 - middle)
        h01, h11 = spread[:, 1], spread[:, 2] + ridge
        det = h00 * h11 - h01**2
        alpha = np.clip(alpha + (h11 * g0 - h01 * g1) / det, -12, 12)
        beta = np.clip(beta + (h00 * g1 - h01 * g0) / det, -12, 12)
    return alpha, beta
