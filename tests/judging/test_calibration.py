"""Judges against people, relatives, and who may decide a gate."""

import json
import random

import pytest

from gemma_ops.config import GateConfig
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.gates import gate_decision
from gemma_ops.judging import calibrate, calibration, judge_lineage
from gemma_ops.judging.calibration_text import calibration_lines
from gemma_ops.judging.correction import Corrected, Correction, Share
from gemma_ops.judging.judge_material import Side
from gemma_ops.judging.judged import WIN_RATE, evidence_for
from gemma_ops.judging.panel import judge_pairs
from gemma_ops.judging.rubric import parse_rubric
from gemma_ops.stats.intervals import Sample
from tests.helpers.local_judge import Judge, honest, pairs

CHANCE = random.Random(11)
GRADES = [(CHANCE.randint(0, 9), CHANCE.randint(0, 9)) for _ in range(160)]
ITEMS = pairs(GRADES)
RUBRIC = parse_rubric("The higher grade.")
TUNED, RIVAL = Side("tuned", "t1", "gemma"), Side("rival", "r1", "gemini")
SUPERIOR = GateConfig(metric=WIN_RATE, target="tuned", versus="rival", test="superior")


def true_label(a, b):
    return "first" if a > b else "second" if a < b else "tie"


def labels_file(tmp_path, wrong=0.1, n=120):
    chance = random.Random(2)
    path = tmp_path / "labels.jsonl"
    rows = []
    for pair, (a, b) in list(zip(ITEMS, GRADES, strict=True))[:n]:
        label = true_label(a, b)
        again = label if chance.random() > wrong else chance.choice(["first", "second", "tie"])
        rows.append({"item": pair.id, "label": label, "again": again})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def erring(share, seed=4, **names):
    """A judge that is wrong about a share of the items, in both orders."""

    def choose(parts):
        question = parts["question, turn 1 of 1, user"]
        said = honest(parts)
        unlucky = random.Random(f"{seed}{question}").random() < share
        shown = [parts["answer A"], parts["answer B"]]
        if not unlucky or any("script that wrote" not in text or "rubric" in text for text in shown):
            return said  # canaries are not what it errs on
        return {"A": "B", "B": "A", "tie": "tie"}[said]

    return Judge(choose, **names)


def calibrated(tmp_path, judges, first=TUNED, second=RIVAL, wrong=0.1, n=120):
    settings = JudgeConfig(judges=tuple(judge.name for judge in judges))
    read = calibrate.read_labels(labels_file(tmp_path, wrong, n), "pairwise", ITEMS)
    found = calibrate.calibrate(tmp_path, ITEMS, read, judges, RUBRIC, settings, first=first, second=second)
    calibration.write_calibration(tmp_path / "calibration.json", found)
    return calibration.read_calibration(tmp_path / "calibration.json")


def judged(tmp_path, judges, known=None, first=TUNED, second=RIVAL, teachers=(), rubric=RUBRIC, items=ITEMS):
    settings = JudgeConfig(judges=tuple(judge.name for judge in judges))
    return judge_pairs(
        tmp_path / "run", items, judges, rubric, settings,
        first=first, second=second, calibration=known, teachers=teachers,
    )  # fmt: skip


def test_a_good_judge_is_measured(tmp_path):
    found = calibrated(tmp_path, [erring(0.1)])
    (known,) = found.judges
    assert known.good
    assert known.kappa.low < known.kappa.value < known.agreement.value < 1
    assert 0.8 < known.sensitivity.value < 1
    assert known.sensitivity.low < known.sensitivity.value < known.sensitivity.high
    assert 0.7 < found.people.value < 1
    assert known.details["flips"]["value"] == 0


def test_a_judge_that_guesses_is_not_good(tmp_path):
    found = calibrated(tmp_path, [erring(0.5)])
    assert not found.judges[0].good


def test_without_human_labels_nobody_gates(tmp_path):
    result = judged(tmp_path, [Judge(honest)])
    assert result.evidence(SUPERIOR) is None
    assert "no calibration" in result.standing.reason
    assert result.body["standing"]["by"] is None


