"""Every interval and gate of the project against known truth, by simulation: seeded, so that it says the same every
time.

Each study draws its truth anew in every repetition from the range that evaluations live in. Coverage of a discrete
interval swings around its level from one truth to the next, and a reader of reports meets the average. Repetitions are
so many that the standard error of a coverage is about .005; yes/no intervals are summed over every outcome instead.
"""

from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from gemma_ops.config import GateConfig
from gemma_ops.gates import gate_decision
from gemma_ops.judging import agreement, calibrate, winrate
from gemma_ops.judging.correction import Corrected, Correction, Share
from gemma_ops.judging.judge_outcome import pairwise_outcomes
from gemma_ops.judging.judgements import Judgement
from gemma_ops.metrics.labels import f1_aggregate as labels_f1
from gemma_ops.stats import intervals, paired
from gemma_ops.stats.intervals import Sample

SUPERIOR = GateConfig(metric="m", test="superior", versus="base")
NONINFERIOR = GateConfig(metric="m", target="q8_0", test="noninferior", versus="tuned", margin=0.05)
AT_LEAST = GateConfig(metric="m", test="at_least", margin=0.7)


def holds(share):
    assert 0.93 <= share <= 0.97, share


def holds_always(share, times):
    """Of bounds for every distribution: at least what they say, and more where the distribution is a kind one."""
    assert share >= 0.95 - 3 * (0.05 * 0.95 / times) ** 0.5, share


def names(clusters, per):
    return [f"c{index // per}" for index in range(clusters * per)]


def latent(rng, clusters, per, p, icc):
    """Yes/no rows with a shared effect per cluster; `p` is the true rate."""
    shared = np.repeat(rng.standard_normal(clusters), per)
    mixed = shared * icc**0.5 + rng.standard_normal(clusters * per) * (1 - icc) ** 0.5
    return (mixed < stats.norm.ppf(p)).astype(float)


@pytest.mark.parametrize("n", [60, 150, 400])
def test_wilson_covers_a_pass_rate(n):
    found = [intervals.mean_interval(Sample.of([1.0] * k + [0.0] * (n - k)), 0.95) for k in range(n + 1)]
    low, high = (np.array([getattr(item, end) for item in found]) for end in ("low", "high"))
    truths = np.linspace(0.4, 0.97, 200)
    held = [stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum() for p in truths]
    holds(np.mean(held))


@pytest.mark.parametrize(("clusters", "per", "icc"), [(20, 10, 0.3), (40, 10, 0.1), (60, 5, 0.2)])
def test_clustered_rates_are_covered(clusters, per, icc):
    rng, held, times = np.random.default_rng(31), 0, 600
    groups = names(clusters, per)
    for _ in range(times):
        p = rng.uniform(0.55, 0.95)
        found = intervals.mean_interval(Sample.of(latent(rng, clusters, per, p, icc), groups), 0.95)
        held += found.low <= p <= found.high
    holds_always(held / times, times)


def test_fractional_scores_are_covered():
    rng, held, times = np.random.default_rng(32), 0, 600
    for _ in range(times):
        full = rng.uniform(0.4, 0.85)
        truth = full + (1 - full) * 0.4
        values = np.where(rng.random(100) < full, 1.0, rng.integers(0, 5, 100) / 5)
        found = intervals.mean_interval(Sample.of(values), 0.95)
        held += found.low <= truth <= found.high
    holds_always(held / times, times)


@cache
def tango(n, wins, losses):
    found = paired.compare_paired(
        [1.0] * wins + [0.0] * (n - wins), [0.0] * wins + [1.0] * losses + [0.0] * (n - wins - losses), None, 0.95
    )
    return found.low, found.high


@pytest.mark.parametrize("n", [80, 200])
def test_paired_differences_are_covered(n):
    rng, held, times = np.random.default_rng(33), 0, 2500
    for _ in range(times):
        share, truth = rng.uniform(0.1, 0.35), rng.uniform(-0.06, 0.08)
        wins, losses, _ = rng.multinomial(n, [(share + truth) / 2, (share - truth) / 2, 1 - share])
        low, high = tango(n, int(wins), int(losses))
        held += low <= truth <= high
    holds(held / times)


