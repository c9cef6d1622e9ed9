"""F1 is shown for every distribution: the game by hand, its validity and its ends, pairs, clusters, and labels without
rows."""

import numpy as np
import pytest

from gemma_ops.stats import ratio_rows
from gemma_ops.stats.ratio_game import Ends, LabelCounts, ratio_wins
from gemma_ops.stats.ratios import RatioSample, label_ends, ratio_shown

EVEN = (1 / 3,) * 3


def drawn(rng, times, n, shares=EVEN, right=0.85):
    """Wanted and said labels [n, times]."""
    wanted = rng.choice(len(shares), (n, times), p=shares)
    return wanted, np.where(rng.random((n, times)) < right, wanted, rng.choice(len(shares), (n, times), p=shares))


def counted(wanted, said, labels):
    """Counts [rows, games, labels]."""
    want, say = (part[..., None] == np.arange(labels) for part in (wanted, said))
    return LabelCounts((want & say).astype(float), want.astype(float) + say)


def sample(wanted, said, labels, rival=None, groups=None, *, micro=False):
    parts = [counted(wanted, said, labels), *([] if rival is None else [counted(wanted, rival, labels)])]
    arrays = [array for part in parts for array in (part.hits, part.totals)]
    arrays.insert(2, (wanted[..., None] == np.arange(labels)).astype(float))
    if micro:
        arrays = [array.sum(1, keepdims=True) for array in arrays]
    groups = np.arange(len(wanted)) if groups is None else groups
    summed = [np.stack([np.bincount(groups, column) for column in array.T], axis=1) for array in arrays]
    return RatioSample(*summed[:3], np.bincount(groups).astype(float), *summed[3:])


def level(times, value=0.05):
    return np.full(times, value)


def test_wealth_is_that_of_the_bets_by_hand():
    """One label that is always right: at the most, all but a thousandth is bet on (2 - 2 t) / 2 t, which for t = .5
    doubles a stake. The worst vector is the margin itself, so it takes as many rows as the largest bets need."""
    for count, at in ((5, 0.05), (4, 0.07)):
        free = Ends(np.zeros((1, 1)), np.ones((1, 1)))
        for rows, wins in ((count, True), (count - 1, False)):
            always = LabelCounts(np.ones((rows, 1, 1)), np.full((rows, 1, 1), 2.0))
            assert ratio_wins(always, None, np.array([0.5]), np.array([at]), free)[0] == wins


def test_what_is_bet_on_is_zero_on_average_for_the_true_f1_and_for_no_other():
    """The linear form 2 hits - f total of each label, summed over rows, is 0 exactly at the plain formula of F1."""
    wanted, said = (part[:, 0] for part in drawn(np.random.default_rng(1), 1, 200))
    made = sample(wanted, said, 3)
    for label in range(3):
        hits = ((wanted == label) & (said == label)).sum()
        plain = 2 * hits / (2 * hits + ((wanted == label) ^ (said == label)).sum())
        assert (2 * made.hits[:, label] - plain * made.totals[:, label]).sum() == pytest.approx(0)
    assert made.value == pytest.approx(
        np.mean([2 * ((wanted == k) & (said == k)).sum() / ((wanted == k).sum() + (said == k).sum()) for k in range(3)])
    )
    assert sample(wanted, said, 3, micro=True).value == pytest.approx((wanted == said).mean())


@pytest.mark.parametrize("shares", [EVEN, (0.8, 0.15, 0.05)])
def test_macro_f1_at_its_truth_is_rarely_shown_to_be_elsewhere(shares):
    rng, times = np.random.default_rng(2), 1500
    joint = 0.85 * np.diag(shares) + 0.15 * np.outer(shares, shares)
    truth = float((2 * np.diag(joint) / (joint.sum(0) + joint.sum(1))).mean())
    for n in (40, 300):
        counts = counted(*drawn(rng, times, n, shares), 3)
        for below in (False, True):
            wrong = ratio_shown(counts, None, np.full(times, truth), level(times), below=below).mean()
            assert wrong <= 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5


