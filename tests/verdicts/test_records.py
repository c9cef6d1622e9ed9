"""`verdict.json` and `routing.json` as records: the bytes of before, lenient reading, strict writing, errors that name
the field. `golden/` holds files that were written when verdicts were dicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gemma_ops.config import GateConfig, GeminiConfig, ReleaseConfig
from gemma_ops.config.policy import ChampionFacts, PolicyTask, PromotionPolicy, PromotionStandard
from gemma_ops.errors import DataError
from gemma_ops.evaluation import evaluate_step, evaluation_forecast, summary_lines
from gemma_ops.gemini import notice
from gemma_ops.targets.target import LOCAL
from gemma_ops.verdicts import Gate, Routing, Verdict
from gemma_ops.verdicts.document import GeminiTerms, ReleaseFacts
from gemma_ops.verdicts.gate_record import ComparedChampion, PolicyGate, PolicyHeld, PolicyQuestions, StandardHeld
from gemma_ops.verdicts.measurements import CostFacts, SpeedFacts, TargetResult
from gemma_ops.verdicts.record import VerdictRecord
from tests.evaluation.test_routing_table import AWAY, FACTS, Known
from tests.helpers.evaluations import SUPERIOR, Echo, go, make_task

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {"verdict.json": Verdict, "verdict-judged.json": Verdict, "routing.json": Routing}
RESULT = {"task": "t", "target": "tuned", "rows": 2, "ends": {"stop": 2}, "failed": 0, "slices": {}, "speed": {}}


@pytest.fixture
def golden():
    return json.loads((GOLDEN / "verdict.json").read_text(encoding="utf-8"))


def plain(value):
    """A made body with the records in it as JSON again."""
    if isinstance(value, VerdictRecord):
        return value.to_json()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# The bytes


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_before_comes_back_byte_for_byte(name):
    text = (GOLDEN / name).read_text(encoding="utf-8")
    assert FILES[name].read(GOLDEN / name).text() == text


def test_the_golden_files_hold_what_there_is(golden):
    """So that the test above compares every kind of record, and both orders of a gate's keys."""
    assert {gate["outcome"] for gate in golden["gates"]} >= {"report_only"}
    assert len({tuple(gate) for gate in golden["gates"]}) == 2
    assert golden["routing"] == json.loads((GOLDEN / "routing.json").read_text(encoding="utf-8"))
    assert golden["results"][1]["labels"]["label"]["invalid"]
    assert any(result["hidden"] for result in golden["results"])
    optional = {"release", "gemini", "safety", "kv", "canary"}
    unset = {name for name, field in Verdict.model_fields.items() if (field.alias or name) not in golden}
    assert unset <= optional
    assert json.loads((GOLDEN / "verdict-judged.json").read_text(encoding="utf-8"))["judged"]