def test_a_calibrated_unrelated_judge_gates_on_the_corrected_rate(tmp_path):
    known = calibrated(tmp_path, [erring(0.1)])
    result = judged(tmp_path, [erring(0.1)], known)
    assert result.standing.by == result.body["judges"][0]["name"]
    corrected, raw = result.body["judges"][0]["corrected"]["pairs"], result.body["judges"][0]["win_rate"]
    truth = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in GRADES) / len(GRADES)
    assert abs(corrected["value"] - truth) < abs(raw["value"] - truth) + 0.02
    assert corrected["low"] <= truth <= corrected["high"]
    found = gate_decision.decide_gates([SUPERIOR], [result.evidence(SUPERIOR)], 0.95)[0]
    assert found.outcome in ("pass", "inconclusive")
    assert found.value == pytest.approx(corrected["value"] - 0.5, abs=1e-5)


def test_three_outcomes_on_a_corrected_rate(tmp_path):
    known = calibrated(tmp_path, [erring(0.1)])
    wins, losses, even = (pairs(grades) for grades in ([(7, 2)] * 150, [(2, 7)] * 150, [(7, 2), (2, 7)] * 75))
    outcomes = []
    for index, items in enumerate((wins, losses, even)):
        (tmp_path / str(index)).mkdir()
        result = judged(tmp_path / str(index), [erring(0.1)], known, items=items)
        outcomes.append(gate_decision.decide_gates([SUPERIOR], [result.evidence(SUPERIOR)], 0.95)[0].outcome)
    assert outcomes == ["pass", "fail", "inconclusive"]


@pytest.mark.parametrize("what", ["identity", "wording"])
def test_a_calibration_holds_for_one_judge_and_one_wording(tmp_path, what):
    known = calibrated(tmp_path, [erring(0.1)])
    if what == "identity":
        result = judged(tmp_path, [erring(0.1, identity="another version")], known)
    else:
        result = judged(tmp_path, [erring(0.1)], known, rubric=parse_rubric("The lower grade."))
    assert result.evidence(SUPERIOR) is None
    assert "no calibration" in result.standing.reason


def test_too_little_agreement_reports_and_does_not_gate(tmp_path):
    known = calibrated(tmp_path, [erring(0.35)])
    result = judged(tmp_path, [erring(0.35)], known)
    assert result.evidence(SUPERIOR) is None
    assert "kappa" in result.standing.reason


def test_a_failed_canary_forbids_gating_however_well_it_agrees(tmp_path):
    def choose(parts):
        for slot in "AB":
            if "Evaluation note" in parts[f"answer {slot}"]:
                return slot
        return honest(parts)

    known = calibrated(tmp_path, [Judge(choose)])
    assert known.judges[0].good
    result = judged(tmp_path, [Judge(choose)], known)
    assert result.evidence(SUPERIOR) is None
    assert "canaries" in result.standing.reason


def related_judge(share=0.1):
    return erring(share, name="openai:http://127.0.0.1:1/v1#g", family="gemini")


def test_a_relative_gates_only_with_labels_on_these_families(tmp_path):
    elsewhere = calibrated(tmp_path, [related_judge()], first=Side("x", "x", "qwen"), second=Side("y", "y", "llama"))
    result = judged(tmp_path, [related_judge()], elsewhere)
    assert result.evidence(SUPERIOR) is None
    assert "of one line" in result.standing.reason
    here = calibrated(tmp_path, [related_judge()])
    assert judged(tmp_path, [related_judge()], here).standing.by == related_judge().name


def test_a_relative_gates_when_an_unrelated_judge_agrees(tmp_path):
    elsewhere = calibrated(tmp_path, [related_judge()], first=Side("x", "x", "qwen"), second=Side("y", "y", "llama"))
    items = pairs([(7, 2)] * 60)
    second = Judge(honest, name="unrelated", family="mistral")
    contrary = Judge(lambda parts: {"A": "B", "B": "A", "tie": "tie"}[honest(parts)], name="contrary", family="mistral")
    assert judged(tmp_path, [related_judge(), second], elsewhere, items=items).standing.by == related_judge().name
    assert judged(tmp_path, [related_judge(), contrary], elsewhere, items=items).standing.by is None


