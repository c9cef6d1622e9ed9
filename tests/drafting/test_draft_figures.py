"""What is said of a drafter: figures are ratios of sums, the gate is paired, it is recommended only where it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gemma_ops.config import DraftConfig
from gemma_ops.drafting.draft_figures import AskedRow, recommend, summarize_task
from gemma_ops.modeling.llamacpp_drafts import TimedReply
from gemma_ops.tasks.task import load_task

TASK = load_task(Path(__file__).parents[2] / "eval" / "support_desk")


def reply(tokens, seconds, steps, drafted=0, kept=0, first=7):
    return TimedReply([first, *range(100, 99 + tokens)], True, seconds, steps, drafted, kept)


def asked(count=160, *, speed=2.0, wrong=0):
    """Answers of 21 tokens in 0.1 s; with the tuned drafter in 5 steps, `speed` times as fast, `wrong` of them not the
    same."""
    rows = []
    for number in range(count):
        other = number < wrong
        replies = {
            "alone": reply(21, 0.1, 20),
            "stock": reply(21, 0.2, 16, 64, 4),
            "tuned": reply(21, 0.1 / speed, 5, 20, 15, first=8 if other else 7),
        }
        rows.append(AskedRow(TASK.rows[number], replies, {"alone": 1.0, "stock": 1.0, "tuned": 0.0 if other else 1.0}))
    return rows


def summarized(rows, **settings):
    return summarize_task(rows, TASK, "exact_match", DraftConfig(**settings))


def test_figures_are_ratios_of_sums():
    rows = asked(100)
    rows[0].replies["tuned"] = reply(81, 0.9, 80, 320, 0)  # one that runs on, and takes long
    found = summarized(rows)
    steps, written = 99 * 5 + 80, 99 * 20 + 80
    assert found.tuned.tokens_per_step.value == pytest.approx(written / steps, abs=1e-3)
    assert found.tuned.tokens_per_step.low < found.tuned.tokens_per_step.value < found.tuned.tokens_per_step.high
    assert found.tuned.accepted.value == pytest.approx(99 * 15 / (99 * 20 + 320), abs=1e-3)
    assert found.tuned.speed.value == pytest.approx((written / (99 * 0.05 + 0.9)) / 200, abs=1e-3)
    assert found.stock.tokens_per_step.value == 1.25
    assert found.tokens_per_second == 200.0
    assert (found.rows, found.equal) == (100, 99)


def test_rows_of_a_cluster_count_once():
    rows = asked(40, wrong=20)
    grouped = [replace(each, row=replace(each.row, cluster=str(number // 10))) for number, each in enumerate(rows)]
    assert summarized(grouped).clusters == 4
    alone, together = summarized(rows), summarized(grouped)
    width = [found.tuned.speed.high - found.tuned.speed.low for found in (alone, together)]
    assert alone.clusters == 40
    assert max(width) < 1e-9  # every row is as fast
    assert together.outcome != "pass"


@pytest.mark.parametrize(
    ("rows", "settings", "outcome", "recommended", "why"),
    [
        (asked(), {}, "pass", True, "2.00× (2.00 to 2.00) the tokens a second"),
        (asked(speed=0.6), {}, "pass", False, "slower with the drafter, 0.60×"),
        (asked(count=20), {}, "inconclusive", False, "not shown either way"),
        (asked(wrong=40), {}, "fail", False, "not worse than without it by 0.02 or more (exact_match): no"),
        (asked(count=20), {"margin": 0.5}, "pass", True, "2.00×"),
    ],
)
def test_it_is_recommended_where_answers_are_no_worse_and_come_faster(rows, settings, outcome, recommended, why):
    found = summarized(rows, **settings)
    assert found.outcome == outcome
    on, reason = recommend([found])
    assert on == recommended
    assert why in reason


def test_a_speed_that_may_be_none_is_not_enough():
    rows = asked()
    for number, each in enumerate(rows):
        each.replies["tuned"] = reply(21, 0.02 if number % 2 else 0.19, 5, 20, 15)
    on, reason = recommend([summarized(rows)])
    assert not on
    assert "not shown to be faster" in reason


def test_one_task_is_enough_to_leave_it_off():
    assert not recommend([summarized(asked()), summarized(asked(speed=0.5))])[0]


def test_answers_that_no_metric_can_score_decide_nothing():
    rows = asked(160)
    some = [replace(each, scores=dict.fromkeys(each.scores)) for each in rows[:60]] + rows[60:]
    assert summarized(some).outcome == "inconclusive"  # 100 rows can't show it
    assert summarized(some).score == 1.0
    none = summarized([replace(each, scores=dict.fromkeys(each.scores)) for each in rows])
    assert (none.outcome, none.score) == ("inconclusive", None)
    assert recommend([none]) == (False, "support_desk: no question of it can be scored by exact_match")


def test_answers_of_one_token_leave_nothing_to_gain():
    one = reply(1, 0.0, 0)
    rows = [replace(each, replies=dict.fromkeys(each.replies, one)) for each in asked()]
    found = summarized(rows)
    assert (found.tuned.tokens_per_step.value, found.tuned.speed.value) == (0.0, 0.0)
    assert not recommend([found])[0]
