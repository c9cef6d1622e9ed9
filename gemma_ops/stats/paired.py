"""Two targets on the same rows: the difference of their means, its interval, and exact tests for gates.

For independent yes/no rows the interval is Tango's score interval for paired proportions (T. Tango, Statistics in
Medicine 17, 1998), and gates use the exact test with the same statistic: its p-value is the largest over every possible
share of disagreeing rows (H. Hsueh, J. Liu, J. Chen, Biometrics 57, 2001). Enumerated, the score test alone reaches
.073 at a nominal .05 (n = 100, margin .02); the exact one can't exceed it. McNemar's exact p is reported next to it.
Differences of scores lie between -1 and 1, and so do those of rows in clusters: they get bounds that hold for every
distribution (`stats/betting.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from gemma_ops.stats.fewest import fewest
from gemma_ops.stats.intervals import EXACT_ROWS, Sample
from gemma_ops.stats.power import POWER

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


def compare_paired(
    first: list[float], second: list[float], clusters: list[str] | None, confidence: float
) -> Difference:
    """Compare two score lists in the same row order, each in [0, 1]."""
    a, b = np.asarray(first), np.asarray(second)
    sample = Sample.of(list(a - b), clusters)
    tail = (1 - confidence) / 2
    wins, losses = int((a > b).sum()), int((a < b).sum())
    if sample.binary:
        low, high = _interval(sample, sample.quantile(tail))
        p, method = mcnemar(wins, losses), "Tango; exact McNemar"
    else:
        low, high = difference_bound(sample, tail), difference_bound(sample, tail, upper=True)
        p, method = min(1.0, 2 * min(difference_tests(sample, 0.0))), "betting" + ", clusters" * sample.clustered
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
    return Difference(sample.mean, low, high, sample.n, sample.groups, wins, losses, p, correlation, method)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test: are wins and losses equally likely among the rows that differ?"""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def difference_tests(sample: Sample, margin: float) -> tuple[float, float]:
    """One-sided p-values against `difference <= margin` and against `difference >= margin`."""
    if sample.binary and sample.n <= EXACT_ROWS:
        return _above(sample, margin), _above(sample, margin, mirrored=True)
    if sample.binary:
        z = _z(sample, margin)
        return sample.tail(z), sample.tail(-z)
    scores = sample.bounded(-1.0, 1.0)
    return scores.p_value(margin), scores.mirrored().p_value(-margin)


def _above(sample: Sample, margin: float, *, mirrored: bool = False) -> float:
    """Return the exact p-value against `difference <= margin`; mirrored, against `difference >= margin`."""
    wins, losses, n = _counts(sample)
    return _exact(losses, wins, n, -margin) if mirrored else _exact(wins, losses, n, margin)


def pairs_needed(wins: float, losses: float, margin: float, level: float) -> int | None:
    """Return how many independent yes/no rows show a difference above `margin` with power .8, for true shares of wins
    and losses. None where no number does."""
    truth = wins - losses
    if truth - margin <= 1e-9:
        return None
    null = 2 * float(_share(wins, losses, 1.0, margin)) + margin * (1 - margin)
    z = special.ndtri([1 - level, POWER])
    spread = max(wins + losses - truth**2, 0.0)
    n = math.ceil((float(z @ np.sqrt([max(null, 0.0), spread])) / (truth - margin)) ** 2)
    if spread <= 1e-12:  # every row says the same, and the test is a matter of counting
        n = max(1, math.floor(0.8 * (fewest(margin, truth, -1.0, level) or 1)))
        while _exact(round(n * wins), round(n * losses), n, margin) > level:
            n += 1
        return n
    n = max(n, 2)
    while _pairs_power(wins, losses, n, margin, level) < POWER + 0.015:
        n = math.ceil(1.04 * n) + 1
    return n


def _pairs_power(wins: float, losses: float, n: int, margin: float, level: float) -> float:
    """Return the chance of passing in 400 simulated games; the exact test is used only where the score test is near its
    level."""
    drawn, counts = np.unique(
        np.random.default_rng(n).multinomial(n, [wins, losses, max(0.0, 1 - wins - losses)], size=400), axis=0,
        return_counts=True
    )  # fmt: skip
    z = _statistic(drawn[:, 0], drawn[:, 1], n, margin) - special.ndtri(1 - level)
    if n > 1500:
        return float(counts[z > 0.02].sum() / counts.sum())
    passed = z > 0.3
    for index in np.flatnonzero((z > -0.1) & ~passed):
        passed[index] = _exact(int(drawn[index, 0]), int(drawn[index, 1]), n, margin) <= level
    return float(counts[passed].sum() / counts.sum())


def difference_bound(sample: Sample, alpha: float, *, upper: bool = False) -> float:
    """One-sided 1 - alpha bound of the difference that agrees with `difference_tests`, to 0.0002."""
    if not sample.binary:
        scores = sample.bounded(-1.0, 1.0)
        return -scores.mirrored().bound(alpha) if upper else scores.bound(alpha)
    if sample.n > EXACT_ROWS:
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


def _counts(sample: Sample) -> tuple[int, int, int]:
    """Return wins, losses and rows of yes/no rows."""
    return int((sample.values > 0).sum()), int((sample.values < 0).sum()), sample.n


def _share(wins: object, losses: object, n: object, margin: float) -> np.ndarray:
    """Return Tango's maximum-likelihood share of losses when the difference is `margin`: the root of a quadratic."""
    w, m, size = np.asarray(wins, float), np.asarray(losses, float), np.asarray(n, float)
    b = -w - m + (2 * size - w + m) * margin
    c = -m * margin * (1 - margin)
    root = (np.sqrt(np.maximum(b * b - 8 * size * c, 0)) - b) / (4 * size)
    return np.asarray(np.clip(root, max(0.0, -margin), None))


def _statistic(wins: object, losses: object, n: float, margin: float) -> np.ndarray:
    """Return Tango's z for wins - losses against n * margin."""
    variance = n * (2 * _share(wins, losses, n, margin) + margin * (1 - margin))
    return np.asarray((np.asarray(wins, float) - losses - n * margin) / np.sqrt(np.maximum(variance, 1e-12)))


def _z(sample: Sample, margin: float) -> float:
    return float(_statistic(*_counts(sample), margin))


def _interval(sample: Sample, z: float) -> tuple[float, float]:
    """Return the margins that the score test does not reject, by bisection: its statistic falls as the margin rises."""
    wins, losses, n = _counts(sample)
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
    # P(at least `rows_needed` wins among the rows left): a binomial tail as an incomplete beta function.
    tail = np.where(needed <= 0, 1.0, special.betainc(np.maximum(needed, 1), np.maximum(left - needed + 1, 1e-9), win))
    tail = np.where(needed > left, 0.0, tail)
    return min(1.0, float(np.bincount(place, weight * tail, _GRID).max()))