@pytest.mark.parametrize(("clusters", "per"), [(20, 8), (50, 4)])
def test_paired_differences_in_clusters_are_covered(clusters, per):
    rng, held, times = np.random.default_rng(34), 0, 400
    groups = names(clusters, per)
    for _ in range(times):
        second = rng.uniform(0.55, 0.85)
        first = second + rng.uniform(-0.05, 0.1)
        item = rng.standard_normal(clusters * per)
        scores = []
        for p in (first, second):
            shared = np.repeat(rng.standard_normal(clusters), per)
            mixed = 0.5 * shared + 0.65 * item + (1 - 0.5**2 - 0.65**2) ** 0.5 * rng.standard_normal(len(item))
            scores.append(list((mixed < stats.norm.ppf(p)).astype(float)))
        found = paired.compare_paired(*scores, groups, 0.95)
        held += found.low <= first - second <= found.high
    holds_always(held / times, times)


@pytest.mark.parametrize(("clusters", "per", "right"), [(250, 1, 0.92), (40, 6, 0.75)])
def test_bootstrapped_aggregates_are_covered(clusters, per, right):
    """Macro F1 over six labels: the bootstrap of figures that are no mean of rows. It is shown; gates don't go by
    it."""
    rng, held, times = np.random.default_rng(35), 0, 800
    labels = tuple(map(str, range(6)))
    macro = labels_f1(labels, macro=True)
    groups, n = names(clusters, per), clusters * per

    def details(hits):
        wanted = rng.integers(0, 6, len(hits))
        said = np.where(hits, wanted, rng.integers(0, 6, len(hits)))
        return [{"wanted": str(one), "label": str(other)} for one, other in zip(wanted, said, strict=True)]

    many = details(latent(rng, 40_000, 1, right, 0.0) > 0)
    truth = macro([], many)(np.arange(len(many)))
    for _ in range(times):
        figure = macro([], details(latent(rng, clusters, per, right, 0.15 if per > 1 else 0.0) > 0))
        value = figure(np.arange(n))
        draws = intervals.recentre(value, intervals.resample_mean(figure, groups, 7, times=200), clusters)
        found = intervals.bootstrap_interval(value, draws, 0.95, n, clusters)
        held += found.low <= truth <= found.high
    holds(held / times)


@pytest.mark.parametrize("n", [100, 200])
def test_kappa_is_covered(n):
    """Three labels as judges give them, from poor to good agreement."""
    rng, held, times = np.random.default_rng(36), 0, 1500
    labels = np.array(["first", "second", "tie"])
    chance = np.array([0.45, 0.35, 0.2])
    for _ in range(times):
        truth = rng.uniform(0.25, 0.85)
        first = rng.choice(3, n, p=chance)
        second = np.where(rng.random(n) < truth, first, rng.choice(3, n, p=chance))
        found = agreement.kappa_interval(labels[first], labels[second], None, 0.95, 7, times=250)
        held += found.low <= truth <= found.high  # a share `truth` copied, the rest by chance: kappa is that share
    holds(held / times)


def test_sensitivity_and_specificity_are_covered():
    """Rates on the labelled items that people accept, or reject: few, and close to one."""
    held, weight = 0.0, 0.0
    for n in (40, 60, 90):
        found = [intervals.mean_interval(Sample.of([1.0] * k + [0.0] * (n - k)), 0.95) for k in range(n + 1)]
        low, high = (np.array([getattr(item, end) for item in found]) for end in ("low", "high"))
        for p in np.linspace(0.7, 0.97, 100):
            held += stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum()
            weight += 1
    holds(held / weight)


