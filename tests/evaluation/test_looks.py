"""Looking again buys nothing, and questions that stand in a task twice count once."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from gemma_ops.answer import Answer
from gemma_ops.config import EvaluateConfig, GateConfig, MachineConfig
from gemma_ops.errors import DataError
from gemma_ops.evaluation import looks, regrade, summary_lines
from gemma_ops.evaluation.evaluation_checks import load_checked
from gemma_ops.evaluation.evaluation_forecast import forecast_evaluation, forecast_lines
from gemma_ops.gates import gate_decision
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.stats.intervals import Sample
from gemma_ops.tasks import conditions
from gemma_ops.tasks.question_copies import copied, join_copies
from gemma_ops.verdicts import Verdict
from tests.helpers.evaluations import FACTS, SUPERIOR, Echo, go, make_task


def evaluated(tmp_path, count, skill=14, **more):
    """The run's evaluation, made again with so many rows: the folder is new, the record beside it stays."""
    out = tmp_path / "run" / "evaluate.partial"
    if out.exists():
        out.rename(out.with_name(f"set-aside-{len(list(out.parent.iterdir()))}"))
    out.parent.mkdir(exist_ok=True)
    targets = [Echo("base", 0), Echo("tuned", skill)]
    return go(out, make_task(tmp_path / "t", count), targets, gates=[SUPERIOR], **more)[1]


def test_a_second_look_has_what_the_first_left(tmp_path):
    first, second = evaluated(tmp_path, 40), evaluated(tmp_path, 44)
    assert (first["look"]["number"], first["look"]["level"]) == (1, pytest.approx(0.0375))
    assert first["gates"][0]["level"] == pytest.approx(1 - 0.0375)
    assert first["look"]["later"] == second["look"]["level"] == pytest.approx(0.00625)
    assert second["gates"][0]["level"] == pytest.approx(1 - 0.00625)
    assert [look["rows"] for look in second["look"]["earlier"]] == [40]
    assert second["look"]["earlier"][0]["verdict"] == first["verdict"] == "inconclusive"
    assert any(line.startswith("  look 2 at these models") for line in summary_lines(Verdict.parse(second)))
    assert "This is look 2" in (tmp_path / "run" / "evaluate.partial" / "report.html").read_text()
    assert len((tmp_path / "run" / "evaluate.looks.jsonl").read_text().splitlines()) == 2


def test_the_same_answers_again_are_the_same_look(tmp_path, monkeypatch):
    monkeypatch.setattr(
        conditions, "_now", lambda: "2026-02-03T04:05:06Z"
    )  # when they were asked is told, and no part of it
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    first, again = evaluated(tmp_path, 40), evaluated(tmp_path, 40)
    assert first == again
    out = tmp_path / "run" / "evaluate.partial"
    done = out.with_name("evaluate")
    out.rename(done)
    out.mkdir()
    settings = EvaluateConfig(tasks=("t",), targets=("base", "tuned"), gates=[SUPERIOR | {"margin": 0.1}])
    regrade(out, settings, MachineConfig(device="cpu"), answers=done, tasks=(tmp_path / "t",))
    look = json.loads((out / "verdict.json").read_text())["look"]
    assert (look["number"], look["level"]) == (1, pytest.approx(0.0375))


def test_another_model_has_its_own_looks(tmp_path):
    evaluated(tmp_path, 40)
    facts = FACTS | {"targets": FACTS["targets"] | {"tuned": {"identity": "trained anew"}}}
    assert evaluated(tmp_path, 44, facts=facts)["look"]["number"] == 1


def test_a_copy_of_the_run_has_the_looks_of_the_run(tmp_path):
    evaluated(tmp_path, 40)
    (tmp_path / "run" / "config.json").write_text("{}")
    out = tmp_path / "copy" / "evaluate.partial"
    out.parent.mkdir()
    targets = [Echo("base", 0), Echo("tuned", 14)]
    assert go(out, make_task(tmp_path / "t", 44), targets, gates=[SUPERIOR])[1]["look"]["number"] == 2