def test_one_ratio_uses_up_its_level_and_no_more():
    """Micro F1 of rows with answers that are no label: the errors come close to the level, from below."""
    rng, times, n = np.random.default_rng(3), 2000, 300
    luck = rng.random((n, times, 1))
    counts = LabelCounts((luck < 0.85).astype(float), np.where(luck > 0.9, 1.0, 2.0))
    truth = 2 * 0.85 / 1.9
    for below in (False, True):
        wrong = ratio_shown(counts, None, np.full(times, truth), level(times), below=below).mean()
        assert 0.02 < wrong <= 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5


def test_the_difference_at_its_truth_is_rarely_shown_to_be_elsewhere():
    rng, times, n = np.random.default_rng(4), 1000, 400
    wanted, said = drawn(rng, times, n)
    worse = np.where(rng.random((n, times)) < 0.1, rng.integers(0, 3, (n, times)), said)
    truth = -0.1 * (0.9 - 1 / 3)  # even labels: F1 is the rate of right answers
    pair = counted(wanted, worse, 3), counted(wanted, said, 3)
    for below in (False, True):
        wrong = ratio_shown(*pair, np.full(times, truth), level(times), below=below).mean()
        assert wrong <= 0.05
    assert ratio_shown(*pair, np.full(times, truth - 0.06), level(times)).mean() > 0.5
    assert ratio_shown(*pair, np.full(times, truth + 0.06), level(times), below=True).mean() > 0.5


def test_labels_together_show_what_bounds_per_label_do_not():
    rng, times = np.random.default_rng(5), 200
    counts = counted(*drawn(rng, times, 850, (0.1,) * 10, 0.89), 10)
    least, _ = label_ends(counts, level(times, 0.05 / 10))
    assert (least.mean(1) > 0.85).mean() < 0.1
    assert ratio_shown(counts, None, np.full(times, 0.85), level(times)).mean() > 0.7


