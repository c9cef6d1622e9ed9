"""Gates on F1: they pass where it is clear, fail where it is clear, and else name the labels that have too few rows."""

import numpy as np
import pytest

from gemma_ops.config import GateConfig
from gemma_ops.gates import gate_decision, label_evidence
from gemma_ops.metrics.labels import f1_aggregate, f1_counts
from gemma_ops.stats.intervals import Sample
from tests.helpers.evaluations import Echo, go, make_task

LABELS = ("cat", "dog", "eel")


def details(wanted, said):
    return [{"wanted": one, "label": other} for one, other in zip(wanted, said, strict=True)]


def answered(rng, n, right, labels=LABELS, shares=None):
    wanted = rng.choice(labels, n, p=shares)
    return list(wanted), list(np.where(rng.random(n) < right, wanted, rng.choice(labels, n)))


def evidence(wanted, *said, labels=LABELS, macro=True, clusters=None):
    counts = [f1_counts(labels, macro=macro)(details(wanted, one)) for one in said]
    ratios = label_evidence.ratio_sample(counts, clusters)
    counted = Sample.of([0.0] * len(wanted), clusters)
    return gate_decision.GateEvidence(counted, len(said) == 2, ratios.value, ratios, labels=labels if macro else ())


def at_least(margin):
    return GateConfig(metric="label.f1_macro", test="at_least", margin=margin)


def decide(gate, found):
    return gate_decision.decide_gates([gate], [found], 0.95)[0]


NONINFERIOR = GateConfig(metric="label.f1_macro", target="q8_0", test="noninferior", versus="tuned", margin=0.05)


@pytest.mark.parametrize("macro", [True, False])
def test_the_value_is_that_of_the_reported_figure(macro):
    rng = np.random.default_rng(1)
    wanted, said = answered(rng, 80, 0.7)
    said[:9] = [None] * 9  # answers that are no label
    labels = (*LABELS, "never")
    figure = f1_aggregate(labels, macro=macro)([], details(wanted, said))(np.arange(80))
    assert evidence(wanted, said, labels=labels, macro=macro).value == pytest.approx(figure)


@pytest.mark.parametrize("macro", [True, False])
def test_gates_on_f1_pass_and_fail_where_it_is_clear(macro):
    found = evidence(*answered(np.random.default_rng(2), 600, 0.85), macro=macro)
    clear, wrong, close = (decide(at_least(margin), found) for margin in (0.8, 0.97, 0.9))
    assert [one.outcome for one in (clear, wrong, close)] == ["pass", "fail", "inconclusive"]
    assert 0.8 < clear.bound < clear.value < clear.upper < 0.97
    assert "yes. Measured" in clear.words
    assert clear.p <= 0.05 < clear.clusters == clear.n == 600


def test_paired_gates_on_f1_pass_and_fail_where_it_is_clear():
    rng = np.random.default_rng(3)
    wanted, said = answered(rng, 500, 0.9)
    broken = list(np.where(rng.random(500) < 0.3, "cat", said))
    assert decide(NONINFERIOR, evidence(wanted, said, said)).outcome == "pass"
    lost = decide(NONINFERIOR, evidence(wanted, broken, said))
    assert (lost.outcome, lost.value < lost.upper < -0.05) == ("fail", True)
    superior = GateConfig(metric="label.f1_macro", test="superior", versus="base", margin=0.05)
    assert decide(superior, evidence(wanted, said, broken)).outcome == "pass"


def test_rare_labels_are_named_with_their_rows():
    """All answers are right, and still three rows of a label say little of its F1."""
    wanted = ["cat"] * 120 + ["dog"] * 90 + ["eel"] * 3
    found = decide(at_least(0.85), evidence(wanted, wanted, labels=(*LABELS, "owl")))
    assert (found.outcome, found.n_needed) == ("inconclusive", None)
    assert "its labels have too few rows ('owl' none, 'eel' 3)" in found.words
    assert "of each could show it if all answers are right" in found.words
    enough = ["cat"] * 120 + ["dog"] * 90 + ["eel"] * 60 + ["owl"] * 60
    assert decide(at_least(0.85), evidence(enough, enough, labels=(*LABELS, "owl"))).outcome == "pass"


def test_a_choice_that_no_row_wants_is_named():
    wanted, said = answered(np.random.default_rng(4), 400, 0.85, labels=("cat", "dog"))
    found = decide(at_least(0.62), evidence(wanted, said))
    assert found.outcome == "inconclusive"
    assert "labels without a row count as wrong ('eel' none)" in found.words
    assert decide(at_least(0.62), evidence(wanted, said, labels=("cat", "dog"))).outcome == "pass"


def test_rows_are_told_where_more_like_these_would_pass():
    wanted, said = answered(np.random.default_rng(5), 90, 0.85)
    found = evidence(wanted, said)
    unsure = decide(at_least(found.value - 0.06), found)
    assert unsure.outcome == "inconclusive"
    assert 90 < unsure.n_needed < 1500
    assert f"about {unsure.n_needed:,} rows would settle it" in unsure.words
    beyond = decide(at_least(found.value + 0.02), found)
    assert (beyond.outcome, beyond.n_needed) == ("inconclusive", None)
    assert "what was measured is not beyond the margin" in beyond.words


def test_clusters_make_a_gate_on_f1_more_careful():
    """Twenty documents of twenty rows each, right or wrong as a whole."""
    wanted = [LABELS[place] for place in np.repeat(np.arange(20) % 3, 20)]
    wrong = np.repeat(np.arange(20) % 10 == 5, 20)
    said = [LABELS[0] if bad else one for one, bad in zip(wanted, wrong, strict=True)]
    documents = [str(row // 20) for row in range(400)]
    gate = at_least(0.8)
    assert decide(gate, evidence(wanted, said)).outcome == "pass"
    careful = decide(gate, evidence(wanted, said, clusters=documents))
    assert (careful.outcome, careful.clusters) == ("inconclusive", 20)


def test_gates_on_f1_share_the_level_with_others():
    found = evidence(*answered(np.random.default_rng(6), 200, 0.85))
    margin = found.bound(0.05) - 0.002
    assert decide(at_least(margin), found).outcome == "pass"
    hopeless = gate_decision.GateEvidence(Sample.of([1.0, 0.0]), False, 0.5)
    together = gate_decision.decide_gates([at_least(margin), *[at_least(0.5)] * 9], [found, *[hopeless] * 9], 0.95)
    assert together[0].outcome == "inconclusive"


def test_an_evaluation_decides_on_f1(tmp_path):
    """Sixty questions of three labels, all answered rightly, pass .6 by macro and by micro F1."""
    rows = [{"id": f"q{i}", "prompt": f"question {i % 3} about {i}", "reference": f"a{i % 3}"} for i in range(60)]
    asked = [
        {"metric": f"choice_accuracy.f1_{kind}", "target": "tuned", "test": "at_least", "margin": 0.6}
        for kind in ("macro", "micro")
    ]
    folder = make_task(tmp_path / "t", rows=rows, metrics=["choice_accuracy"], primary="choice_accuracy")
    _, verdict = go(tmp_path / "out", folder, [Echo("base", 5), Echo("tuned", 60)], gates=asked)
    assert [gate["outcome"] for gate in verdict["gates"]] == ["pass", "pass"]
    assert verdict["verdict"] == "pass"
