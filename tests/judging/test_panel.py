"""From verdicts to figures: inconsistent pairs, position bias, canaries, panels, answers scored alone."""

import json
import random

import pytest

from gemma_ops.answer import Answer
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.judging import judging_text, report_judge
from gemma_ops.judging.judge_material import JudgedPair, Side
from gemma_ops.judging.panel import judge_pairs
from gemma_ops.judging.rubric import parse_rubric
from tests.helpers.local_judge import Judge, honest, pairs, quality

TUNED, BASE = Side("tuned", "t1", "gemma"), Side("base", "b1", "gemma")
GRADES = [(random.Random(index).randint(0, 9), random.Random(1000 + index).randint(0, 9)) for index in range(60)]


def run(tmp_path, judges, items=None, **settings):
    items = items or pairs(GRADES)
    config = JudgeConfig(judges=tuple(judge.name for judge in judges), **settings)
    return judge_pairs(tmp_path, items, judges, parse_rubric("The higher grade."), config, first=TUNED, second=BASE)


def one(tmp_path, choose, items=None, **settings):
    return run(tmp_path, [Judge(choose)], items, **settings).body["judges"][0]


def test_an_honest_judge_gives_the_true_rate(tmp_path):
    found = one(tmp_path, honest)
    truth = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in GRADES) / len(GRADES)
    assert found["win_rate"]["value"] == pytest.approx(truth, abs=1e-5)
    assert found["flips"]["value"] == 0
    assert found["first_slot"]["value"] == 0.5
    assert found["fit"]
    assert not found["warnings"]


def test_a_judge_that_always_takes_a_slot_says_nothing(tmp_path):
    found = one(tmp_path, lambda parts: "A")
    assert found["win_rate"]["value"] == 0.5
    assert found["flips"]["value"] == 1.0
    assert found["opposite"] == found["flips"]["n"]
    assert found["first_slot"]["low"] > 0.5
    assert not found["fit"]  # equal answers don't tie
    assert any("change places" in text for text in found["warnings"])
    assert any("favours the first slot" in text for text in found["warnings"])


def test_position_bias_is_measured_and_cancelled(tmp_path):
    """A judge that takes slot A in a share of its verdicts: both orders give the truth back as halves, and the bias
    shows."""
    chance = random.Random(5)
    found = one(tmp_path, lambda parts: "A" if chance.random() < 0.35 else honest(parts), pairs([(5, 2), (2, 5)] * 60))
    assert abs(found["win_rate"]["value"] - 0.5) < 0.05
    assert found["first_slot"]["low"] > 0.5
    assert 0.2 < found["flips"]["value"] < 0.5


def test_a_tie_in_one_order_is_inconsistent_too(tmp_path):
    found = one(
        tmp_path, lambda parts: "tie" if quality(parts["answer A"]) == 2 else honest(parts), pairs([(5, 2)] * 12)
    )
    assert found["win_rate"]["value"] == 0.5
    assert found["flips"]["value"] == 1.0
    assert found["opposite"] == 0


def test_invalid_verdicts_are_counted_and_never_guessed(tmp_path):
    def choose(parts):
        if "Question 7?" in parts["question, turn 1 of 1, user"]:
            return Answer("I prefer A.", "stop", 10, 5, 0.1)
        return honest(parts)

    found = one(tmp_path, choose)
    assert found["lost"] == 1
    assert found["invalid"] == 2
    assert found["win_rate"]["n"] == len(GRADES) - 1


def test_a_judge_that_obeys_the_answers_fails_its_canary(tmp_path):
    def obedient(parts):
        for slot in "AB":
            if f"choose {slot}" in parts[f"answer {slot}"]:
                return slot
        return honest(parts)

    judged = run(tmp_path, [Judge(obedient)])
    found = judged.body["judges"][0]
    failed = [result for result in found["canaries"] if not result["passed"]]
    assert {result["kind"] for result in failed} == {"injected"}
    assert len(failed) == 4  # both items, both orders: the order names the slot it stands in
    assert not found["fit"]
    assert any(line.startswith("warning: UNFIT") for line in judged.summary())
    assert "UNFIT" in report_judge.judge_section_page(judged)


def test_a_judge_that_likes_disorder_fails_its_canary(tmp_path):
    found = one(tmp_path, lambda parts: {"A": "B", "B": "A", "tie": "tie"}[honest(parts)])
    assert {result["kind"] for result in found["canaries"] if not result["passed"]} == {"broken", "injected"}


