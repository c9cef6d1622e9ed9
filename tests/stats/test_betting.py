"""Bounds that hold for every distribution: what the game does by hand, its ends, its price, and the rows it is told to
need."""

import math

import numpy as np
import pytest

from gemma_ops.stats import power
from gemma_ops.stats.betting import BoundedSample, dealt, wins
from gemma_ops.stats.fewest import fewest
from gemma_ops.stats.look_levels import FIRST, look_level


def rows(values, low=-1.0, high=1.0):
    values = np.asarray(values, dtype=float)
    return BoundedSample(values, np.ones_like(values), low, high)


@pytest.mark.parametrize(("margin", "least"), [(-0.2, 14), (-0.03, 99)])
def test_rows_that_all_agree_pass_at_exactly_the_number_that_can(margin, least):
    assert fewest(margin, 0.0, -1.0, 0.05) == least == math.ceil(math.log(0.05) / math.log(1 + margin))
    assert rows(np.zeros(least)).shows(margin, 0.05)
    assert not rows(np.zeros(least - 1)).shows(margin, 0.05)
    assert power.clusters_needed(rows(np.zeros(5)), margin, 0.05) == least


def test_wealth_is_that_of_the_bets_by_hand():
    """One value at the top of the range doubles a stake of everything; it takes as many as halve 1 / level."""
    for count, level in ((5, 0.05), (4, 0.07)):
        assert wins(np.ones((count, 1)), np.ones((count, 1)), np.array([0.5]), 0.0, 1.0, np.array([level]))[0]
        assert not wins(np.ones((count - 1, 1)), np.ones((count - 1, 1)), np.array([0.5]), 0.0, 1.0, np.array([level]))[
            0
        ]


def test_bounds_p_values_and_tests_agree():
    rng = np.random.default_rng(1)
    for _ in range(10):
        sample = rows(np.clip(rng.normal(0.05, 0.2, 150), -1, 1))
        low, high = sample.bound(0.05), -sample.mirrored().bound(0.05)
        assert low < sample.mean < high
        assert sample.shows(low - 1e-9, 0.05)
        assert not sample.shows(low + 2e-4, 0.05)
        p = sample.p_value(0.0)
        assert sample.shows(0.0, p) or p == 1.0


def test_no_order_of_rows_in_a_file_and_no_value_decides_the_order_of_play():
    values = np.sort(np.random.default_rng(2).random(50))
    played, sizes = dealt(values, np.ones(50))
    assert sorted(played) == list(values)
    assert abs(np.corrcoef(played, np.arange(50))[0, 1]) < 0.5  # a sorted file is mixed
    other, _ = dealt(values + 1, np.ones(50))
    assert np.array_equal(np.argsort(played), np.argsort(other))
    assert (sizes == 1).all()


def test_values_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="outside 0 to 1"):
        rows([0.5, 1.2], 0.0, 1.0)


def test_a_margin_at_the_end_of_the_range():
    assert rows([0.2, 0.0], 0.0, 1.0).p_value(0.0) < 1e-5  # one value above the least one shows it
    assert rows([0.0, 0.0], 0.0, 1.0).p_value(0.0) == 1.0
    assert rows([1.0, 1.0], 0.0, 1.0).p_value(1.0) == 1.0


def test_the_mean_of_clusters_is_that_of_rows_and_large_ones_count_as_such():
    """One large bad cluster among small good ones: by rows the mean is .5, by clusters it would be .9."""
    sums, sizes = np.array([2.0] * 9 + [0.0]), np.array([2.0] * 9 + [18.0])
    sample = BoundedSample(sums, sizes, 0.0, 1.0)
    assert sample.mean == 0.5
    assert sample.bound(0.05) < 0.2


def test_long_samples_bet_less_often_and_lose_nothing():
    rng, found = np.random.default_rng(3), []
    for n in (1500, 6000):
        values = np.clip(rng.normal(2.4865 * 0.15 / n**0.5, 0.15, (n, 600)), -1, 1)
        found.append(wins(values, np.ones((n, 1)), np.zeros(600), -1.0, 2.0, np.full(600, 0.05)).mean())
    assert min(found) > 0.70  # a z-test has .80


def test_told_clusters_give_the_power_and_no_more_are_told_than_that_takes():
    rng = np.random.default_rng(4)
    for sample, margin in (
        (rows(np.clip(rng.normal(0.05, 0.2, 60), -1, 1)), 0.0),
        (rows(np.where(np.arange(50) < 1, 0.0, rng.beta(30, 4, 50)), 0.0, 1.0), 0.8),  # one row collapsed
    ):
        told, even = power.clusters_needed(sample, margin, 0.05), np.full(len(sample.sums), 1 / len(sample.sums))
        assert power.power(sample, even, told, margin, 0.05, plays=3000) > 0.79
        assert power.power(sample, even, int(0.8 * told), margin, 0.05, plays=3000) < 0.81
    assert power.clusters_needed(rows([0.1, -0.2]), 0.0, 0.05) is None


def test_a_sample_is_tilted_to_another_truth():
    weights = power.tilted_weights([1.0, 0.0, -1.0], [0.1, 0.8, 0.1], 0.05)
    assert weights @ np.array([1.0, 0.0, -1.0]) == pytest.approx(0.05)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(("rate", "margin"), [(0.8, 0.7), (0.95, 0.9), (1.0, 0.93)])
def test_exact_rows_for_a_rate(rate, margin):
    from scipy import stats

    n = power.rate_rows_needed(rate, margin, 0.05)

    def passes(count):
        least = next(k for k in range(count + 2) if k > count or stats.binom.sf(k - 1, count, margin) <= 0.05)
        return stats.binom.sf(least - 1, count, rate) if least <= count else 0.0

    assert passes(n) >= 0.8 > passes(n - 1)


def test_levels_of_all_looks_sum_to_the_level():
    spent = []
    for _ in range(40):
        spent.append(look_level(0.05, spent))
    assert spent[:3] == pytest.approx([0.05 * FIRST, 0.05 * (1 - FIRST) / 2, 0.05 * (1 - FIRST) / 4])
    assert sum(spent) <= 0.05 + 1e-12
