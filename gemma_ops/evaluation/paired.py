"""Two targets on the same rows: the difference of their means, its interval, and exact tests for gates.

The interval is Tango's score interval for paired proportions (T. Tango, Statistics in Medicine 17, 1998), carried to
clusters and to scores between 0 and 1 by effective rows, as in `statistics.py`. For independent yes/no rows gates use the
exact test with the same statistic: its p-value is the largest over every possible share of disagreeing rows
(H. Hsueh, J. Liu, J. Chen, Biometrics 57, 2001). Enumerated, the score test alone reaches .073 at a nominal .05
(n = 100, margin .02); the exact one can't exceed it. McNemar's exact p is told beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from gemma_ops.evaluation.statistics import EXACT_ROWS, Sample

_GRID = 40
"""Shares of losses at which the exact test looks for its worst case, denser towards few."""


@dataclass(frozen=True)
class Difference:
    """Mean difference (first minus second) with its two-sided interval. `p` is two-sided against no difference."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    wins: int
    losses: int
    p: float
    correlation: float | None
    method: str


def compare(first: list[float], second: list[float], clusters: list[str] | None, confidence: float) -> Difference:
    """Paired comparison of two score lists in the same row order, each in [0, 1]."""
    a, b = np.asarray(first), np.asarray(second)
    sample = Sample.of(list(a - b), clusters)
    low, high = _interval(sample, sample.quantile((1 - confidence) / 2))
    wins, losses = int((a > b).sum()), int((a < b).sum())
    if sample.binary:
        p, method = mcnemar(wins, losses), "Tango; exact McNemar"
    else:
        above, below = (sample.tail(z) for z in (_z(sample, 0.0), -_z(sample, 0.0)))
        p, method = (
            min(1.0, 2 * min(above, below)),
            "Tango, effective rows" + (", clusters" if sample.clustered else ""),
        )
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
    return Difference(sample.mean, low, high, sample.n, sample.groups, wins, losses, p, correlation, method)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test: are wins and losses equally likely among the rows that differ?"""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def difference_tests(sample: Sample, margin: float) -> tuple[float, float]:
    """One-sided p-values against `difference <= margin` and against `difference >= margin`."""
    if sample.binary and sample.n <= EXACT_ROWS:
        return _above(sample, margin), _above(sample, margin, mirrored=True)
    z = _z(sample, margin)
    return sample.tail(z), sample.tail(-z)


def _above(sample: Sample, margin: float, *, mirrored: bool = False) -> float:
    """Exact p-value against `difference <= margin`; mirrored, against `difference >= margin`."""
    wins, losses = int((sample.values > 0).sum()), int((sample.values < 0).sum())
    if mirrored:
        return _exact(losses, wins, sample.n, -margin)
    return _exact(wins, losses, sample.n, margin)


def difference_bound(sample: Sample, alpha: float, *, upper: bool = False) -> float:
    """One-sided 1 - alpha bound of the difference that agrees with `difference_tests`, to 0.0002."""
    if not (sample.binary and sample.n <= EXACT_ROWS):
        return _interval(sample, sample.quantile(alpha))[int(upper)]
    if upper:
        return -difference_bound(Sample.of(list(-sample.values)), alpha)
    # The score test's bound is close: look around it first.
    near = _interval(sample, sample.quantile(alpha))[0]
    low, high = -1.0, sample.mean
    for reach in (0.004, 0.016, 0.064):
        if near - reach > low and _above(sample, near - reach) <= alpha:
            low = near - reach
            break
    if low < near < high and _above(sample, near) > alpha:
        high = near
    while high - low > 2e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _above(sample, middle) <= alpha else (low, middle)
    return low


def null_variance(sample: Sample, margin: float) -> float:
    """Variance of one row's difference when the true difference is `margin`, at the best-fitting share of losses."""
    wins, losses = _masses(sample)
    n = float(sample.n)
    share = _share(wins, losses, n, margin)
    return float(2 * share + margin * (1 - margin))


