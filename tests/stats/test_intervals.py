"""Intervals hold what they promise, gates promote wrongly no more often than they may, and plans come true.

Simulations are seeded. Tolerances are about three standard errors of a share from that many repetitions.
"""

import numpy as np
import pytest
from scipy import stats

from gemma_ops.config import GateConfig
from gemma_ops.gates import detectable, gate_decision
from gemma_ops.metrics.labels import f1_aggregate as labels_f1
from gemma_ops.stats import intervals, paired
from gemma_ops.stats.intervals import Sample


def grouped(rng, clusters, per, p, icc=0.3):
    """Yes/no rows with a shared latent effect per cluster."""
    latent = (
        np.repeat(rng.standard_normal(clusters), per) * icc**0.5
        + rng.standard_normal(clusters * per) * (1 - icc) ** 0.5
    )
    return (latent < stats.norm.ppf(p)).astype(float), [f"c{index // per}" for index in range(clusters * per)]


def test_a_proportion_gets_wilsons_interval():
    found = intervals.mean_interval(Sample.of([1.0] * 81 + [0.0] * 19), 0.95)
    expected = stats.binomtest(81, 100).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.method == "Wilson"


def test_all_right_is_not_certainty():
    assert intervals.mean_interval(Sample.of([1.0] * 20), 0.95).low < 0.9
    clustered = Sample.of([1.0] * 100, [f"c{index // 20}" for index in range(100)])
    assert intervals.mean_interval(clustered, 0.95).low < 0.6  # five documents, not a hundred
    assert intervals.mean_interval(Sample.of([0.5] * 30), 0.95).low < 0.5  # scores that all agree


def test_one_cluster_says_almost_nothing():
    found = intervals.mean_interval(Sample.of([1.0, 0.0, 1.0], ["a", "a", "a"]), 0.95)
    assert found.high - found.low > 0.9


@pytest.mark.parametrize(("clusters", "p"), [(8, 0.7), (8, 0.97), (30, 0.7), (30, 0.9)])
def test_clustered_coverage(clusters, p):
    rng = np.random.default_rng(11)
    times, held, naive = 300, 0, 0
    for _ in range(times):
        values, names = grouped(rng, clusters, 10, p)
        found = intervals.mean_interval(Sample.of(values, names), 0.95)
        held += found.low <= p <= found.high
        found = intervals.mean_interval(Sample.of(values), 0.95)
        naive += found.low <= p <= found.high
    assert held / times >= 0.92
    assert naive < held  # ignoring clusters would have been too sure


def test_fractional_scores_are_covered():
    rng = np.random.default_rng(12)
    truth, held = 0.8 + 0.2 * 0.4, 0
    for _ in range(400):
        values = np.where(rng.random(60) < 0.8, 1.0, rng.integers(0, 5, 60) / 5)
        found = intervals.mean_interval(Sample.of(values), 0.95)
        held += found.low <= truth <= found.high
    assert held / 400 >= 0.92


def test_paired_coverage_with_clusters():
    rng = np.random.default_rng(13)
    truth, held = 0.05, 0
    for _ in range(200):
        item = rng.standard_normal(120)
        shared = [np.repeat(rng.standard_normal(15), 8) for _ in range(2)]
        scores = [
            (0.55 * part + 0.6 * item + 0.58 * rng.standard_normal(120) < stats.norm.ppf(p)).astype(float)
            for part, p in zip(shared, (0.75, 0.70), strict=True)
        ]
        found = paired.compare_paired(
            list(scores[0]), list(scores[1]), [f"c{index // 8}" for index in range(120)], 0.95
        )
        held += found.low <= truth <= found.high
    assert held / 200 >= 0.90


def test_tango_interval_inverts_its_test():
    """At each limit the score statistic is the normal quantile: that is how the interval is defined."""
    sample = Sample.of([1.0] + [0.0] * 43)
    low, high = paired._interval(sample, 1.959964)
    for limit, sign in ((low, 1), (high, -1)):
        assert paired._z(sample, limit) == pytest.approx(sign * 1.959964, abs=1e-4)
    assert low < 0 < high


def test_mcnemar_is_the_binomial_test():
    assert paired.mcnemar(9, 2) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert paired.mcnemar(0, 0) == 1.0


