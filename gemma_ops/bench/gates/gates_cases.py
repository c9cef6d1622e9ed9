"""Kinds of scores whose true mean is known: those on which plain intervals fail, and easy ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from gemma_ops.stats.betting import Array

Rng = np.random.Generator
Draw = Callable[[Rng, int, int], tuple[Array, Array]]
"""Function (rng, repetitions, n) -> sums and sizes [repetitions, n] of rows, or of clusters of rows."""


@dataclass(frozen=True)
class Case:
    """A kind of score. `truth` is its mean, `low` to `high` its range; `binary` ones get exact tests. Where rows come
    in clusters, n counts clusters."""

    name: str
    draw: Draw
    truth: float
    low: float
    high: float
    binary: bool = False
    clustered: bool = False


def _rows(draw: Callable[[Rng, tuple[int, int]], Array]) -> Draw:
    def make(rng: Rng, times: int, n: int) -> tuple[Array, Array]:
        values = draw(rng, (times, n))
        return values, np.ones((1, n)).repeat(times, 0)

    return make


def _rare(
    share: float, usual: Callable[[Rng, tuple[int, int]], Array], rare: Callable[[Rng, tuple[int, int]], Array]
) -> Draw:
    return _rows(lambda rng, shape: np.where(rng.random(shape) < share, rare(rng, shape), usual(rng, shape)))


def _clusters(quality: float, agreement: float, *, informative: bool) -> Draw:
    """Draw yes/no rows in clusters of 1 to 60 rows, lognormal; each cluster has a rate of its own. Informative sizes:
    large clusters are the worse ones."""

    def make(rng: Rng, times: int, n: int) -> tuple[Array, Array]:
        sizes = np.clip(np.exp(rng.normal(1.5, 1.0, (times, n))), 1, 60).round()
        centre = np.where(sizes > 8, quality - 0.25, quality) if informative else np.full(sizes.shape, quality)
        rates = rng.beta(centre * agreement, (1 - centre) * agreement)
        return rng.binomial(sizes.astype(int), rates).astype(float), sizes

    return make


@cache
def _row_mean(quality: float, agreement: float) -> float:
    """Return the mean over rows of informative clusters, from four million clusters."""
    sums, sizes = _clusters(quality, agreement, informative=True)(np.random.default_rng(1), 4, 1_000_000)
    return float(sums.sum() / sizes.sum())


@cache
def _capped_lognormal(spread: float, most: float) -> float:
    """Return the mean of min(exp(spread Z), most), by summing over a fine grid."""
    from scipy import stats

    log = np.log(most) / spread
    body = np.exp(spread**2 / 2) * stats.norm.cdf(log - spread)
    return float(body + most * stats.norm.sf(log))


def cases() -> list[Case]:
    """Return all kinds of scores."""
    collapse = _rare(0.02, lambda r, s: r.uniform(-0.02, 0.02, s), lambda r, s: -(0.2 + 0.6 * r.beta(4, 4, s)))
    zeros = _rare(0.02, lambda r, s: r.beta(40, 5, s), lambda _, s: np.zeros(s))
    runaways = _rare(0.03, lambda r, s: -r.uniform(0.8, 1.2, s), lambda r, s: -50 * r.uniform(0.8, 1.2, s))
    lognormal = _rows(lambda r, s: -np.minimum(np.exp(1.5 * r.standard_normal(s)), 100))
    graded = _rows(lambda r, s: r.choice([0.0, 0.5, 1.0], s, p=[0.05, 0.25, 0.7]))
    return [
        Case("noninferior, overlap score with 2% collapsed rows", collapse, -0.01, -1, 1),
        Case("at least, 2% of scores are 0", zeros, 0.98 * 40 / 45, 0, 1),
        Case("at most, dollars with 3% runaways of 50 times the price", runaways, -2.47, -75, 0),
        Case("at most, dollars lognormal of spread 1.5", lognormal, -_capped_lognormal(1.5, 100), -100, 0),
        Case("at least, unbalanced clusters", _clusters(0.8, 6, informative=False), 0.8, 0, 1, clustered=True),
        Case(
            "at least, large clusters are worse", _clusters(0.85, 6, informative=True), _row_mean(0.85, 6), 0, 1,
            clustered=True
        ),
        Case("at least, two values", _rows(lambda r, s: np.where(r.random(s) < 0.1, 0.0, 0.9)), 0.81, 0, 1),
        Case("at least, wrong, half right and right", graded, 0.825, 0, 1),
        Case("superior, normal differences", _rows(lambda r, s: np.clip(0.15 * r.standard_normal(s), -1, 1)), 0, -1, 1),
        Case("at least, even scores", _rows(lambda r, s: r.beta(8, 3, s)), 8 / 11, 0, 1),
        Case("at least, yes/no", _rows(lambda r, s: (r.random(s) < 0.9).astype(float)), 0.9, 0, 1, binary=True),
        Case(
            "noninferior, yes/no in pairs", _rows(lambda r, s: r.choice([1.0, 0.0, -1.0], s, p=[0.04, 0.9, 0.06])),
            -0.02, -1, 1, binary=True
        ),
        Case(
            "superior, yes/no in pairs", _rows(lambda r, s: r.choice([1.0, 0.0, -1.0], s, p=[0.1, 0.8, 0.1])), 0, -1, 1,
            binary=True
        ),
    ]  # fmt: skip