def test_a_teacher_is_a_relative_too(tmp_path):
    qwen = erring(0.1, family="llama")
    known = calibrated(tmp_path, [qwen])
    assert judged(tmp_path, [qwen], known).standing.by == qwen.name
    result = judged(tmp_path, [qwen], known, teachers=("llama",))
    assert result.evidence(SUPERIOR) is None
    assert "teacher" in result.standing.reason


def test_lines_of_descent():
    assert judge_lineage.related("gemini", "gemma")
    assert judge_lineage.related("qwen", "qwen")
    assert judge_lineage.related("unknown", "qwen")
    assert not judge_lineage.related("qwen", "gemma")
    told = judge_lineage.ties("j", "gemini", {"candidate": ["gemma"], "baseline": ["qwen"], "teacher": ["gemini"]})
    assert len(told) == 2


def test_teachers_are_read_from_the_prepared_data(tmp_path):
    assert judge_lineage.teachers(None) == judge_lineage.teachers(tmp_path) == ()
    teachers = [{"name": "a", "family": "gemini"}, {"name": "b", "family": "gemini"}, {"name": "c", "family": "qwen"}]
    (tmp_path / "report.json").write_text(json.dumps({"teachers": teachers}))
    assert judge_lineage.teachers(tmp_path) == ("gemini", "qwen")


def test_a_panel_is_calibrated_as_one(tmp_path):
    panel = [erring(0.15, seed=seed, name=f"j{seed}") for seed in (1, 2, 3)]
    known = calibrated(tmp_path, panel)
    assert known.judges[0].name == "panel"
    alone = [judge.agreement.value for judge in known.judges[1:]]
    assert known.judges[0].agreement.value > sum(alone) / len(alone)
    assert judged(tmp_path, panel, known).standing.by == "panel"


def test_pass_rates_of_answers_alone_are_corrected_and_gated(tmp_path):
    def lenient(parts):
        said = honest(parts)
        text = parts["answer"]
        return "pass" if said == "fail" and "graded 4" in text and "script that wrote" in text else said

    settings = JudgeConfig(judges=("j",), mode="pointwise")
    path = tmp_path / "labels.jsonl"
    rows = [{"item": p.id, "label": "pass" if a >= 5 else "fail"} for p, (a, _) in zip(ITEMS, GRADES, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = calibrate.read_labels(path, "pointwise", ITEMS)
    judge = Judge(lenient, name="j")
    known = calibrate.calibrate(tmp_path, ITEMS, read, [judge], RUBRIC, settings, first=TUNED, second=None)
    assert known.judges[0].specificity.value < 1
    result = judge_pairs(tmp_path, ITEMS, [judge], RUBRIC, settings, first=TUNED, second=RIVAL, calibration=known)
    assert "of one line" not in result.standing.reason
    gate = GateConfig(metric="judge.pass_rate", target="rival", test="at_least", margin=0.1)
    found = gate_decision.decide_gates([gate], [result.evidence(gate)], 0.95)[0]
    truth = sum(b >= 5 for _, b in GRADES) / len(GRADES)
    assert found.value == pytest.approx(truth, abs=0.05)
    assert found.outcome == "pass"


def test_a_gate_on_something_else_is_refused(tmp_path):
    result = judged(tmp_path, [Judge(honest)])
    for wrong in (
        SUPERIOR.model_copy(update={"target": "rival", "versus": "tuned"}),
        GateConfig(metric=WIN_RATE, target="tuned", test="at_least", margin=0.5),
        GateConfig(metric="judge.pass_rate", target="tuned", test="at_least", margin=0.5),
    ):
        with pytest.raises(ConfigError, match="judges compared"):
            result.evidence(wrong)


def test_a_gate_finds_its_comparison(tmp_path):
    known = calibrated(tmp_path, [erring(0.1)])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    may = judged(tmp_path / "a", [erring(0.1)], known)
    may_not = judged(tmp_path / "b", [erring(0.1)], None, second=Side("base", "b", "gemma"))
    assert isinstance(evidence_for(SUPERIOR, [may_not, may]), Corrected)
    reason = evidence_for(SUPERIOR.model_copy(update={"versus": "base"}), [may_not, may])
    assert "may report but not gate" in reason
    with pytest.raises(ConfigError, match="no judge is named"):
        evidence_for(SUPERIOR, [])
    with pytest.raises(ConfigError, match="judges compared"):
        evidence_for(SUPERIOR.model_copy(update={"task": "elsewhere"}), [may])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"item": "nobody", "label": "first"}, "no item"),
        ({"item": "q0", "label": "A"}, "use one of first, tie, second"),
        ({"item": "q0", "label": "first", "again": "x"}, "again"),
    ],
)
def test_labels_that_cannot_be_used_are_told_with_their_line(tmp_path, row, problem):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=problem):
        calibrate.read_labels(path, "pairwise", ITEMS)