def test_exact_gate_never_exceeds_its_level():
    """Every outcome of 25 pairs enumerated: the chance of a wrong pass, summed exactly."""
    n, alpha = 25, 0.05
    for margin, share in ((-0.05, 0.07), (0.0, 0.2), (0.05, 0.1)):
        wins, losses = (share + margin) / 2, (share - margin) / 2
        wrong = 0.0
        for better in range(n + 1):
            for worse in range(n + 1 - better):
                chance = stats.multinomial.pmf([better, worse, n - better - worse], n, [wins, losses, 1 - share])
                if chance > 1e-7 and paired._exact(better, worse, n, margin) <= alpha:
                    wrong += chance
        assert wrong <= alpha


def test_bounds_agree_with_tests():
    sample = Sample.of([1.0] * 20 + [-1.0] * 6 + [0.0] * 74)
    bound = paired.difference_bound(sample, 0.05)
    assert paired.difference_tests(sample, bound - 0.002)[0] <= 0.05 < paired.difference_tests(sample, bound + 0.002)[0]
    upper = paired.difference_bound(sample, 0.05, upper=True)
    assert paired.difference_tests(sample, upper + 0.002)[1] <= 0.05 < paired.difference_tests(sample, upper - 0.002)[1]
    rate = Sample.of([1.0] * 45 + [0.0] * 5)
    low = intervals.mean_bound(rate, 0.05)
    assert intervals.mean_tests(rate, low)[0] == pytest.approx(0.05, abs=1e-6)


def test_large_samples_use_the_score_test_and_agree_with_the_exact_one():
    values = [1.0] * 260 + [-1.0] * 200 + [0.0] * 4540
    exact = paired.difference_tests(Sample.of(values), 0.005)[0]
    scored = paired.difference_tests(Sample.of([*values, 0.0]), 0.005)[0]
    assert exact == pytest.approx(scored, abs=0.01)


def test_holm_by_hand():
    adjusted, levels = gate_decision.holm([0.01, 0.04, 0.03], 0.05)
    assert adjusted == pytest.approx([0.03, 0.06, 0.06])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2])


def decide_one(values, gate, *, difference=True, clusters=None):
    sample = Sample.of(values, clusters)
    return gate_decision.decide_gates([gate], [gate_decision.GateEvidence(sample, difference, sample.mean)], 0.95)[0]


def outcome(values, gate, clusters=None):
    sample = Sample.of(values, clusters)
    return gate_decision.judge_gates([gate], [gate_decision.GateEvidence(sample, True, sample.mean)], 0.05)[0][0]


SUPERIOR = GateConfig(metric="m", test="superior", versus="base", margin=0.0)
NONINFERIOR = GateConfig(metric="m", target="q8_0", test="noninferior", versus="tuned", margin=0.05)
AT_LEAST = GateConfig(metric="m", test="at_least", margin=0.6)


def test_three_outcomes():
    assert decide_one([1.0] * 30 + [0.0] * 70, SUPERIOR).outcome == "pass"
    assert decide_one([-1.0] * 30 + [0.0] * 70, SUPERIOR).outcome == "fail"
    unsure = decide_one([1.0] * 12 + [-1.0] * 8 + [0.0] * 80, SUPERIOR)
    assert unsure.outcome == "inconclusive"
    assert unsure.n_needed > 100
    assert f"{unsure.n_needed:,} rows" in unsure.words
    assert decide_one([1.0] * 10 + [0.0] * 2, AT_LEAST, difference=False).outcome == "inconclusive"
    assert decide_one([1.0] * 90 + [0.0] * 10, AT_LEAST, difference=False).outcome == "pass"
    assert decide_one([1.0] * 30 + [0.0] * 70, AT_LEAST, difference=False).outcome == "fail"


def test_equal_targets_pass_noninferiority_only_with_enough_rows():
    small, large = decide_one([0.0] * 20, NONINFERIOR), decide_one([0.0] * 400, NONINFERIOR)
    assert (small.outcome, large.outcome) == ("inconclusive", "pass")
    assert 20 < small.n_needed <= 400


