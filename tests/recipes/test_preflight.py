"""Mistakes of later steps are told before the first one, all of them at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_ops.config import shipped
from gemma_ops.config.loading import read_run_config
from gemma_ops.errors import BoundaryError, BudgetError, ConfigError, OpsError
from gemma_ops.recipes import inputs, preflight
from gemma_ops.recipes.finding import find_recipe
from tests.helpers.bare_verdict import bare_verdict

JUDGED = ["evaluate.gates=[]", "evaluate.judge.judges=[q8_0]"]
READY = ["machine.gemini.accept_terms=2026-03-23", "machine.gemini.budget_usd=1"]


def told(sets, config="quickstart", **options):
    """What the check says, as one text; empty when it lets the run go on."""
    try:
        loaded = read_run_config([config], sets)
        preflight.check_ahead(loaded, find_recipe(loaded.recipe), **options)
    except OpsError as error:
        return f"{error.what}\n{error.fix}"
    return ""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GEMMA_OPS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "any")


@pytest.mark.parametrize("config", ["quickstart", "e4b-lora", "baseline"])
def test_shipped_configurations_pass(config):
    assert told([], config) == ""


@pytest.mark.parametrize(
    "sets, words",
    [
        (["evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-9]"], "no facts about a Gemini model 'gemini-9'"),
        (["evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash@xhigh]"], "no thinking level 'xhigh'"),
        (["evaluate.targets=[base,tuned,q8_0,tined]"], "there is no target 'tined'"),
        (["evaluate.targets=[base,tuned,q8_0,a/folder]"], "a/folder does not exist"),
        (["evaluate.judge.judges=[gemini:gemini-9]"], "no facts about a Gemini model 'gemini-9'"),
        ([*JUDGED, "evaluate.judge.first=merged"], "evaluate.judge.first: 'merged' is not among evaluate.targets"),
        ([*JUDGED, "evaluate.judge.versus=[q4]"], "evaluate.judge.versus: 'q4' is not among evaluate.targets"),
        ([*JUDGED, "evaluate.judge.calibration=none.json"], "does not exist"),
        (["quantize.formats=[q8_0]"], "evaluate.targets: quantize.formats makes no q4_0"),
        (["quantize.formats=[q8_0]", "evaluate.targets=[base,tuned,q8_0]"], "register.artifacts names q4_0"),
        (["evaluate.gates=[{metric: exact, test: at_least, margin: 1}]"], "has no metric 'exact'"),
        (["evaluate.gates=[{metric: exact_match, test: at_least, margin: 1, target: bf16}]"], "'bf16' is not among"),
        (["evaluate.gates=[{metric: usd_per_1k, test: at_most, margin: 1}]", "machine.device=cpu"], "no known price"),
        (["evaluate.gates=[]", "recipe=baseline"], "the recipe baseline has no tuned for its step evaluate"),
        (["evaluate.tasks=[nowhere]"], "nowhere"),
        (["model.base=google/gemma-4-E4B-it", "quantize.fit=none"], "asks for q4_0, and E4B below 5 bits a weight"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_later_step(sets, words):
    assert words in told(sets)


@pytest.mark.parametrize(
    "sets, words",
    [
        ([], "synth.documents 'handbook' does not exist"),
        (["synth.documents=null"], "synth.count.document_qa needs synth.documents"),
        (["synth.teacher=gemini:gemini-9"], "no facts about a Gemini model 'gemini-9'"),
        (["synth.judge=gemini:gemini-3.8-flash@xhigh"], "synth.judge: gemini-3.8-flash has no thinking level"),
        (["synth.teacher=tuned"], "synth.teacher: the recipe distill has no tuned"),
    ],
)
def test_a_mistake_about_the_teacher(sets, words):
    assert words in told(sets, "distill")


def test_what_gemini_needs_is_told_before_anything_is_made(monkeypatch):
    sets = ["evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash@low]"]
    text = told(sets)
    for words in ("3 problems", "no key for the Gemini API", "this run has no budget", "are not accepted yet"):
        assert words in text
    monkeypatch.setenv("GEMINI_API_KEY", "any")
    assert told([*sets, *READY]) == ""
    monkeypatch.setenv("GEMMA_OPS_OFFLINE", "1")
    assert "offline: nothing may be sent" in told([*sets, *READY])
    nobody = told([*sets, *READY, "machine.gemini.base_url=http://127.0.0.1:1"])
    assert (
        "the server at http://127.0.0.1:1 is not our emulator" in nobody
    )  # on this machine, and may pass on what it is sent


def test_one_problem_keeps_its_kind(key):
    def check(*sets):
        targets = "evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash]"
        config = read_run_config(["quickstart"], [targets, *sets])
        preflight.check_ahead(config, find_recipe(config.recipe))

    with pytest.raises(BudgetError):
        check(READY[0])
    with pytest.raises(BoundaryError):
        check(READY[1])
    with pytest.raises(ConfigError):
        check()


def test_rows_that_a_service_may_not_see(key, tmp_path):
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "task.yaml").write_text(
        "schema: gemma-ops/eval-task@1\nname: secret\nversion: 1\ndescription: x\ndata: {path: rows.jsonl}\n"
        "generation: {max_new_tokens: 8}\nmetrics: [exact_match]\nprimary: exact_match\n"
    )
    (folder / "rows.jsonl").write_text('{"prompt": "1", "reference": "x", "privacy": "local_only"}\n')
    sets = [*READY, f"evaluate.tasks=[{folder}]", "evaluate.gates=[]"]
    asked = [*sets, "evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash]"]
    assert "1 of 1 rows of task secret are local_only" in told(asked)
    assert told([*asked, "evaluate.hidden=skip"]) == ""
    judged = [*sets, "evaluate.hidden=skip", "evaluate.judge.judges=[gemini:gemini-3.8-flash]"]
    assert "may not see them" in told(judged)


def test_only_what_is_still_to_be_made_counts(tmp_path):
    sets = ["evaluate.targets=[base,tuned,gemini:gemini-9]", "evaluate.gates=[]"]
    assert told(sets, until="quantize") == ""
    assert "gemini-9" in told(sets, until="evaluate")
    done = tmp_path / "runs" / "quickstart" / "evaluate"
    done.mkdir(parents=True)
    (done / "artifact.json").write_text("{}")
    assert told(sets) == ""
    assert "gemini-9" in told(sets, redo=["evaluate"])


def test_a_recipe_that_names_its_steps_late_is_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def recipe(run, config):\n    for name in 'ab':\n        run.step(f, None, name=name)\n"
    )
    assert told([f"recipe={tmp_path / 'mine.py'}", "evaluate.targets=[gemini:gemini-9]"]) == ""


def test_steps_are_known_in_order_with_their_inputs():
    found = find_recipe("distill").steps
    assert found is not None
    assert list(found)[:4] == ["fetch", "teacher", "synthesize", "prepare"]
    assert found["synthesize"] is None  # **inputs(…)
    assert "tuned" in found["evaluate"]
    assert "tuned" not in find_recipe("baseline").steps["evaluate"]


def test_a_run_says_it_before_its_folder_is_made(cli, tmp_path):
    found = cli("run", "quickstart", "--set", "quantize.formats=[q8_0]", "--set", "evaluate.judge.judges=[gemini:no]")
    assert found.returncode == 2
    assert "problems would end this run later" in found.stderr
    assert "register.artifacts names q4_0" in found.stderr
    assert not (tmp_path / "runs").exists()


def test_it_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time\n"
        "from gemma_ops.recipes import preflight\n"
        "from gemma_ops.recipes.finding import find_recipe\n"
        "from gemma_ops.config.loading import read_run_config as load\n"
        "config = load(['quickstart'])\n"
        "recipe = find_recipe(config.recipe)\n"
        "began = time.process_time()\n"
        "preflight.check_ahead(config, recipe)\n"
        "print(time.process_time() - began)\n"
        "print([name for name in ('torch', 'scipy', 'transformers', 'google.genai') if name in sys.modules])\n"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[1] == "[]"
    assert float(lines[0]) < 0.7


def test_a_plan_names_what_would_refuse_it(cli):
    target = "evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash]"
    told = cli("evaluate", "quickstart", "--plan", "--set", target, "--set", "offline=true", check=True).stdout
    assert "problem: offline: nothing may be sent" in told
    assert "problem: no key for the Gemini API" in told
    assert "problem: the terms of the Gemini API are not accepted yet" in told
    assert "Competing models" not in told  # the notice itself is for the refusal


def test_a_plan_counts_what_is_answered(tmp_path):
    from gemma_ops.evaluation.evaluation_checks import load_checked as tasks_of
    from gemma_ops.evaluation.evaluation_forecast import forecast_evaluation, forecast_lines
    from gemma_ops.tasks import stored_answers

    config = read_run_config(["quickstart"], ["evaluate.targets=[gemini:gemini-3.8-flash]", "evaluate.gates=[]"])
    tasks = tasks_of(config.evaluate, inputs.tasks(config), None)
    generation = tasks[0].file.generation.model_dump(mode="json")
    name, who = "gemini:gemini-3.8-flash", "gemini-3.8-flash@default"
    known = [stored_answers.answer_key(name, who, tasks[0].name, row, generation) for row in tasks[0].rows[:2]]
    folder = tmp_path / "runs" / "evaluate.partial"
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_text("".join(f'{{"key": "{key}"}}\n' for key in known) + '{"key": "half')
    found = forecast_evaluation(config.evaluate, config.machine, tasks, folder.with_name("evaluate"))
    assert found["targets"][0]["answered"] == 2
    assert "2 of them answered already" in "\n".join(forecast_lines(found))
    assert (folder / "answers.jsonl").read_text().endswith("half")  # only read: it may be under way


def test_answers_from_the_store_are_told(capsys):
    from gemma_ops.cli.console import ProgressFollower

    ProgressFollower().step_record(None, "evaluate", {"event": "gemini", "answers": 300, "from_store": 290})
    assert "290 of 300 answers of Gemini were in the store" in capsys.readouterr().err


def test_words_of_the_verdict():
    from gemma_ops.evaluation import verdict_summary
    from gemma_ops.verdicts import Routing, Verdict

    nothing = Verdict.parse(bare_verdict())
    assert verdict_summary.verdict_headline(nothing) == "ungated: no gate was set, so nothing was decided"
    (table,) = Routing.read(Path(__file__).parents[1] / "golden" / "routing.json").tables
    line = table.lines[0]
    kept, left = (line.model_copy(update={"decision": decision}) for decision in ("keep", "undecided"))
    many = table.model_copy(update={"lines": (left, *[kept] * 5, *[left] * 14)})
    assert verdict_summary._route(many) == "routing tuned or gemini-3.8-flash: of 19 slices keep 5, undecided 14"
    assert verdict_summary._route(table.model_copy(update={"lines": (left,)})).endswith(": the whole task undecided")


def test_personal_data_that_is_sent_and_progress_without_steps_are_told(capsys, monkeypatch):
    from gemma_ops.cli import console

    monkeypatch.setattr(console, "_EVERY", 0.0)
    follower = console.ProgressFollower()
    sent = {"event": "gemini.pii", "rows": 6, "of": 100, "found": {"EMAIL": 6}, "forbidden_by_terms": True}
    follower.step_record(None, "synthesize", sent)
    follower.step_record(None, "evaluate", {"target": "tuned", "task": "t", "done": 16, "total": 1300})
    told = " ".join(capsys.readouterr().err.split())
    assert "personal data in 6 of 100 requests to Gemini (EMAIL 6); the terms of the unpaid tier forbid" in told
    assert "16/1,300 t tuned" in told


PAIRS = [{"prompt": f"Question {n}?", "chosen": "Good.", "rejected": "Bad."} for n in range(3)]


@pytest.mark.parametrize(
    "sets, words",
    [
        (["train.method=sft"], "holds pairs of answers, and train.method sft learns from conversations"),
        (["train.method=pretrain"], "holds pairs of answers, and train.method pretrain learns from texts"),
        (["train.method=reward"], "a reward model is not a language model to merge"),
        (["train.method=dpo"], ""),
        (["train.method=kto"], ""),
    ],
)
def test_rows_and_what_becomes_of_the_adapter_must_fit_the_method(tmp_path, sets, words):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    found = told(["data.path=pairs.jsonl", "evaluate.gates=[]", *sets])
    assert words in found if words else found == ""


def test_a_reward_model_may_be_trained_alone(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert told(["data.path=pairs.jsonl", "train.method=reward"], until="train") == ""


def test_a_recipe_that_gives_no_teacher_is_told(tmp_path):
    sets = ["train.method=distill", "train.distill.teacher=./larger"]
    assert "teacher" not in told(sets)
    text = (
        shipped.find_shipped("recipes", "lora", ".py")
        .read_text()
        .replace("        teacher=run.step", "        instead=run.step")
    )
    (tmp_path / "mine.py").write_text(text)
    assert "has no teacher for its step train" in told([*sets, "recipe=mine.py"])
