"""The tables: errors and coverage per case, rows next to a t-test's, verdicts of ten gates, twenty looks, told rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import stats

from gemma_ops.bench.gates.gates_cases import Case
from gemma_ops.stats import intervals, paired, power, rows_needed
from gemma_ops.stats.betting import Array, BoundedSample, dealt, wins
from gemma_ops.stats.intervals import Sample
from gemma_ops.stats.look_levels import look_level

Bools = npt.NDArray[np.bool_]
_GAMES = 4000
"""Games that measure the power at told rows, with an error of .006."""
SIDE = 0.025
"""Level of one side of a two-sided interval that holds 95 % of the time."""


@dataclass(frozen=True)
class ErrorRates:
    """Rates at which a gate at level .05 passed and failed wrongly, and at which the 95 % interval held the truth."""

    case: str
    n: int
    times: int
    false_pass: float
    false_fail: float
    coverage: float


def rejected(case: Case, sums: Array, sizes: Array, level: float, *, upper: bool = False) -> Bools:
    """Return for every repetition whether a mean above the truth (below it, with `upper`) is shown at this level."""
    if case.binary:
        return np.array([p <= level for p in _exact(case, sums)[int(upper)]])
    sign, low = (-1.0, -case.high) if upper else (1.0, case.low)
    hands = [dealt(sign * row, size) for row, size in zip(sums, sizes, strict=True)]
    played, scaled = (np.stack(part, axis=1) for part in zip(*hands, strict=True))
    margin = np.full(len(sums), sign * case.truth)
    return wins(played, scaled, margin, low, case.high - case.low, np.full(len(sums), level))


def _exact(case: Case, values: Array) -> tuple[list[float], list[float]]:
    """Return p-values of both sides by the product's exact tests, each outcome computed once."""
    counts = zip((values > 0).sum(1).tolist(), (values < 0).sum(1).tolist(), strict=True)
    found = [_p_values(case.truth, case.low < 0, more, less, values.shape[1]) for more, less in counts]
    return [above for above, _ in found], [below for _, below in found]


@cache
def _p_values(truth: float, pairs: bool, more: int, less: int, n: int) -> tuple[float, float]:
    sample = Sample.of([1.0] * more + [-1.0] * less + [0.0] * (n - more - less))
    return paired.difference_tests(sample, truth) if pairs else intervals.mean_tests(sample, truth)


@cache
def _holds(truth: float, pairs: bool, more: int, less: int, n: int) -> bool:
    if pairs:
        first, second = [1.0] * more + [0.0] * (n - more), [0.0] * more + [1.0] * less + [0.0] * (n - more - less)
        found = paired.compare_paired(first, second, None, 1 - 2 * SIDE)
        return found.low <= truth <= found.high
    interval = intervals.mean_interval(Sample.of([1.0] * more + [0.0] * (n - more)), 1 - 2 * SIDE)
    return interval.low <= truth <= interval.high


def errors(case: Case, n: int, times: int, seed: int) -> ErrorRates:
    """Measure one line of the table."""
    sums, sizes = case.draw(np.random.default_rng(seed), times, n)
    above, below = (float(rejected(case, sums, sizes, 0.05, upper=side).mean()) for side in (False, True))
    if case.binary:
        counts = zip((sums > 0).sum(1).tolist(), (sums < 0).sum(1).tolist(), strict=True)
        held = float(np.mean([_holds(case.truth, case.low < 0, more, less, n) for more, less in counts]))
    else:
        out = rejected(case, sums, sizes, SIDE) | rejected(case, sums, sizes, SIDE, upper=True)
        held = 1 - float(out.mean())
    return ErrorRates(case.name, n, times, above, below, held)


@dataclass(frozen=True)
class PowerPrice:
    """Rows for power .8 at level .05, next to those of a t-test."""

    effect: float
    deviation: float
    t_rows: int
    rows: int

    @property
    def ratio(self) -> float:
        return self.rows / self.t_rows