def test_without_gates_nothing_is_spent(tmp_path):
    _, verdict = go(tmp_path / "out", make_task(tmp_path / "t"), [Echo("base", 3)])
    assert verdict["look"] is None
    assert not (tmp_path / "out.looks.jsonl").exists()


def test_a_record_that_can_not_be_read_is_no_clean_slate(tmp_path):
    (tmp_path / "evaluate.looks.jsonl").write_text('{"subjects": []}\n')
    with pytest.raises(DataError, match="says how much of the gates' level"):
        looks.read_looks(looks.look_place(tmp_path / "evaluate"))


def test_evaluating_until_it_passes_passes_no_more_often(tmp_path):
    """Through the product's own record: a model exactly at the margin, ten looks at growing rows, 60 times over."""
    rng, gate = np.random.default_rng(3), GateConfig(**SUPERIOR | {"margin": 0.0})
    settings, passed, careless = EvaluateConfig(gates=(gate,)), 0, 0
    for _ in range(60):
        known, values = [], list(rng.choice([1.0, 0.0, -1.0], 300, p=[0.2, 0.6, 0.2]))
        won = lost = False
        for n in range(30, 301, 30):
            evidence = [gate_decision.GateEvidence(Sample.of(values[:n]), True, 0.0)]
            standing = looks.take_look(graded(n), settings, FACTS, known)
            known.append(standing.look)
            won |= gate_decision.judge_gates([gate], evidence, standing.look.level)[0][0] == "pass"
            lost |= gate_decision.judge_gates([gate], evidence, 0.05)[0][0] == "pass"
        passed, careless = passed + won, careless + lost
    assert passed <= 6 < careless


def graded(n):
    """As much of graded answers as a look needs."""
    from types import SimpleNamespace

    task = SimpleNamespace(name="t", rows=tuple(range(n)))
    answers = [SimpleNamespace(row=str(i), text="x", end="stop") for i in range(n)]
    return [SimpleNamespace(task=task, target=name, answers=answers) for name in ("tuned", "base")]


def test_the_plan_knows_the_look(tmp_path):
    before = tmp_path / "run" / "evaluate.partial"
    evaluated(tmp_path, 40)
    settings = EvaluateConfig(tasks=("t",), targets=("base", "tuned"), gates=[SUPERIOR])
    found = forecast_evaluation(
        settings, MachineConfig(device="cpu"), load_checked(settings, (tmp_path / "t",), None), before
    )
    assert found["look"] == {"number": 2, "level": 0.00625}
    assert forecast_lines(found)[0].startswith("look 2")


# Copies


def row(index, text, *, cluster=None, system=None):
    turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    return ScoredRow(f"r{index}", tuple(turns), "x", cluster=cluster)


LONG = (
    "Our coffee machine in the second kitchen leaks water from below whenever somebody makes two cups one after "
    "the other"
)
TASKS = [
    ([LONG, LONG.upper(), LONG + " today"], [0, 0, 0]),  # equal after case; one word more
    (["What is 12 + 30?", "What is 12 - 30?", "What is  12 + 30?"], [0, 1, 0]),  # operators count
    ([f"{LONG}, order 17", f"{LONG}, order 71"], [0, 1]),  # numbers count
    (["Name a river", "Name a mountain", "Name a lake"], [0, 1, 2]),
]


@pytest.mark.parametrize(("texts", "groups"), TASKS)
def test_equal_and_nearly_equal_questions_are_one(texts, groups):
    others = [
        f"Why does {word} rain fall on {word} roofs at night?"
        for word in ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "lime", "maple", "oak", "pine", "yew"]
    ]
    asked = [row(i, text) for i, text in enumerate([*texts, *others])]
    assert copied(asked) == groups + list(range(len(texts), len(asked)))