@pytest.mark.parametrize("n", [8, 10, 15, 24])
def test_a_judges_errors_are_covered_by_few_labels_with_halves(n):
    """Summed over every outcome of so few labels, so held at each truth: from hardly a tie to nine ties in ten."""
    counts = [(wins, ties, n - wins - ties) for wins in range(n + 1) for ties in range(n + 1 - wins)]
    items = {str(index): str(index) for index in range(n)}
    values = ([1.0] * wins + [0.5] * ties + [0.0] * losses for wins, ties, losses in counts)
    found = [calibrate._errors(list(zip(items, scores, strict=True)), items, 0.95) for scores in values]
    low, high = (np.array([getattr(item, end) for item in found]) for end in ("low", "high"))
    held = []
    for ties in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9):
        for wins in (1 - ties) * np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0]):
            chance = stats.multinomial.pmf(counts, n, [wins, ties, max(0.0, 1 - wins - ties)])
            truth = wins + ties / 2
            held.append(chance[(low <= truth + 1e-9) & (truth - 1e-9 <= high)].sum())
    assert min(held) >= 0.94
    assert np.mean([item.high - item.low for item in found]) < 0.62  # and says something


def correction(rng, rows, labels, theta, se, sp):
    """A judge's rate on new rows, and its errors on labelled ones."""
    accepted = min(max(int(rng.binomial(labels, 0.55)), 10), labels - 10)
    p = rng.binomial(rows, theta * se + (1 - theta) * (1 - sp)) / rows
    right, wrong = rng.binomial(accepted, se) / accepted, rng.binomial(labels - accepted, sp) / (labels - accepted)
    return Correction(Share(p, rows), Share(right, accepted), Share(wrong, labels - accepted))


@pytest.mark.parametrize(("rows", "labels"), [(200, 100), (400, 150), (1000, 200)])
def test_the_corrected_rate_covers_the_truth(rows, labels):
    """And the raw one does not: a judge that errs is wrong about the rate, however many rows it sees."""
    rng, held, naive, times = np.random.default_rng(37), 0, 0, 4000
    for _ in range(times):
        theta, se, sp = rng.uniform(0.3, 0.8), rng.uniform(0.75, 0.92), rng.uniform(0.7, 0.9)
        found = correction(rng, rows, labels, theta, se, sp)
        low, high = found.ends(1.959964)
        held += low <= theta <= high
        half = 1.96 * (found.rate.value * (1 - found.rate.value) / rows) ** 0.5
        naive += abs(found.rate.value - theta) <= half
    holds(held / times)
    assert naive / times < 0.75


def test_the_corrected_win_rate_covers_the_truth():
    """Pairs that tie: people's ties are linear between both rates, and a judge's half points enter by effective
    rows."""
    rng, held, times = np.random.default_rng(38), 0, 2500
    confusion = np.array([[0.8, 0.12, 0.08], [0.2, 0.6, 0.2], [0.08, 0.12, 0.8]])  # people's first, tie, second
    points = np.array([1.0, 0.5, 0.0])

    def judged(counts):
        return np.concatenate(
            [rng.choice(points, int(count), p=row) for count, row in zip(counts, confusion, strict=True)]
        )

    for _ in range(times):
        wins, ties = rng.uniform(0.3, 0.55), rng.uniform(0.1, 0.25)
        shares = np.array([wins, ties, 1 - wins - ties])
        human = rng.multinomial(150, shares)
        found = Correction(
            Share.of(Sample.of(judged(rng.multinomial(300, shares)))),
            Share.of(Sample.of(judged([human[0], 0, 0]))),
            Share.of(Sample.of(1 - judged([0, 0, human[2]]))),
        )
        low, high = found.ends(1.959964)
        held += low <= wins + ties / 2 <= high
    holds(held / times)