def test_no_number_of_rows_is_said_only_where_it_is_so():
    """A pilot that came out a little worse leaves a better truth open, and rows for it are told with that truth.
    Nothing is better than everything right by a margin."""
    found = decide_one([1.0] * 5 + [-1.0] * 6 + [0.0] * 50, SUPERIOR)
    assert found.outcome == "inconclusive"
    assert found.n_needed > 61
    assert "if the truth is +0." in found.words
    perfect = AT_LEAST.model_copy(update={"margin": 1.0})
    found = decide_one([1.0] * 20, perfect, difference=False)
    assert (found.outcome, found.n_needed) == ("inconclusive", None)
    assert "no number of rows" in found.words


def test_gates_that_fail_share_their_level_too():
    """Each alone would fail at .05; of four together none does, and one that is far off still does."""
    close, far = [1.0] * 19 + [0.0] * 23, [0.0] * 40
    alone = gate_decision.judge_gates([AT_LEAST], [rate(close)], 0.05)[0][0]
    together = [found[0] for found in gate_decision.judge_gates([AT_LEAST] * 4, [rate(close)] * 4, 0.05)]
    assert (alone, together) == ("fail", ["inconclusive"] * 4)
    mixed = gate_decision.decide_gates([AT_LEAST] * 2, [rate(far), rate([1.0] * 26 + [0.0] * 14)], 0.95)
    assert [found.outcome for found in mixed] == ["fail", "inconclusive"]
    assert mixed[0].upper < mixed[0].threshold < mixed[1].upper


def rate(values):
    sample = Sample.of(values)
    return gate_decision.GateEvidence(sample, False, sample.mean)


def test_a_collapse_that_was_not_seen_is_not_ruled_out():
    """Fifty rows within .02 of each other say nothing of what one row in fifty loses; three hundred do."""
    jitter = list(0.02 * np.sin(np.arange(50)))
    unseen = NONINFERIOR.model_copy(update={"margin": 0.01})
    found = decide_one(jitter, unseen)
    assert found.outcome == "inconclusive"
    assert found.bound < -0.05
    assert "50 rows can't show it, 299 could even if no row differs" in found.words
    assert decide_one(jitter * 8, unseen).outcome == "pass"


def test_too_few_clusters_say_how_many_could():
    found = decide_one([1.0, 0.9, 1.0, 0.8], AT_LEAST, difference=False, clusters=["a", "a", "b", "b"])
    assert found.outcome == "inconclusive"
    assert "2 clusters can't show it, 6 could even if all answers are right" in found.words


def test_rows_told_are_for_the_look_that_comes():
    values = [1.0] * 12 + [-1.0] * 8 + [0.0] * 80
    sample = Sample.of(values)
    now, then = (
        gate_decision.decide_gates(
            [SUPERIOR], [gate_decision.GateEvidence(sample, True, sample.mean)], 0.95, later=later
        )[0].n_needed
        for later in (None, 0.99)
    )
    assert then > 1.4 * now


@pytest.mark.parametrize("margin", [0.04, 0.07])
def test_rows_told_for_ties_are_those_that_the_exact_test_takes(margin):
    gate = NONINFERIOR.model_copy(update={"margin": margin})
    told = decide_one([0.0] * 9, gate).n_needed
    assert decide_one([0.0] * told, gate).outcome == "pass"
    assert decide_one([0.0] * (told - 1), gate).outcome == "inconclusive"


def test_pairs_told_have_the_power():
    wins, losses = 0.2, 0.1
    told = paired.pairs_needed(wins, losses, 0.0, 0.05)
    drawn = np.random.default_rng(6).multinomial(told, [wins, losses, 1 - wins - losses], size=150)
    passed = np.mean([paired._exact(int(won), int(lost), told, 0.0) <= 0.05 for won, lost, _ in drawn])
    assert 0.8 - 3 * (0.16 / 150) ** 0.5 <= passed <= 0.93


def test_clusters_make_a_gate_more_careful():
    values = [1.0] * 24 + [0.0] * 40
    names = [f"c{index // 8}" for index in range(64)]  # the gain sits in three of eight documents
    assert decide_one(values, SUPERIOR).outcome == "pass"
    assert decide_one(values, SUPERIOR, clusters=names).outcome == "inconclusive"