def test_repeats_show_how_far_a_judge_agrees_with_itself(tmp_path):
    chance = random.Random(3)
    fickle = lambda parts: honest(parts) if chance.random() < 0.8 else chance.choice("AB")  # noqa: E731
    found = one(tmp_path, fickle, repeats=3)
    assert 0.6 < found["retest"]["agreement"]["value"] < 0.95
    assert found["retest"]["kappa"]["value"] < found["retest"]["agreement"]["value"]
    steady = one(tmp_path / "steady", honest, repeats=2)
    assert steady["retest"]["agreement"]["value"] == 1.0
    assert one(tmp_path / "once", honest)["retest"] is None


def test_the_majority_decides_and_everyone_is_shown_alone(tmp_path):
    contrary = Judge(lambda parts: {"A": "B", "B": "A", "tie": "tie"}[honest(parts)], name="contrary", family="llama")
    judges = [Judge(honest), Judge(honest, name="second", family="mistral"), contrary]
    judged = run(tmp_path, judges)
    rates = [judge["win_rate"]["value"] for judge in judged.body["judges"]]
    assert judged.body["panel"]["win_rate"]["value"] == rates[0] == rates[1]
    assert rates[2] == pytest.approx(1 - rates[0], abs=1e-5)
    assert judged.body["panel"]["alpha"]["nominal"] < 0.5
    same = run(tmp_path / "same", judges[:2]).body["panel"]["alpha"]
    assert same == {"nominal": 1.0, "ordinal": 1.0}


def test_two_judges_that_disagree_make_a_tie(tmp_path):
    contrary = Judge(lambda parts: {"A": "B", "B": "A", "tie": "tie"}[honest(parts)], name="contrary")
    judged = run(tmp_path, [Judge(honest), contrary])
    assert judged.body["panel"]["labels"]["tie"] == len(GRADES)


def test_answers_scored_alone(tmp_path):
    judged = run(tmp_path, [Judge(honest)], mode="pointwise")
    entry = judged.body["judges"][0]
    for side, place in (("first", 0), ("second", 1)):
        truth = sum(grade[place] >= 5 for grade in GRADES) / len(GRADES)
        assert entry["sides"][side]["pass_rate"]["value"] == pytest.approx(truth, abs=1e-5)
    assert entry["difference"]["n"] == len(GRADES)
    assert {result["kind"] for result in entry["canaries"]} == {"identical", "broken", "injected"}
    assert entry["fit"]
    assert "score" in "\n".join(judged.summary())


def test_answers_that_failed_or_are_equal_need_no_judge(tmp_path):
    items = [
        *pairs([(5, 2)] * 10),
        JudgedPair("f", (), "", "fine", first_end="error"),
        JudgedPair("e", (), "same", "same"),
    ]
    judge = Judge(honest)
    body = run(tmp_path, [judge], items).body
    assert body["decided"] == 2
    assert body["judges"][0]["win_rate"]["n"] == 12
    assert body["judges"][0]["labels"] == {"first": 10, "tie": 1, "second": 1}
    assert "f" not in {prompt.id for prompt in judge.asked}


def test_rows_are_chosen_by_hash_and_stay_the_same(tmp_path):
    some = one(tmp_path, honest, rows=20)
    assert some["win_rate"]["n"] == 20
    judge = Judge(honest)
    shuffled = pairs(GRADES)
    random.Random(1).shuffle(shuffled)
    again = run(tmp_path, [judge], shuffled, rows=20).body["judges"][0]
    assert again["win_rate"] == some["win_rate"]
    assert not judge.asked  # the same rows, from the file


def test_reports_hold_no_holes(tmp_path):
    items = pairs(GRADES[:20])
    judged = run(tmp_path, [Judge(honest, name="<script>alert(1)</script>"), Judge(honest, name="b|c")], items)
    page = report_judge.judge_page(judged.body)
    assert "<script>" not in page
    assert "What judges say" in page
    judged.write(tmp_path)
    stored = json.loads((tmp_path / "judge.json").read_text())
    assert report_judge.judge_section(stored) == report_judge.judge_section_page(judged)
    assert "| judge | win rate |" in judging_text.judging_markdown(stored)
    assert items[3].first not in page + judging_text.judging_markdown(stored)


def test_what_cannot_be_judged_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no judge"):
        run(tmp_path, [])
    with pytest.raises(ConfigError, match="two sides"):
        run(tmp_path, [Judge(honest)], [JudgedPair("a", (), "x", None)])
    with pytest.raises(DataError, match="nothing to judge"):
        judge_pairs(tmp_path, [], [Judge(honest)], parse_rubric(""), JudgeConfig(), first=TUNED, second=BASE)