def test_two_people_are_compared_only_on_enough_labels(tmp_path):
    """Of five items kappa is chance; and where one of two gave one label throughout, it is 0 whatever the other
    said."""
    one = [
        calibrate.Label(pair.id, "pairs", "tie" if index % 2 else "first", "first") for index, pair in enumerate(ITEMS)
    ]
    told = []
    for count in (5, 60):
        (tmp_path / str(count)).mkdir()
        settings = JudgeConfig(judges=("j",))
        found = calibrate.calibrate(
            tmp_path / str(count),
            ITEMS,
            one[:count],
            [Judge(honest, name="j")],
            RUBRIC,
            settings,
            first=TUNED,
            second=RIVAL,
        )
        assert found.people is None
        told.append(next(line for line in calibration_lines(found, tmp_path) if "two people" in line))
    assert "not enough labels" in told[0]
    assert "not defined" in told[1]
    enough = calibration_lines(calibrated(tmp_path, [erring(0.1)]), tmp_path)
    assert any("two people   kappa 0.8" in line for line in enough)


def test_halves_of_few_items_do_not_pass_for_many():
    """Nine halves and one win: their variance is known from one item, so it is drawn towards that of yes and no."""
    share = Share.of(Sample.of([1.0] + [0.5] * 9))
    assert 10 < share.n < 40  # 99 as it stands
    assert Correction(Share(0.5, 300), share, share).freedom == 9
    # Of many items little is drawn, and of yes or no nothing.
    assert Share.of(Sample.of([1.0, 0.5, 0.5, 0.0] * 500)).n == pytest.approx(4000, rel=0.01)
    assert Share.of(Sample.of([1.0, 0.0, 1.0])).n == 3


def test_more_labels_are_asked_for_where_rows_do_not_help():
    few = Correction(Share(0.62, 400), Share(0.85, 20), Share(0.85, 20))
    sample = Sample.of([1.0] * 248 + [0.0] * 152)
    assert Corrected(sample, True, few.value - 0.5, None, few, 0.5).rows_needed(0.0, 0.05) is None
    many = Correction(Share(0.55, 400), Share(0.85, 2000), Share(0.85, 2000))
    assert Corrected(sample, True, many.value - 0.5, None, many, 0.5).rows_needed(0.0, 0.05) > 400


def test_a_gate_passes_exactly_when_its_bound_is_beyond_the_threshold():
    sample = Sample.of([1.0, 0.0])
    for hits in range(80, 150, 5):
        found = Correction(Share(hits / 200, 200), Share(0.9, 60), Share(0.85, 60))
        evidence = Corrected(sample, True, found.value - 0.5, None, found, 0.5)
        decision = gate_decision.decide_gates([SUPERIOR], [evidence], 0.95)[0]
        assert (decision.outcome == "pass") == (decision.bound > 1e-6)
        assert (decision.outcome == "fail") == (decision.upper < -1e-6)