def _masses(sample: Sample) -> tuple[float, float]:
    return float(sample.values[sample.values > 0].sum()), float(-sample.values[sample.values < 0].sum())


def _share(wins: object, losses: object, n: object, margin: float) -> np.ndarray:
    """Tango's maximum-likelihood share of losses when the difference is `margin`: the root of a quadratic."""
    w, m, size = np.asarray(wins, float), np.asarray(losses, float), np.asarray(n, float)
    b = -w - m + (2 * size - w + m) * margin
    c = -m * margin * (1 - margin)
    root = (np.sqrt(np.maximum(b * b - 8 * size * c, 0)) - b) / (4 * size)
    return np.asarray(np.clip(root, max(0.0, -margin), None))


def _statistic(wins: object, losses: object, n: float, margin: float) -> np.ndarray:
    """Tango's z for wins - losses against n * margin."""
    variance = n * (2 * _share(wins, losses, n, margin) + margin * (1 - margin))
    return np.asarray((np.asarray(wins, float) - losses - n * margin) / np.sqrt(np.maximum(variance, 1e-12)))


def _z(sample: Sample, margin: float) -> float:
    return float(_statistic(*_effective(sample), margin))


def _effective(sample: Sample) -> tuple[float, float, float]:
    """Wins, losses and rows, as many as independent rows would be worth."""
    wins, losses = _masses(sample)
    scale = sample.effective((wins + losses) / sample.n - sample.mean**2) / sample.n
    return wins * scale, losses * scale, sample.n * scale


def _interval(sample: Sample, z: float) -> tuple[float, float]:
    """The margins that the score test does not reject, by bisection: its statistic falls as the margin rises."""
    wins, losses, n = _effective(sample)
    low, high = -1.0, sample.mean
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _statistic(wins, losses, n, middle) >= z else (low, middle)
    bottom = low
    low, high = sample.mean, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _statistic(wins, losses, n, middle) <= -z else (middle, high)
    return bottom, high


def _exact(wins: int, losses: int, n: int, margin: float) -> float:
    """Largest P(statistic at least as large) over every share of losses that a difference of `margin` allows.

    For each number of losses the outcomes that count are all those with at least so many wins, since the statistic
    rises with wins; so one binomial tail per number of losses is enough.
    """
    if margin <= -1:
        return 0.0
    if margin >= 1:
        return 1.0
    seen = float(_statistic(wins, losses, n, margin)) - 1e-9
    lost = np.arange(n + 1)
    low, high = np.zeros(n + 1, dtype=np.int64), n - lost + 1
    while (low < high).any():
        middle = (low + high) // 2
        enough = (_statistic(middle, lost, n, margin) >= seen) | (middle > n - lost)
        high = np.where(enough & (low < high), middle, high)
        low = np.where(~enough & (low < high), middle + 1, low)
    least, most = max(0.0, -margin), (1 - margin) / 2
    shares = least + (most - least) * np.linspace(0, 1, _GRID) ** 2
    # Per share only the numbers of losses that carry all but 1e-12 of the probability.
    spread = 8 * np.sqrt(n * shares * (1 - shares)) + 12
    first = np.maximum(0, n * shares - spread).astype(np.int64)
    count = np.minimum(n, n * shares + spread).astype(np.int64) - first + 1
    place = np.repeat(np.arange(_GRID), count)
    worse = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[place]
    share = shares[place]
    choose = special.gammaln(n + 1) - special.gammaln(worse + 1) - special.gammaln(n - worse + 1)
    weight = np.exp(choose + special.xlogy(worse, share) + special.xlog1py(n - worse, -share))
    win = np.clip((share + margin) / np.maximum(1 - share, 1e-12), 0.0, 1.0)
    needed, left = low[worse], n - worse
    # P(at least `needed` wins among the rows left): a binomial tail as an incomplete beta function.
    tail = np.where(needed <= 0, 1.0, special.betainc(np.maximum(needed, 1), np.maximum(left - needed + 1, 1e-9), win))
    tail = np.where(needed > left, 0.0, tail)
    return min(1.0, float(np.bincount(place, weight * tail, _GRID).max()))