def test_bounds_p_values_and_tests_agree_and_are_monotone():
    rng = np.random.default_rng(6)
    wanted, said = (part[:, 0] for part in drawn(rng, 1, 250))
    worse = np.where(rng.random(250) < 0.04, rng.integers(0, 3, 250), said)
    for made in (
        sample(wanted, said, 3), sample(wanted, said, 3, micro=True), sample(wanted, worse, 3, said),
        sample(wanted, worse, 3, said, micro=True), sample(wanted, said, 3, None, np.arange(250) // 5),
    ):  # fmt: skip
        low, high = made.bound(0.05), made.bound(0.05, upper=True)
        assert low < made.value < high
        assert made.shows(low, 0.05)
        assert not made.shows(low + 2e-3, 0.05)
        assert made.shows(high, 0.05, below=True)
        assert not made.shows(high - 2e-3, 0.05, below=True)
        margins = np.linspace(low - 0.1, high + 0.1, 9)
        above = [made.p_value(margin) for margin in margins]
        assert above == sorted(above)
        below = [made.p_value(margin, below=True) for margin in margins]
        assert below == sorted(below, reverse=True)
        assert made.bound(0.01) < low < made.bound(0.2)


@pytest.mark.parametrize(("micro", "least", "most"), [(True, 59, 61), (False, 100, 180)])
def test_pairs_that_answer_alike_lose_nothing_by_their_errors(micro, least, most):
    """59 rows that all agree show a difference above -.05 of any score. Micro F1 takes two more, whatever is wrong;
    macro F1, whose worst difference may lie in one label alone, up to three times as many."""
    wanted, said = (part[:, 0] for part in drawn(np.random.default_rng(7), 1, 400, right=0.8))

    def shown(n):
        return sample(wanted[:n], said[:n], 3, said[:n], micro=micro).shows(-0.05, 0.05)

    assert not any(shown(n) for n in range(least - 10, least))
    assert all(shown(n) for n in range(most, most + 10))


def test_copies_in_clusters_add_nothing():
    wanted, said = (part[:, 0] for part in drawn(np.random.default_rng(8), 1, 120))
    alone = sample(wanted, said, 3, micro=True)
    thrice = [np.repeat(part, 3) for part in (wanted, said)]
    copied = sample(*thrice, 3, None, np.repeat(np.arange(120), 3), micro=True)
    assert copied.bound(0.05) == pytest.approx(alone.bound(0.05), abs=1e-9)
    assert sample(*thrice, 3, micro=True).bound(0.05) > alone.bound(0.05) + 0.01


def test_large_clusters_may_be_the_worse_ones():
    rng, wrong = np.random.default_rng(9), 0

    def draw(count):
        sizes = rng.choice([1, 8], count, p=[0.7, 0.3])
        groups = np.repeat(np.arange(count), sizes)
        rate = np.where(sizes == 8, rng.beta(4, 2, count), rng.beta(9, 1, count))[groups]
        wanted = rng.integers(0, 2, len(groups))
        return wanted, np.where(rng.random(len(groups)) < rate, wanted, 1 - wanted), groups

    wanted, said, groups = draw(60_000)
    truth = sample(wanted, said, 2).value
    for _ in range(150):
        wanted, said, groups = draw(50)
        made = sample(wanted, said, 2, None, groups)
        wrong += made.shows(truth, 0.05) or made.shows(truth, 0.05, below=True)
    assert wrong / 150 <= 0.1


def test_no_bound_lies_beyond_what_was_measured():
    """At a level of one half the game is often won above it: half of all lower bounds may exceed the truth."""
    wanted, said = drawn(np.random.default_rng(11), 20, 60)
    for game in range(20):
        made = sample(wanted[:, game], said[:, game], 3, micro=True)
        assert made.bound(0.5) <= made.value <= made.bound(0.5, upper=True)


def test_a_label_without_rows_counts_as_the_worst_on_either_side():
    """All answers right, four of five labels seen: macro F1 can be .8 if the fifth is always wrong, and no more is
    shown."""
    wanted = np.arange(2000) % 4
    four, five = sample(wanted, wanted, 4), sample(wanted, wanted, 5)
    assert four.value == five.value == 1.0
    assert four.bound(0.05) > 0.98
    assert 0.77 < five.bound(0.05) < 0.8
    wrong = (wanted + 1) % 4
    assert sample(wanted, wrong, 4).bound(0.05, upper=True) < 0.03
    assert 0.2 < sample(wanted, wrong, 5).bound(0.05, upper=True) < 0.24
    assert sample(wanted, wanted, 5, wanted).bound(0.05) < -0.2


def test_the_ends_of_the_range():
    one = sample(np.array([0, 1, 0]), np.array([0, 0, 0]), 2, micro=True)
    assert one.p_value(0.0) < 1e-5  # a hit shows that F1 is not 0
    assert one.p_value(1.0, below=True) < 1e-5  # and a miss that it is not 1
    assert one.p_value(1.0) == 1.0
    assert one.p_value(-0.1) < 1e-5
    nothing = sample(np.array([3, 3]), np.array([4, 4]), 2)
    assert (nothing.value, nothing.bound(0.05), nothing.bound(0.05, upper=True)) == (0.0, 0.0, 1.0)


def test_counts_of_other_rows_are_refused():
    """Two hits in one row, or a label that is wanted and said but not hit."""
    two, once = np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])
    for hits in (two, 0 * once):
        with pytest.raises(ValueError, match="none of rows that want one label"):
            RatioSample(hits, 2 * (two if hits is two else once), once, np.ones(1))


def test_rows_told_give_the_power_and_labels_told_are_enough():
    wanted, said = (part[:, 0] for part in drawn(np.random.default_rng(10), 1, 80, right=0.9))
    made = sample(wanted, said, 3)
    margin = made.value - 0.06
    told = ratio_rows.groups_needed(made, margin, 0.05)
    assert ratio_rows.power_of_rows(made, told, margin, 0.05, games=800) > 0.75
    assert ratio_rows.power_of_rows(made, int(0.75 * told), margin, 0.05, games=800) < 0.8
    assert ratio_rows.groups_needed(made, made.value, 0.05) is None
    each = ratio_rows.groups_each(made, 0.95, 0.05)
    assert each > 27
    assert ratio_rows.at_best(made, 0.95, each).shows(0.95, 0.05)
    assert not ratio_rows.at_best(made, 0.95, int(0.75 * each)).shows(0.95, 0.05)
    assert ratio_rows.groups_each(made, 0.5, 0.05) == 0
    assert ratio_rows.groups_each(made, 1.0, 0.05) is None