def rows_price(effect: float, deviation: float) -> PowerPrice:
    """Measure the rows for normal differences in [-1, 1] against a margin of 0."""
    n = np.arange(2, 20_000)
    seen = stats.nct.sf(stats.t.isf(0.05, n - 1), n - 1, effect / deviation * np.sqrt(n))
    t_rows = int(n[int(np.argmax(seen >= power.POWER))])
    values = stats.norm.ppf((np.arange(4000) + 0.5) / 4000) * deviation + effect
    sample = BoundedSample(np.clip(values, -1, 1), np.ones(4000), -1, 1)
    weights, few, enough = np.full(4000, 1 / 4000), t_rows, 3 * t_rows
    while enough - few > max(1, few // 100):
        middle = (few + enough) // 2
        shown = power.power(sample, weights, middle, 0.0, 0.05, plays=4000)
        few, enough = (few, middle) if shown >= power.POWER else (middle, enough)
    return PowerPrice(effect, deviation, t_rows, enough)


def verdict_of_gates(case: Case, n: int, gates: int, times: int, seed: int) -> tuple[float, float]:
    """Return the share of verdicts of so many true gates at their margins in which any passes, and in which any fails,
    at the level of a first look. The first step of Holm's method decides whether any does."""
    level = look_level(0.05, ()) / gates
    rng, any_pass, any_fail = np.random.default_rng(seed), np.zeros(times, dtype=bool), np.zeros(times, dtype=bool)
    for _ in range(gates):
        sums, sizes = case.draw(rng, times, n)
        any_pass |= rejected(case, sums, sizes, level)
        any_fail |= rejected(case, sums, sizes, level, upper=True)
    return float(any_pass.mean()), float(any_fail.mean())


def looks(case: Case, first: int, more: int, count: int, times: int, seed: int) -> tuple[float, float]:
    """Return the share of evaluations that pass at any of `count` looks at growing rows: with the level spent over
    looks, and with the whole level at each."""
    sums, sizes = case.draw(np.random.default_rng(seed), times, first + more * (count - 1))
    spent: list[float] = []
    spending, careless = np.zeros(times, dtype=bool), np.zeros(times, dtype=bool)
    for look in range(count):
        n = first + more * look
        level = look_level(0.05, spent)
        spent.append(level)
        spending |= rejected(case, sums[:, :n], sizes[:, :n], level)
        careless |= rejected(case, sums[:, :n], sizes[:, :n], 0.05)
    return float(spending.mean()), float(careless.mean())


@dataclass(frozen=True)
class Pilots:
    """Findings of small evaluations about the rows needed, where the truth lies beyond the margin: how many pilots are
    told that no number would do, and the power at the told number if the pilot is the truth."""

    case: str
    n: int
    pilots: int
    told_none: float
    least_power: float
    mean_power: float


def pilots(case: Case, n: int, gap: float, count: int, seed: int) -> Pilots:
    """Measure pilots of n rows against a margin that lies `gap` below the truth."""
    rng, none, found = np.random.default_rng(seed), 0, list[float]()
    margin = case.truth - gap
    for _ in range(count):
        sums, _ = case.draw(rng, 1, n)
        sample = Sample.of(list(sums[0]))
        difference = case.low < 0
        truth = sample.mean if sample.mean > margin + 0.25 * gap else margin + gap
        told = rows_needed.paired_rows(sample, margin, 0.05, truth, is_difference=difference)
        none += told is None
        if told is not None and truth == sample.mean:
            found.append(_power(case, sample, margin, told, rng))
    return Pilots(case.name, n, count, none / count, min(found), float(np.mean(found)))


def _power(case: Case, pilot: Sample, margin: float, n: int, rng: np.random.Generator) -> float:
    """Return the power at n rows drawn from the pilot."""
    drawn = rng.choice(pilot.values, (_GAMES, n))
    at = Case(case.name, case.draw, margin, case.low, case.high, case.binary)
    return float(rejected(at, drawn, np.ones_like(drawn), 0.05).mean())