def test_pass_exactly_when_the_bound_is_beyond_the_threshold():
    rng = np.random.default_rng(5)
    for _ in range(12):
        first, second = (list(rng.choice([1.0, 0.0, -1.0], 80, p=[0.2, 0.7, 0.1])) for _ in range(2))
        samples = [Sample.of(first), Sample.of(second)]
        evidence = [gate_decision.GateEvidence(sample, True, sample.mean) for sample in samples]
        for decision in gate_decision.decide_gates([SUPERIOR, SUPERIOR], evidence, 0.95):
            if abs(decision.bound) > 5e-4:  # the bound is known to 0.0002
                assert (decision.outcome == "pass") == (decision.bound > decision.threshold)


@pytest.mark.parametrize("clustered", [False, True])
def test_false_promotion_is_rare(clustered):
    """Truth exactly at the margin: whatever the gate says, it should pass in at most 5 % of evaluations."""
    rng = np.random.default_rng(21)
    times, wrong = 300, 0
    for _ in range(times):
        if clustered:
            shift = np.repeat(rng.normal(0, 0.25, 25), 8)
            values = np.clip(np.round(rng.normal(0, 0.35, 200) + shift), -1, 1)
            names = [f"c{index // 8}" for index in range(200)]
        else:
            values, names = rng.choice([1.0, 0.0, -1.0], 200, p=[0.1, 0.8, 0.1]), None
        wrong += outcome(list(values), SUPERIOR, names) == "pass"
    assert wrong / times <= 0.05 + 0.025


def test_two_gates_share_one_level():
    rng = np.random.default_rng(22)
    times, wrong = 200, 0
    for _ in range(times):
        samples = [Sample.of(list(rng.choice([1.0, 0.0, -1.0], 150, p=[0.1, 0.8, 0.1]))) for _ in range(2)]
        evidence = [gate_decision.GateEvidence(sample, True, sample.mean) for sample in samples]
        wrong += any(found[0] == "pass" for found in gate_decision.judge_gates([SUPERIOR, SUPERIOR], evidence, 0.05))
    assert wrong / times <= 0.05 + 0.03


def test_planned_rows_give_the_planned_power():
    rng = np.random.default_rng(23)
    share, truth = 0.2, 0.06
    n = detectable.gate_rows_needed(truth, share, share - truth**2, 0.05)
    wins, losses = (share + truth) / 2, (share - truth) / 2
    passed = sum(
        outcome(list(rng.choice([1.0, 0.0, -1.0], n, p=[wins, 1 - share, losses])), SUPERIOR) == "pass"
        for _ in range(200)
    )
    assert 0.70 <= passed / 200 <= 0.90
    assert detectable.detectable_difference(n, share) == pytest.approx(truth, abs=0.001)


def test_bootstrap_draws_are_paired_and_respect_clusters():
    values = np.array([1.0, 1.0, 0.0, 0.0])
    names = ["a", "a", "b", "b"]
    draws = intervals.resample_mean(lambda rows: float(values[rows].mean()), names, seed=3, times=200)
    assert set(draws) <= {0.0, 0.5, 1.0}  # whole documents only
    again = intervals.resample_mean(lambda rows: 1 - float(values[rows].mean()), names, seed=3, times=200)
    assert np.allclose(draws + again, 1.0)


def test_macro_f1_over_many_labels_is_covered():
    """77 labels on 400 rows: the plain percentile interval would lie below the truth half of the time."""
    rng = np.random.default_rng(31)
    labels = tuple(map(str, range(77)))
    macro = labels_f1(labels, macro=True)

    def details(n):
        wanted = rng.integers(0, 77, n)
        said = np.where(rng.random(n) < 0.7, wanted, rng.integers(0, 77, n))
        return [{"wanted": str(one), "label": str(other)} for one, other in zip(wanted, said, strict=True)]

    many = details(200_000)
    truth = macro([], many)(np.arange(len(many)))
    held, plain = 0, 0
    for _ in range(60):
        figure = macro([], details(400))
        value = figure(np.arange(400))
        draws = intervals.resample_mean(figure, [str(index) for index in range(400)], 7, times=200)
        found = intervals.bootstrap_interval(value, intervals.recentre(value, draws), 0.95, 400, 400)
        held += found.low <= truth <= found.high
        plain += np.quantile(draws, 0.975) >= truth
    assert held / 60 >= 0.85
    assert plain / 60 <= 0.7
