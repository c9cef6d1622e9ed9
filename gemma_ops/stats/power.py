"""Rows that a test needs for a power of .8 if the truth is a given one, counted exactly or simulated, by no rule of
thumb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from scipy import stats

from gemma_ops.stats.betting import Array, BoundedSample, wins
from gemma_ops.stats.fewest import fewest

POWER = 0.8
_SAFE = 0.825
"""Power that simulations aim at, a little above .8 to allow for their error."""
_SURE, _SURE_GAMES, _SURE_VALUES = 0.81, 4000, 8_000_000
"""Power that the number found must reach in this many games, whose error is .006; in fewer where they would hold more
than `_SURE_VALUES` values."""
_GAMES = 400
_LONGEST, _LONGEST_SURE = 1500, 20_000
"""Rows up to which games are played; beyond, rows are computed by `_PRICE`, and up to the second number confirmed by
games."""
_PRICE = (3.5, 5.5)
"""Rows that a test for every distribution needs beyond those of a z-test: so many times the way from the least value to
the margin, over the way from the margin to the truth. Measured: 2.1 to 5.3; the first is where playing begins, the
second is added where nothing is played."""


def tilted_weights(values: Sequence[float] | Array, weights: Sequence[float] | Array, wanted: float) -> Array:
    """Return the weights [n], of sum 1, that give these values a mean of `wanted`: weight · exp(t · value), the least
    change that does so. A mean beyond all values is not reached; all weight is then on the outermost."""
    points, base = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    scale = 1 / max(float(np.ptp(points)), 1e-12)

    def moved(t: float) -> Array:
        raised = base * np.exp(t * scale * (points - (points.max() if t > 0 else points.min())))
        return np.asarray(raised / raised.sum())

    low, high = -1000.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) @ points < wanted else (low, middle)
    return moved((low + high) / 2)


def power(
    sample: BoundedSample, weights: Array, n: int, margin: float, level: float, *, plays: int | None = None
) -> float:
    """Chance that n independent draws of the sample's clusters, with these weights, show a mean above `margin`."""
    rng = np.random.default_rng(n)
    most, games = sample.sizes.max(), np.full(plays or (_GAMES if n > 600 else 2 * _GAMES), margin)
    drawn = rng.choice(len(weights), (n, len(games)), p=weights)
    sums, sizes = sample.sums[drawn] / most, sample.sizes[drawn] / most
    won = wins(sums, sizes, games, sample.low, sample.high - sample.low, np.full(len(games), level))
    return float(won.mean())


def clusters_needed(sample: BoundedSample, margin: float, level: float, truth: float | None = None) -> int | None:
    """Independent clusters (rows, where each is one) with which a mean above `margin` is shown with power .8, if the
    sample is the truth; `truth` tilts it to another mean. None where no number is enough, since the truth is no more
    than the margin."""
    means = sample.sums / sample.sizes
    wanted = sample.mean if truth is None else truth
    if wanted - margin <= 1e-9:
        return None
    if truth is None:
        weights = np.full(len(means), 1 / len(means))
    else:
        sample = replace(sample, sums=np.append(sample.sums, sample.high), sizes=np.append(sample.sizes, 1.0))
        means = sample.sums / sample.sizes
        weights = tilted_weights(means, np.ones_like(means), wanted)
    rest = (sample.sums - margin * sample.sizes) / float(weights @ sample.sizes)
    gap = float(weights @ rest)
    if gap <= 1e-9:
        return None
    spread = math.sqrt(max(float(weights @ (rest - gap) ** 2), 0.0))
    width = (margin - sample.low) * float(sample.sizes.max()) / float(weights @ sample.sizes)
    z = sum(NormalDist().inv_cdf(1 - tail) for tail in (level, 1 - POWER))
    plain = (z * spread / gap) ** 2
    if spread < 1e-9:
        n = max(1, fewest(margin, wanted, sample.low, level) or 1)
        while power(sample, weights, n, margin, level) < POWER:
            n += 1
        return n
    begin, enough = (math.ceil(plain + price * width / gap) for price in _PRICE)
    slope = gap / spread
    if begin <= _LONGEST:
        enough = _played(sample, weights, begin, margin, level, slope)
    return _confirmed(sample, weights, enough, margin, level, slope) if enough <= _LONGEST_SURE else enough


def _played(sample: BoundedSample, weights: Array, n: int, margin: float, level: float, slope: float) -> int:
    """Return the number of clusters, from a first guess: the normal quantile of power grows by about `slope` with the
    root of n."""
    few, enough = 0, 0
    for _ in range(14):
        found = power(sample, weights, n, margin, level)
        few, enough = (max(few, n), enough) if found < _SAFE - 0.01 else (few, min(enough or n, n))
        if _SAFE - 0.01 <= found <= _SAFE + 0.02 or few >= enough - max(1, enough // 50) > 0:
            break
        away = NormalDist().inv_cdf(_SAFE) - NormalDist().inv_cdf(min(max(found, 0.02), 0.98))
        moved = math.ceil(max(math.sqrt(n) + away / slope, 1.0) ** 2)
        if not enough:  # where values collapse now and then, power grows more slowly than that
            n = max(moved, math.ceil(1.15 * few))
        else:
            n = moved if few < moved < enough else (few + enough) // 2
    return enough or math.ceil(1.1 * few)


def _confirmed(sample: BoundedSample, weights: Array, n: int, margin: float, level: float, slope: float) -> int:
    """Return the number of clusters, raised until many games agree that the power is there: few games find one that
    only seems so."""
    for _ in range(6):
        found = power(sample, weights, n, margin, level, plays=min(_SURE_GAMES, _SURE_VALUES // n))
        if found >= _SURE:
            break
        away = NormalDist().inv_cdf(_SURE) - NormalDist().inv_cdf(max(found, 0.02))
        n = max(math.ceil(1.01 * n) + 1, math.ceil((math.sqrt(n) + away / slope) ** 2))
    return n


def rate_rows_needed(rate: float, margin: float, level: float) -> int | None:
    """Independent yes/no rows with which the exact binomial test shows a rate above `margin` with power .8."""
    if rate - margin <= 1e-9:
        return None
    if margin <= 0:
        return 1
    z = NormalDist().inv_cdf(1 - level) * math.sqrt(margin * (1 - margin))
    z += NormalDist().inv_cdf(POWER) * math.sqrt(rate * (1 - rate))
    guess = math.ceil((z / (rate - margin)) ** 2)
    if guess > 200_000:
        return guess
    n = np.arange(1, 2 * guess + 50 + (fewest(margin, 1.0, 0.0, level) or 0))
    needed = stats.binom.isf(level, n, margin) + 1
    needed -= (
        stats.binom.sf(needed - 2, n, margin) <= level
    )  # isf may stand one too high where the tail equals the level
    enough = stats.binom.sf(needed - 1, n, rate) >= POWER
    return int(n[int(np.argmax(enough))]) if enough.any() else guess