def test_what_an_evaluation_makes_is_written_as_it_was_made(tmp_path, monkeypatch):
    """Every record against the dict it was made from, keys in the same order: gates that are decided and that are not,
    hidden rows, slices, labels, a routing table, and a second look."""
    made = []
    before = VerdictRecord.made.__func__

    def making(cls, body):
        found = before(cls, body)
        made.append((body, found))
        return found

    monkeypatch.setattr(VerdictRecord, "made", classmethod(making))
    labels = {"id": "choice_accuracy", "name": "label", "choices": ["a0", "a1"]}
    rows = [
        {"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i % 2}", "half": i % 2,
         "privacy": "any" if i else "local_only"}
        for i in range(20)
    ]  # fmt: skip
    task = make_task(tmp_path / "t", rows=rows, slices=["half"], metrics=["exact_match", labels])
    remote = Known(AWAY, range(20))
    remote.sees = frozenset({"any"})
    wins = {"metric": "judge.win_rate", "target": "tuned", "test": "superior", "versus": "base"}
    for skill in (9, 12):
        targets = [Echo("base", 4), Echo("tuned", skill), remote]
        out = tmp_path / "r" / "evaluate"
        out.parent.mkdir(exist_ok=True)
        judge = {"judges": ["openai:http://127.0.0.1:9/v1#judge"]}
        go(out, task, targets, gates=[SUPERIOR, wins], facts=FACTS, hidden="skip", judge=judge)
        (out / "answers.jsonl").unlink()
    kinds = {type(found).__name__ for _, found in made}
    assert kinds >= {"Verdict", "TargetResult", "PairedDifference", "Gate", "Look"}
    for body, found in made:
        assert json.dumps(found.to_json()) == json.dumps(plain(body)), type(found).__name__
    *_, mine, others = [found for _, found in made if isinstance(found, Verdict)]
    assert mine.look.number == 2
    assert mine.look.earlier
    assert (out / "elsewhere" / "verdict.json").read_text(encoding="utf-8") == others.text()
    assert (out / "routing.json").read_text(encoding="utf-8") == mine.routing.text()
    written = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    assert list(written["routing"]["tables"][0]["lines"][0]) == list(
        json.loads((GOLDEN / "routing.json").read_text(encoding="utf-8"))["tables"][0]["lines"][0]
    )


def test_numbers_are_written_as_they_were_given():
    assert SpeedFacts.made({"seconds_total": 0}).text() == '{\n "seconds_total": 0\n}\n'
    assert SpeedFacts.made({"seconds_total": 0.0}).text() == '{\n "seconds_total": 0.0\n}\n'
    assert CostFacts.made({"high": None}).to_json() == {"high": None}
    assert TargetResult.made(RESULT | {"metrics": {}}).to_json().keys() == {*RESULT, "metrics"}


# Reading and writing


def test_keys_of_a_newer_version_are_left_out(golden):
    for part in (golden, golden["gates"][0], golden["results"][0]["speed"], golden["routing"]["tables"][0]["lines"][0]):
        part["newer"] = {"than": "this"}
    golden["standard"]["policy"] = {"gates": [], "tasks": {}, "confidence": 0.95, "newer": 1}
    found = Verdict.parse(golden)
    assert "newer" not in found.text()
    assert found.standard.policy.confidence == 0.95


@pytest.mark.parametrize("part", ["verdict", "gate", "target"])
def test_a_fact_without_a_field_is_not_written(golden, part):
    places = {"verdict": golden, "gate": golden["gates"][0], "target": golden["targets"]["base"]}
    places[part]["stray"] = 1
    with pytest.raises(ValidationError, match="no field takes 'stray'"):
        Verdict.made(golden)


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        (StandardHeld, PromotionStandard),
        (PolicyHeld, PromotionPolicy),
        (PolicyQuestions, PolicyTask),
        (PolicyGate, GateConfig),
        (ComparedChampion, ChampionFacts),
        (ReleaseFacts, ReleaseConfig),
    ],
)
def test_a_setting_that_a_verdict_repeats_has_its_field(told, settings):
    """In the same order: else an evaluation would end, with everything answered, on a verdict that can't be written."""
    assert list(told.model_fields) == list(settings.model_fields)


def test_the_terms_that_a_verdict_repeats_have_their_fields():
    assert list(GeminiTerms.model_fields) == list(notice.record_notice(GeminiConfig()))
    assert GeminiTerms.made(notice.record_notice(GeminiConfig())).to_json() == notice.record_notice(GeminiConfig())