@pytest.mark.parametrize("labels", [40, 100])
def test_few_labels_with_halves_correct_and_gate_as_they_should(labels):
    """A judge that mostly contradicts itself: two thirds of its outcomes are halves."""
    rng, held, wrong, times = np.random.default_rng(46), 0, np.zeros(2), 2000
    confusion = np.array([[0.3, 0.68, 0.02], [0.1, 0.8, 0.1], [0.02, 0.68, 0.3]])
    points = np.array([1.0, 0.5, 0.0])
    shares = np.array([0.4, 0.2, 0.4])

    def judged(counts):
        return np.concatenate(
            [rng.choice(points, int(count), p=row) for count, row in zip(counts, confusion, strict=True)]
        )

    for _ in range(times):
        human = np.maximum(rng.multinomial(labels, shares), 4)
        found = Correction(
            Share.of(Sample.of(judged(rng.multinomial(300, shares)))),
            Share.of(Sample.of(judged([human[0], 0, 0]))),
            Share.of(Sample.of(1 - judged([0, 0, human[2]]))),
        )
        low, high = found.ends(1.959964) if found.skill > 0 else (0.0, 1.0)
        held += low <= 0.5 <= high
        if found.skill > 0:  # else no gate is decided
            evidence = Corrected(Sample.of([0.0] * 300), True, found.value - 0.5, None, found, 0.5)
            wrong += np.array(evidence.tests(0.0)) <= 0.05
    assert 0.94 <= held / times <= 0.99  # cut off at the labels it would hold always, and say little
    assert max(wrong / times) <= 0.05


@cache
def won(n, wins, losses):
    found = winrate.win_rate([1.0] * wins + [0.5] * (n - wins - losses) + [0.0] * losses, None, 0.95)
    return found.low, found.high


def test_win_rates_are_covered():
    rng, held, times = np.random.default_rng(39), 0, 3000
    for _ in range(times):
        ties = rng.uniform(0.05, 0.4)
        wins = rng.uniform(0.35, 0.7) * (1 - ties)
        drawn = rng.multinomial(90, [wins, 1 - wins - ties, ties])
        low, high = won(90, int(drawn[0]), int(drawn[1]))
        held += low <= wins + ties / 2 <= high
    holds(held / times)


def test_length_controlled_win_rates_are_covered():
    rng, held, times = np.random.default_rng(40), 0, 1200
    for _ in range(times):
        truth, pull = rng.uniform(-0.5, 0.9), rng.uniform(-0.5, 1.2)
        gaps = rng.normal(rng.uniform(-40, 60), 80, 150)
        chance = expit(truth + pull * np.tanh(gaps / np.sqrt((gaps**2).mean())))
        found = winrate.controlled((rng.random(150) < chance).astype(float), gaps, None, 0.95, 7, times=200)
        held += found.low <= expit(truth) <= found.high
    holds(held / times)


def wrong_passes(times, evidence, gate):
    """Share of evaluations in which a gate passes although the truth stands exactly at its threshold."""
    return sum(gate_decision.judge_gates([gate], [evidence()], 0.05)[0][0] == "pass" for _ in range(times)) / times


def difference(values, groups=None):
    sample = Sample.of(values, groups)
    return gate_decision.GateEvidence(sample, True, sample.mean)


def test_gates_on_yes_or_no_rows_promote_wrongly_no_more_than_they_may():
    """Exact tests: the error is at most .05 whatever the truth, so the simulation may only stay below."""
    rng = np.random.default_rng(41)

    @cache
    def passes(wins, losses, gate):
        evidence = difference([1.0] * wins + [-1.0] * losses + [0.0] * (150 - wins - losses))
        return gate_decision.judge_gates([gate], [evidence], 0.05)[0][0] == "pass"

    for gate, shares in ((SUPERIOR, (0.1, 0.1, 0.8)), (NONINFERIOR, (0.03, 0.08, 0.89))):
        drawn = rng.multinomial(150, shares, size=4000)
        assert np.mean([passes(int(wins), int(losses), gate) for wins, losses, _ in drawn]) <= 0.05

    @cache
    def reached(hits):
        sample = Sample.of([1.0] * hits + [0.0] * (120 - hits))
        return (
            gate_decision.judge_gates([AT_LEAST], [gate_decision.GateEvidence(sample, False, sample.mean)], 0.05)[0][0]
            == "pass"
        )

    assert np.mean([reached(int(hits)) for hits in rng.binomial(120, 0.7, 4000)]) <= 0.05


