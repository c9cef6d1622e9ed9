"""Figures that judges need: agreement beyond chance, win rates at equal length, rates corrected for a judge's
errors."""

import krippendorff as reference
import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score

from gemma_ops.judging import agreement, winrate
from gemma_ops.judging.correction import Correction, Share
from gemma_ops.stats.intervals import Sample, mean_interval


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("raters", [2, 3, 5])
def test_krippendorffs_alpha_is_that_of_the_reference(level, raters):
    rng = np.random.default_rng(raters)
    for missing in (0.0, 0.2, 0.6):
        truth = rng.integers(1, 6, 30)
        ratings = np.clip(truth + rng.integers(-1, 2, (raters, 30)), 1, 5).astype(float)
        ratings[rng.random(ratings.shape) < missing] = np.nan
        expected = reference.alpha(reliability_data=ratings, level_of_measurement=level)
        assert agreement.krippendorff(ratings, level) == pytest.approx(expected)


def test_alpha_is_none_where_there_is_nothing_to_agree_on():
    assert agreement.krippendorff(np.full((2, 5), 1.0)) is None
    assert agreement.krippendorff(np.array([[1.0, np.nan], [np.nan, 2.0]])) is None


def test_kappa_is_cohens():
    rng = np.random.default_rng(1)
    first = rng.choice(["first", "second", "tie"], 90)
    second = np.where(rng.random(90) < 0.7, first, rng.choice(["first", "second", "tie"], 90))
    found = agreement.kappa_interval(list(first), list(second), None, 0.95, 7)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.value < found.high


def test_kappa_without_variety_is_not_defined_and_full_agreement_is_no_certainty():
    assert agreement.kappa(["pass"] * 20, ["pass"] * 20) is None
    found = agreement.kappa_interval(["pass", "fail"] * 10, ["pass", "fail"] * 10, None, 0.95, 7)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low < 0.75


def test_agreement_on_a_lopsided_set_flatters():
    """Nine in ten pass: two raters that toss such a coin agree on 82 % and know nothing of each other."""
    rng = np.random.default_rng(2)
    first, second = (list(np.where(rng.random(400) < 0.9, "pass", "fail")) for _ in range(2))
    share = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert share > 0.75
    assert abs(agreement.kappa(first, second)) < 0.15


def test_clusters_widen_kappa():
    labels = ["a", "b"] * 60
    other = [label if index % 8 else "a" for index, label in enumerate(labels)]
    same = [f"c{index // 12}" for index in range(120)]
    one, two = (agreement.kappa_interval(labels, other, groups, 0.95, 7) for groups in (None, same))
    assert one.value == two.value
    assert two.clusters == 10


def test_a_win_rate_without_ties_is_a_proportion():
    found = winrate.win_rate([1.0] * 61 + [0.0] * 39, None, 0.95)
    wilson = mean_interval(Sample.of([1.0] * 61 + [0.0] * 39), 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.61, wilson.low, wilson.high), abs=1e-4)
    assert (found.wins, found.ties, found.losses) == (61, 0, 39)


def test_ties_make_a_win_rate_surer_than_coins_would():
    tied = winrate.win_rate([1.0] * 30 + [0.5] * 50 + [0.0] * 20, None, 0.95)
    coins = winrate.win_rate([1.0] * 55 + [0.0] * 45, None, 0.95)
    assert tied.value == pytest.approx(coins.value)
    assert tied.high - tied.low < coins.high - coins.low


def length_bound(n, truth, pull, rng):
    """Pairs whose outcome depends on length: the first answers are mostly longer."""
    gaps = rng.normal(60, 80, n)
    chance = expit(truth + pull * np.tanh(gaps / np.sqrt((gaps**2).mean())))
    return (rng.random(n) < chance).astype(float), gaps


def test_length_control_takes_the_advantage_of_length_away():
    rng = np.random.default_rng(4)
    scores, gaps = length_bound(2000, 0.0, 1.5, rng)
    raw = winrate.win_rate(list(scores), None, 0.95)
    found = winrate.controlled(scores, gaps, None, 0.95, 7)
    assert raw.low > 0.55
    assert found.low < 0.5 < found.high


def test_length_control_changes_little_where_length_does_not_matter():
    rng = np.random.default_rng(5)
    scores, gaps = length_bound(1500, 0.6, 0.0, rng)
    found = winrate.controlled(scores, gaps, None, 0.95, 7)
    assert found.value == pytest.approx(float(np.mean(scores)), abs=0.03)


def test_length_control_survives_a_side_that_never_loses_and_refuses_what_it_cannot_tell():
    gaps = np.linspace(-50, 90, 40)
    nearly = np.ones(40)
    nearly[0] = 0.5
    found = winrate.controlled(nearly, gaps, None, 0.95, 7)
    assert 0.8 < found.value < 1
    assert winrate.controlled([1.0] * 40, gaps, None, 0.95, 7) is None
    assert winrate.controlled([1.0, 0.0] * 20, [0] * 40, None, 0.95, 7) is None
    assert winrate.controlled([1.0, 0.0], [4, 5], None, 0.95, 7) is None


def test_the_corrected_rate_is_the_plug_in():
    found = Correction(Share(0.62, 500), Share(0.9, 60), Share(0.8, 40))
    assert found.value == pytest.approx((0.62 + 0.8 - 1) / (0.9 + 0.8 - 1))


def test_labels_are_part_of_the_interval():
    """The same rows with a quarter of the labels: a wider interval; with a perfect judge and many labels, Wilson's."""
    wide, narrow = (Correction(Share(0.62, 500), Share(0.9, n), Share(0.8, n)).ends(1.96) for n in (25, 100))
    assert wide[1] - wide[0] > 1.2 * (narrow[1] - narrow[0])
    perfect = Correction(Share(0.62, 500), Share(1.0, 1e7), Share(1.0, 1e7)).ends(1.959964)
    wilson = mean_interval(Sample.of([1.0] * 310 + [0.0] * 190), 0.95)
    assert perfect == pytest.approx((wilson.low, wilson.high), abs=0.003)


def test_a_judge_no_better_than_chance_says_nothing():
    assert Correction(Share(0.6, 500), Share(0.5, 30), Share(0.5, 30)).ends(1.96) == (0.0, 1.0)
