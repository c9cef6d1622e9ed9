"""Gates keep their word: a small run of the table, and the committed record within its bounds."""

import json
from pathlib import Path

import pytest

from gemma_ops.bench.gates import gates_tables, record_lines
from gemma_ops.bench.gates.gates_cases import cases
from gemma_ops.bench.gates.gates_labels import label_cases, label_errors, label_power
from gemma_ops.bench.gates.gates_record import LABEL_ROWS, ROWS

RECORD = json.loads((Path(__file__).parents[2] / "configs/benchmarks/gates.json").read_text(encoding="utf-8"))
CASES = {case.name: case for case in cases()}
TIMES = 400
MOST = 0.05 + 3 * (0.05 * 0.95 / TIMES) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_truth_at_the_margin_is_rarely_judged_wrongly(name):
    for n in (20, 200):
        found = gates_tables.errors(CASES[name], n, TIMES, seed=91)
        assert max(found.false_pass, found.false_fail) <= MOST, found
        assert found.coverage >= 0.95 - 3 * (0.05 * 0.95 / TIMES) ** 0.5, found


def test_plain_intervals_would_have_failed_here():
    """So the cases are no kind ones: a t-test passes the collapsing score far too often."""
    import numpy as np
    from scipy import stats

    case = CASES["noninferior, overlap score with 2% collapsed rows"]
    values, _ = case.draw(np.random.default_rng(92), 2000, 50)
    t = (values.mean(1) - case.truth) / values.std(1, ddof=1) * 50**0.5
    assert (t > stats.t.isf(0.05, 49)).mean() > 0.2


def test_ten_gates_and_twenty_looks():
    pairs = CASES["superior, yes/no in pairs"]
    assert max(gates_tables.verdict_of_gates(pairs, 120, 10, TIMES, 93)) <= MOST
    spending, careless = gates_tables.looks(pairs, 40, 20, 20, TIMES, 94)
    assert spending <= MOST < careless


@pytest.mark.parametrize("case", label_cases(), ids=lambda case: case.name)
def test_f1_at_the_margin_is_rarely_judged_wrongly(case):
    for n in (50, 300):
        found = label_errors(case, n, TIMES, seed=95)
        assert max(found.false_pass, found.false_fail) <= MOST, found
        assert found.coverage >= 0.95 - 3 * (0.05 * 0.95 / TIMES) ** 0.5, found


def test_f1_of_labels_together_is_shown_where_bounds_per_label_show_nothing():
    found = label_power(10, 0.9, 0.85, 850, 100, seed=96)
    assert found.passes > 0.7
    assert found.per_label < 0.1


def test_the_truth_of_a_label_case_is_that_of_its_rows():
    import numpy as np

    for case in label_cases():
        sides = case.draw(np.random.default_rng(97), 1, 100_000)
        own, *rival = [float((2 * side.hits.sum(0) / side.totals.sum(0)).mean()) for side in sides if side is not None]
        assert own - sum(rival) == pytest.approx(case.truth, abs=0.012)


def test_the_committed_record_is_within_its_bounds():
    bounds = RECORD["bounds"]
    assert {(line["case"], line["n"]) for line in RECORD["errors"]} == {(name, n) for name in CASES for n in ROWS}
    assert max(max(line["false_pass"], line["false_fail"]) for line in RECORD["errors"]) <= bounds["error"] <= 0.0604
    assert min(line["coverage"] for line in RECORD["errors"]) >= bounds["coverage"] == 0.94
    for line in RECORD["verdicts"]:
        assert max(line["any_pass"], line["any_fail"]) <= 0.05
    for line in RECORD["looks"]:
        assert line["pass"] <= 0.05 < line["pass_at_whole_level"]
    assert {(line["case"], line["n"]) for line in RECORD["labels"]} == {
        (case.name, n) for case in label_cases() for n in LABEL_ROWS
    }
    assert max(max(line["false_pass"], line["false_fail"]) for line in RECORD["labels"]) <= bounds["error"]
    assert min(line["coverage"] for line in RECORD["labels"]) >= bounds["coverage"]
    assert all(line["passes"] >= 0.75 > line["per_label"] for line in RECORD["label_power"])
    assert max(line["ratio"] for line in RECORD["rows"]) <= bounds["ratio"] == 1.6
    for line in RECORD["told"]:
        assert line["told_none"] == 0
        assert line["mean_power"] >= 0.8
        assert line["least_power"] >= 0.8 - 3 * (0.16 / 4000) ** 0.5
    assert record_lines(RECORD)[-1].startswith("worst error 0.0")