def test_a_common_instruction_makes_no_copies():
    head = "Read the message of a customer below and say in one word which department of ours should answer it: "
    subjects = [
        "a parcel that is late",
        "two invoices for one order",
        "the colour of a lamp",
        "a lost password",
        "opening hours",
    ]
    assert copied([row(i, head + text) for i, text in enumerate(subjects)]) == [0, 1, 2, 3, 4]
    assert copied([row(0, "Go on.", system="You are a pirate."), row(1, "Go on.", system="You are a judge.")]) == [0, 1]


def test_copies_count_once_and_it_is_told(tmp_path):
    """Ten questions, each standing there eight times under new ids: ten independent rows, not eighty."""
    rows = [
        {"id": f"q{copy}-{i}", "prompt": f"question {i}" + " " * copy, "reference": f"a{i}"}
        for copy in range(8)
        for i in range(10)
    ]
    _, verdict = go(
        tmp_path / "out", make_task(tmp_path / "t", rows=rows), [Echo("base", 1), Echo("tuned", 6)], gates=[SUPERIOR]
    )
    figure = verdict["results"][1]["metrics"]["exact_match"]
    assert (figure["n"], figure["clusters"], verdict["tasks"]["t"]["copies"]) == (80, 10, 70)
    assert figure["high"] - figure["low"] > 0.5
    assert verdict["gates"][0]["outcome"] == "inconclusive"
    assert any("70 rows repeat another question" in line for line in summary_lines(Verdict.parse(verdict)))
    assert "70 of them repeat another question" in (tmp_path / "out" / "report.html").read_text()
    settings = EvaluateConfig(tasks=("t",), targets=("base", "tuned"), gates=[SUPERIOR])
    found = forecast_evaluation(
        settings, MachineConfig(device="cpu"), load_checked(settings, (tmp_path / "t",), None), tmp_path / "none"
    )
    assert (found["tasks"][0]["clusters"], found["tasks"][0]["copies"]) == (10, 70)


def test_copies_join_the_clusters_they_stand_in(tmp_path):
    rows = [
        {"id": f"q{i}", "prompt": text, "reference": "x", "doc": doc}
        for i, (text, doc) in enumerate(
            [("question 1", "a"), ("question 2", "a"), ("question 2", "b"), ("question 3", "b"), ("question 4", "c")]
        )
    ]
    settings = EvaluateConfig(tasks=("t",), targets=("base",))
    (task,) = load_checked(settings, (make_task(tmp_path / "t", rows=rows, cluster_by="doc"),), None)
    joined = join_copies(task)
    assert len({row.cluster for row in joined.rows[:4]}) == 1
    assert joined.rows[4].cluster == "c"
    assert join_copies(replace(task, rows=task.rows[:2])).copies == 0


class Partly(Echo):
    """Says so many letters of the alphabet that its score lies somewhere between."""

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            numbers = [int(prompt.messages[-1]["content"].split()[1]) for prompt in batch]
            yield [Answer("abcdefghijkl"[: 6 + (7 * number) % 6], "stop", 5, 3, 0.01) for number in numbers]


def test_the_order_of_rows_in_the_file_decides_nothing(tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"question {i}", "reference": "abcdefghijkl"} for i in range(60)]
    found = []
    for name, ordered in (("a", rows), ("b", sorted(rows, key=lambda row: (7 * int(row["id"][1:])) % 6))):
        task = make_task(tmp_path / name / "t", rows=ordered, metrics=["chrf"], primary="chrf")
        gate = {"metric": "chrf", "target": "tuned", "test": "at_least", "margin": 0.5}
        found.append(go(tmp_path / name / "out", task, [Partly("tuned", 0)], gates=[gate])[1])
    one, other = found
    assert 0 < one["gates"][0]["p"] < 0.5
    assert one["gates"] == other["gates"]
    assert one["results"][0]["metrics"] == other["results"][0]["metrics"]