def test_a_verdict_of_the_first_version_is_read(golden, tmp_path):
    """Neither looks, places, dollars, routing nor judges were known then, and no reader trips over that."""
    old = {key: golden[key] for key in ("schema", "verdict", "confidence", "seed", "tasks", "differences", "targets")}
    old["gates"] = [golden["gates"][0]]
    old["data"] = {}
    for task in old["tasks"].values():
        del task["copies"]
    old["targets"] = {name: {"identity": facts["identity"], "step": None} for name, facts in old["targets"].items()}
    old["results"] = [
        {key: result[key] for key in ("task", "target", "rows", "ends", "failed", "metrics", "slices")}
        | {"speed": {"seconds_p50": 0.5, "seconds_p95": 1.0, "seconds_total": 6.0, "mean_new_tokens": 3.0}}
        for result in golden["results"]
    ]
    found = Verdict.parse(old)
    assert found.to_json() == old
    assert (found.look, found.routing, found.judged, found.asked) == (None, None, (), ())
    assert {(result.hidden, result.cost.kind, result.place) for result in found.results} == {
        (0, "unknown", "stays here")
    }
    assert "verdict: " in "\n".join(summary_lines(found))
    (tmp_path / "verdict.json").write_text(found.text())
    assert evaluation_forecast._known(tmp_path) == {}, (
        "the tokens of a prompt were not measured, so nothing is planned on them"
    )
    recorded = evaluate_step._Recorded("tuned", found.targets)
    assert (recorded.sees, recorded.learned, recorded.family) == (LOCAL, "local_only", "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: body.pop("confidence"), "confidence: Field required"),
        (lambda body: body["gates"][1].update(outcome="maybe"), r"gates\.1\.outcome: Input should be"),
        (
            lambda body: body["results"][0]["metrics"]["exact_match"].update(value="high"),
            r"metrics\.exact_match\.value",
        ),
        (lambda body: body["tasks"].clear(), "a result is of task 'desk', which is not among its tasks"),
        (lambda body: body.update(schema="gemma-ops/verdict@2"), "its schema is 'gemma-ops/verdict@2'"),
    ],
)
def test_an_error_names_the_field(golden, tmp_path, change, told):
    change(golden)
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(golden))
    with pytest.raises(DataError, match=rf"verdict\.json can't be read: .*{told}") as caught:
        Verdict.read(file)
    assert caught.value.fix == "evaluate again: --redo evaluate"


@pytest.mark.parametrize("kind", [Verdict, Routing])
@pytest.mark.parametrize("text", [None, "", "[]", '{"schema": 1}', "\udcff"])
def test_what_is_no_such_file_is_a_data_error(tmp_path, kind, text):
    file = tmp_path / "file.json"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"file\.json can't be read: "):
        kind.read(file)


def test_a_router_reads_its_table(golden):
    found = Routing.read(GOLDEN / "routing.json")
    (table,) = found.of_task("desk")
    assert (table.local.name, table.remote.name, table.local_only) == ("tuned", AWAY, "keep")
    assert [(line.slice, line.value) for line in table.slice_lines] == [("half", "0"), ("half", "1")]
    assert table.lines[0].slice is None
    assert table.slices["half"].field == "half"
    assert found.of_task("other") == ()


def test_records_do_not_change(golden):
    found = Verdict.parse(golden)
    for record, name in (
        (found, "verdict"),
        (found.gates[0], "outcome"),
        (found.routing.tables[0].lines[0], "decision"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, "pass")


def test_a_gate_that_is_not_decided_has_no_figures(golden):
    gate = Verdict.parse(golden).gates[-1]
    assert gate.outcome == "report_only"
    assert {getattr(gate, name) for name in ("value", "bound", "upper", "level", "p", "p_holm", "n", "n_needed")} == {
        None
    }
    assert list(gate.to_json())[-2:] == ["threshold", "words"]
    assert list(Gate.made(golden["gates"][0]).to_json()) == list(golden["gates"][0])


def test_nothing_waits_for_the_records_that_reads_no_verdict():
    code = (
        "import sys, gemma_ops.cli, gemma_ops.config, gemma_ops.evaluation, gemma_ops.recipes.finding, "
        "gemma_ops.cli.run_summary\nprint([name for name in sys.modules if name.startswith('gemma_ops.verdicts')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
