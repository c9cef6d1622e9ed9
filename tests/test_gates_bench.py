"""Gates keep their word: a small run of the table, and the committed record within its bounds."""

import json
from pathlib import Path

import pytest

from gemma_ops.evaluation.gatebench import record_lines, tables
from gemma_ops.evaluation.gatebench.cases import cases
from gemma_ops.evaluation.gatebench.record import ROWS
from gemma_ops.evaluation.gatebench.undecided import macro_f1

RECORD = json.loads((Path(__file__).parent.parent / "configs/benchmarks/gates.json").read_text(encoding="utf-8"))
CASES = {case.name: case for case in cases()}
TIMES = 400
MOST = 0.05 + 3 * (0.05 * 0.95 / TIMES) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_truth_at_the_margin_is_rarely_judged_wrongly(name):
    for n in (20, 200):
        found = tables.errors(CASES[name], n, TIMES, seed=91)
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
    assert max(tables.verdict_of_gates(pairs, 120, 10, TIMES, 93)) <= MOST
    spending, careless = tables.looks(pairs, 40, 20, 20, TIMES, 94)
    assert spending <= MOST < careless


def test_a_figure_without_a_bound_is_never_decided():
    found = macro_f1(50, 40, 95)
    assert (found.passes, found.fails) == (0.0, 0.0)


def test_the_committed_record_is_within_its_bounds():
    bounds = RECORD["bounds"]
    assert {(line["case"], line["n"]) for line in RECORD["errors"]} == {(name, n) for name in CASES for n in ROWS}
    assert max(max(line["false_pass"], line["false_fail"]) for line in RECORD["errors"]) <= bounds["error"] <= 0.0604
    assert min(line["coverage"] for line in RECORD["errors"]) >= bounds["coverage"] == 0.94
    for line in RECORD["verdicts"]:
        assert max(line["any_pass"], line["any_fail"]) <= 0.05
    for line in RECORD["looks"]:
        assert line["pass"] <= 0.05 < line["pass_at_whole_level"]
    assert all(line["passes"] == line["fails"] == 0 for line in RECORD["undecided"])
    assert max(line["ratio"] for line in RECORD["rows"]) <= bounds["ratio"] == 1.6
    for line in RECORD["told"]:
        assert line["told_none"] == 0
        assert line["mean_power"] >= 0.8
        assert line["least_power"] >= 0.8 - 3 * (0.16 / 400) ** 0.5
    assert record_lines(RECORD)[-1].startswith("worst error 0.0")