def test_gates_on_clustered_rows_promote_wrongly_no_more_than_they_may():
    rng = np.random.default_rng(42)
    groups = names(30, 6)

    def evidence():
        shared = np.repeat(rng.normal(0, 0.25, 30), 6)
        return difference(np.clip(np.round(rng.normal(0, 0.35, 180) + shared), -1, 1), groups)

    assert wrong_passes(4000, evidence, SUPERIOR) <= 0.05


@pytest.mark.parametrize(("theta", "se", "sp"), [(0.5, 0.92, 0.72), (0.6, 0.85, 0.85), (0.5, 0.75, 0.9)])
def test_gates_on_a_judges_corrected_rate_promote_wrongly_no_more_than_they_may(theta, se, sp):
    """The truth stands at the margin. A judge that favours the tuned model would promote it nearly always, taken
    raw."""
    rng = np.random.default_rng(43)
    gate = SUPERIOR.model_copy(update={"metric": "judge.win_rate", "margin": theta - 0.5})
    sample, raw = Sample.of([0.0] * 300), []

    def evidence():
        found = correction(rng, 300, 150, theta, se, sp)
        raw.append(found.rate.value - 1.645 * (0.25 / 300) ** 0.5 > theta)
        return Corrected(sample, True, found.value - 0.5, None, found, 0.5)

    assert wrong_passes(4000, evidence, gate) <= 0.05
    assert np.mean(raw) > 0.9 or se - sp < 0.1


def test_several_gates_share_one_level():
    rng = np.random.default_rng(44)

    @cache
    def p(wins, losses):
        return difference([1.0] * wins + [-1.0] * losses + [0.0] * (120 - wins - losses)).tests(0.0)[0]

    drawn = rng.multinomial(120, (0.1, 0.1, 0.8), size=(3000, 3))
    wrong = [min(gate_decision.holm([p(int(w), int(x)) for w, x, _ in three], 0.05)[0]) <= 0.05 for three in drawn]
    assert np.mean(wrong) <= 0.05


def test_both_orders_remove_a_planted_position_bias():
    """The judge gives slot A to 25 % of verdicts whatever stands there, and the truth is even: one order says .62."""
    rng = np.random.default_rng(45)
    single, both, slots = [], [], []
    items = [f"q{index}" for index in range(300)]
    pairs = [_Pair(item) for item in items]
    for _ in range(60):
        better = rng.random(300) < 0.5
        taken = rng.random((2, 300)) < 0.25
        first_in_a = np.where(taken[0] | better, "A", "B")
        first_in_b = np.where(taken[1] | ~better, "A", "B")
        said = [_said(item, "AB", word) for item, word in zip(items, first_in_a, strict=True)]
        said += [_said(item, "BA", word) for item, word in zip(items, first_in_b, strict=True)]
        tally = pairwise_outcomes(pairs, said, 1)
        single.append(np.mean(first_in_a == "A"))
        both.append(np.mean(list(tally.scores.values())))
        slots.append(winrate.win_rate([share for _, share in tally.slots], None, 0.95).low)
    assert np.mean(single) == pytest.approx(0.625, abs=0.01)
    assert np.mean(both) == pytest.approx(0.5, abs=0.01)
    assert min(slots) > 0.5  # and every run shows the bias


class _Pair:
    """As much of a pair as counting needs."""

    first, second, first_end, second_end = "one answer", "another", "stop", "stop"

    def __init__(self, name):
        self.id = name


def _said(item, order, word):
    verdict = {"criteria": [], "reason": "", "verdict": str(word)}
    return Judgement(
        key="",
        judge="j",
        kind="pair",
        item=item,
        order=order,
        repeat=0,
        verdict=verdict,
        end="stop",
        prompt_tokens=0,
        new_tokens=0,
    )
