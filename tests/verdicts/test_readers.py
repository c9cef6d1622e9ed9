"""What reads a verdict: the registry's evidence, its ledger and policy, the record of looks, the end of a run."""

import json
from pathlib import Path

import pytest

from gemma_ops.cli import run_summary
from gemma_ops.errors import DataError
from gemma_ops.evaluation import looks, summary_lines
from gemma_ops.registry import describe, evaluation_evidence
from gemma_ops.registry.policies import proposed_policy
from gemma_ops.registry.version_records import look_of, looks_before
from gemma_ops.verdicts import Look, Verdict
from tests.helpers.bare_verdict import TASK, bare_verdict

GOLDEN = Path(__file__).parents[1] / "golden" / "verdict.json"
RESULT = {"task": "t", "target": "tuned", "rows": 2, "ends": {"stop": 2}, "failed": 0, "slices": {}, "speed": {}}


@pytest.fixture
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_figure_that_no_row_was_scored_for_is_told():
    body = bare_verdict(tasks={"t": TASK}, results=[RESULT | {"metrics": {"exact_match": {"value": None, "n": 0}}}])
    found = Verdict.parse(body)
    assert any(line.split() == ["tuned", "no", "row", "could", "be", "scored"] for line in summary_lines(found))
    assert evaluation_evidence.EvaluationEvidence(found).figures == ()


def test_the_primary_figure_comes_first_in_the_registry(golden):
    golden["tasks"]["desk"]["primary"] = "label.f1_macro"
    found = evaluation_evidence.EvaluationEvidence(Verdict.parse(golden))
    assert next(figure.metric for figure in found.figures if figure.target == "tuned") == "label.f1_macro"
    assert found.primary("tuned", "desk").metric == "label.f1_macro"
    assert found.differences[0].text.startswith("+")


def test_the_look_of_a_verdict_enters_the_ledger_with_its_outcome(golden):
    found = look_of(Verdict.parse(golden))
    look = golden["look"]
    body = {key: look[key] for key in ("subjects", "evidence", "rows", "level")} | {"verdict": golden["verdict"]}
    assert json.dumps(found.to_json()) == json.dumps(body)
    assert looks_before([{"kind": "version", "version": "1", "look": body}]) == {"1": found}
    assert look_of(Verdict.parse(bare_verdict())) is None
    assert look_of(None) is None


def test_a_gate_that_was_only_reported_is_no_part_of_a_proposed_policy(golden):
    gates = [{key: gate[key] for key in ("metric", "target", "test", "versus", "margin")} for gate in golden["gates"]]
    policy = proposed_policy({"settings": {"evaluate": {"gates": gates}}}, Verdict.parse(golden))
    assert [gate.metric for gate in policy.gates] == ["exact_match", "seconds_p95", "exact_match"]
    assert policy.gates[-1].versus == "champion"
    assert (policy.tasks["desk"].rows, policy.confidence) == (12, 0.95)


@pytest.mark.parametrize(("learned", "kept"), [("local_only", True), ("any", False), (None, False)])
def test_what_a_model_learned_from_keeps_the_report_here(tmp_path, learned, kept):
    (tmp_path / "evaluate").mkdir()
    facts = {"identity": "aa"} | ({"learned": learned} if learned else {})
    body = bare_verdict(tasks={"t": TASK}, targets={"tuned": facts})
    (tmp_path / "evaluate" / "verdict.json").write_text(json.dumps(body))
    assert describe.keeps_rows(tmp_path) is kept


def test_a_run_ends_with_the_lines_of_its_verdict(golden):
    result = {"run": "r", "folder": "runs/r", "steps": {}, "verdict": golden}
    told = run_summary.summary_lines(result)
    assert [line for line in summary_lines(Verdict.parse(golden)) if line not in told] == []
    with pytest.raises(DataError, match=r"verdict\.json of r can't be read: tasks: Field required"):
        run_summary.summary_lines(result | {"verdict": {key: value for key, value in golden.items() if key != "tasks"}})


def test_a_look_with_a_key_that_nobody_knows_is_no_record_of_what_was_spent(tmp_path):
    look = Look(subjects=("t a b",), evidence="e", rows=9, level=0.02, verdict="fail")
    file = tmp_path / "evaluate.looks.jsonl"
    file.write_text(look.model_dump_json() + "\n")
    assert looks.read_looks(file) == [look]
    file.write_text(json.dumps(look.to_json() | {"spent": 0.04}) + "\n")
    with pytest.raises(DataError, match=r"looks\.jsonl can't be read"):
        looks.read_looks(file)
