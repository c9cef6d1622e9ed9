"""Evaluation against Gemini: the real client through the real door to the emulator, beside a local stand-in. What is
asked, what it costs, what must not be sent, and what is decided about who answers which questions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gemma_ops.answer import Answer
from gemma_ops.config import EvaluateConfig
from gemma_ops.emulator import EmulatedReply, Emulator
from gemma_ops.errors import BoundaryError, BudgetError, ConfigError
from gemma_ops.evaluation import evaluate_step, forecast, forecast_lines, provenance, regrade
from gemma_ops.evaluation.reserved_cost import most_per_answer
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.tasks.stored_answers import stored
from gemma_ops.tasks.task import load_task
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import Echo, make_task

NAME = "gemini:gemini-3.8-flash@low"


def knowing(body):
    """Answers `question <i>` right while i is even; 40 tokens of thoughts each."""
    number = int(body.last.split()[1])
    text = f"a{number}" if number % 2 == 0 else "wrong"
    return EmulatedReply(text, output_tokens=10, thought_tokens=40, prompt_tokens=100)


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(knowing) as started:
        yield started


def rows(count, private=()):
    return [
        {
            "id": f"q{i}",
            "prompt": f"question {i}",
            "reference": f"a{i}",
            "half": i % 2,
            "privacy": "local_only" if i in private else "paid",
        }
        for i in range(count)
    ]


def go(folder, machine, task, *, local, gates=(), **settings):
    """Evaluate a local stand-in as `tuned` against the emulated model."""
    out = folder / "runs" / "r" / "evaluate.partial"
    out.mkdir(parents=True, exist_ok=True)
    config = EvaluateConfig(targets=("tuned", NAME), gates=gates, **settings)
    tasks = evaluate_step.load_checked(config, (task,), None)
    targets = [local, open_target(NAME, machine, run="r", use="evaluate")]
    facts = provenance.collect_provenance(targets, machine, RunModels(), data=None)
    metrics = evaluate_step.run_evaluation(out, config, tasks, targets, facts, batch=8)
    return out, metrics, json.loads((out / "verdict.json").read_text())


def test_gemini_stands_beside_local_targets(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(40), slices=["half"], privacy="paid")
    machine = machine_for(emulator, tmp_path).model_copy(update={"dollars_per_hour": 3.6})
    machine = machine.model_copy(update={"gemini": machine.gemini.model_copy(update={"concurrency": 5})})
    out, metrics, verdict = go(tmp_path, machine, task, local=Echo("tuned", 40))
    local, remote = verdict["results"]
    assert metrics[f"t/{NAME}/exact_match"] == 0.5
    assert metrics[f"t/{NAME}-tuned/exact_match"] == -0.5
    # What was billed: thoughts are output. 100 x 0.75 + 50 x 3.75 dollars per million tokens, 1,000 times.
    assert remote["cost"]["usd_per_1k"] == pytest.approx(0.2625)
    assert remote["cost"]["kind"] == "billed"
    # Its own number of requests under way, not the batch of the local targets.
    assert verdict["asked"][1]["at_once"] == [5]
    assert not verdict["asked"][1]["here"]
    assert remote["speed"]["mean_thought_tokens"] == 40
    assert 0 < remote["speed"]["first_seconds_p50"] <= remote["speed"]["seconds_p50"]
    # The machine: 0.01 s an answer at $3.60 an hour, busy half of the time.
    assert local["cost"]["usd_per_1k"] == pytest.approx(0.01 * 0.001 * 1000 / 0.5)
    assert local["speed"]["seconds_p50"] == pytest.approx(0.08)  # eight are decoded together, and each waits for all
    assert (local["place"], remote["place"]) == ("stays here", "rehearsal: answered by an emulator")
    assert verdict["targets"][NAME]["family"] == "gemini"
    assert verdict["gemini"]["terms"] == "2026-03-23"
    assert all("system" not in json.dumps(entry.body) and entry.body["store"] is False for entry in emulator.log)
    stored = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert {(line["tier"], line["thought_tokens"], bool(line["response_id"])) for line in stored[40:]} == {
        ("standard", 40, True)
    }
    page = (out / "report.html").read_text()
    assert "Keep or send" in page
    assert "Quality, cost and time" in page
    assert "gemini-3.8-flash@low" in (out / "summary.md").read_text()


def test_an_evaluation_asks_again_for_nothing(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(12), privacy="paid")
    out, *_ = go(tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 6))
    asked = len(emulator.log)
    (out / "answers.jsonl").unlink()
    go(tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 6))
    assert (asked, len(emulator.log)) == (12, 12)


def test_the_cap_ends_the_evaluation_and_a_higher_one_goes_on(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(40), privacy="paid")
    # The worst case of one answer is 0.0088 dollars, its bill 0.00026.
    tight = machine_for(emulator, tmp_path, budget_usd=0.012, concurrency=1)
    with pytest.raises(BudgetError):
        go(tmp_path, tight, task, local=Echo("tuned", 20))
    before = len(emulator.log)
    kept = (tmp_path / "runs" / "r" / "evaluate.partial" / "answers.jsonl").read_text().count(NAME)
    assert 0 < kept <= before < 40
    _, metrics, _ = go(tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 20))
    assert len(emulator.log) == 40
    assert metrics[f"t/{NAME}/usd_per_1k"] == pytest.approx(0.2625)


def test_rows_that_must_stay_are_refused_before_anything_is_sent(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(20, private=(3, 4)), privacy="any")
    local = Echo("tuned", 20)
    with pytest.raises(BoundaryError, match="2 of 20 rows of task t are local_only"):
        go(tmp_path, machine_for(emulator, tmp_path), task, local=local)
    assert emulator.log == []
    assert local.asked == []


def test_hidden_rows_can_be_left_out_and_are_never_sent(tmp_path, emulator):
    private = {3, 4, 10, 12, 14, 16, 18}
    task = make_task(tmp_path / "t", rows=rows(40, private), slices=["half"], privacy="any")
    metrics_of = [{"metric": "exact_match", "target": "tuned", "test": "noninferior", "versus": NAME, "margin": 0.05}]
    out, metrics, verdict = go(
        tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 40), hidden="skip", gates=metrics_of
    )
    sent = {entry.body["contents"][0]["parts"][0]["text"] for entry in emulator.log}
    assert sent == {f"question {i}" for i in range(40) if i not in private}
    local, remote = verdict["results"]
    assert (local["hidden"], remote["hidden"]) == (0, 7)
    assert remote["metrics"]["exact_match"]["n"] == 33  # neither wrong nor failed
    assert remote["failed"] == 0
    assert verdict["differences"][0]["n"] == verdict["gates"][0]["n"] == 33
    assert verdict["routing"]["tables"][0]["lines"][0]["local_only"] == 7
    assert metrics[f"t/{NAME}/hidden"] == 7.0
    assert sum(NAME in line for line in (out / "answers.jsonl").read_text().splitlines()) == 33
    assert "not shown to it" in (out / "report.html").read_text()
    (again := tmp_path / "again").mkdir()
    config = EvaluateConfig(targets=("tuned", NAME), hidden="skip", gates=metrics_of)
    regrade(again, config, machine_for(emulator, tmp_path), answers=out, tasks=(task,))
    assert (again / "verdict.json").read_bytes() == (out / "verdict.json").read_bytes()


def test_the_unpaid_tier_sees_only_what_anybody_may(tmp_path, emulator):
    unpaid = machine_for(emulator, tmp_path, tier="unpaid")
    assert open_target(NAME, unpaid, run="r", use="evaluate").sees == {"any"}
    assert open_target(NAME, machine_for(emulator, tmp_path), run="r", use="evaluate").sees == {"any", "paid"}
    # Offered under unpaid terms only, whatever the project pays for.
    free = open_target("gemini:gemma-4-31b-it", machine_for(emulator, tmp_path), run="r", use="evaluate")
    assert (free.sees, free.family) == ({"any"}, "gemma")


def test_a_level_that_the_model_lacks_is_told_at_once(tmp_path, emulator):
    with pytest.raises(ConfigError, match="no thinking level 'minimal'"):
        open_target("gemini:gemini-3.8-flash@minimal", machine_for(emulator, tmp_path), run="r", use="evaluate")


def test_thoughts_do_not_cut_the_reply_off(tmp_path, monkeypatch):
    """The service counts thoughts against the limit. A limit of 8 alone would end every reply inside its thoughts."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(lambda body: EmulatedReply("a0", output_tokens=4, thought_tokens=1500)) as emulator:
        task = make_task(tmp_path / "t", rows=rows(2), privacy="paid", generation={"max_new_tokens": 8})
        _, _, verdict = go(tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 1))
    assert verdict["results"][1]["ends"] == {"stop": 2}


# Before spending


def planned(machine, task, before, **settings):
    config = EvaluateConfig(**{"targets": ("tuned", NAME), **settings})
    return forecast(config, machine, before=before, tasks=(task,))


def test_a_plan_asks_nothing_and_bounds_what_will_be_spent(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(12), privacy="paid")
    machine = machine_for(emulator, tmp_path)
    found = planned(machine, task, tmp_path / "none")
    assert emulator.log == []
    assert not (tmp_path / "runs").exists()  # not even a ledger
    remote = found["targets"][1]
    assert (remote["requests"], remote["tier"], remote["seconds"]) == (12, "standard", None)
    assert remote["basis"].startswith("guessed")
    # With its worst case as budget an evaluation can't stop at the cap.
    capped = machine_for(emulator, tmp_path, budget_usd=found["worst_usd"], concurrency=12)
    out, metrics, _ = go(tmp_path, capped, task, local=Echo("tuned", 6))
    billed = metrics[f"t/{NAME}/usd_per_1k"] * 12 / 1000
    assert billed < found["worst_usd"]
    after = planned(machine, task, out)["targets"][1]
    assert after["likely_usd"] == pytest.approx(billed)  # now measured
    assert after["seconds"] is not None


def test_a_batch_is_planned_at_half_the_price(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(3), privacy="paid")
    full, half = (
        planned(machine_for(emulator, tmp_path, batch=batch), task, tmp_path)["worst_usd"]
        for batch in ("never", "always")
    )
    assert half == pytest.approx(full / 2)


def test_what_an_answer_can_cost_at_most_is_what_was_reserved_for_it(tmp_path, emulator):
    """Forty answers at a quarter of a dollar per 1,000 say nothing of a dear one, but none can cost more than its
    reservation."""
    task = make_task(tmp_path / "t", rows=rows(40), privacy="paid", generation={"max_new_tokens": 16})
    asked = {"metric": "usd_per_1k", "target": NAME, "test": "at_most"}
    gates = [asked | {"margin": margin} for margin in (0.1, 0.6, 8.0)]
    _, _, verdict = go(tmp_path, machine_for(emulator, tmp_path), task, local=Echo("tuned", 20), gates=gates)
    low, middle, high = verdict["gates"]
    assert [gate["outcome"] for gate in (low, middle, high)] == ["fail", "inconclusive", "pass"]
    assert middle["bound"] > 3 * middle["value"]
    assert middle["n_needed"] > 40


def test_tools_are_part_of_what_an_answer_can_cost(tmp_path):
    """They are sent, billed and reserved for, so that a bound without them would lie below a bill."""
    plain = load_task(make_task(tmp_path / "plain", rows=rows(2), privacy="any"))
    declared = ({"type": "function", "function": {"name": "find", "description": "Finds it. " * 2000}},)
    calling = replace(plain, rows=tuple(replace(row, tools=declared) for row in plain.rows))
    line = stored("k", NAME, "t", "0", Answer("yes", "stop", 10, 2, 0.1), seconds=0.1, waited=0.1)
    least, most = (most_per_answer(task, NAME, [line, line]) for task in (plain, calling))
    assert most > 1.5 * least


def test_a_plan_tells_gates_that_rows_do_not_decide(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(20), privacy="any", metrics=["exact_match", "choice_accuracy"])
    asked = [
        {"metric": "choice_accuracy.f1_macro", "test": "at_least", "margin": 0.95},
        {"metric": "usd_per_1k", "test": "at_most", "margin": 1.0},
        {"metric": "usd_per_1k", "test": "at_most", "margin": 1.0, "target": NAME},
        {"metric": "exact_match", "test": "at_least", "margin": 0.9},
    ]
    told = planned(machine_for(emulator, tmp_path), task, tmp_path, gates=asked)["problems"]
    assert sum("will end inconclusive: its labels have too few rows" in line for line in told) == 1
    assert sum("the most that an answer can cost is not known" in line for line in told) == 1
    assert sum("can't pass with 20 rows of t" in line and "fewer than 32" in line for line in told) == 1


def test_a_plan_says_what_would_stop_it_and_what_it_can_show(tmp_path, emulator):
    task = make_task(tmp_path / "t", rows=rows(20, private=(1, 2)), privacy="any")
    gate = {"metric": "exact_match", "test": "noninferior", "versus": NAME, "margin": 0.02}
    found = planned(machine_for(emulator, tmp_path, budget_usd=None), task, tmp_path, gates=[gate])
    told = "\n".join(found["problems"])
    assert f"2 rows of t may not be sent to {NAME}" in told
    assert "budget_usd is not set" in told
    assert "can't pass with 20 rows of t: no test that holds for all scores passes it with fewer than 163" in told
    assert "about 3,4" in told
    assert found["targets"][1]["requests"] == 18
    assert 0.2 < found["tasks"][0]["detectable"] < 1
    text = forecast_lines(found)
    assert any(line.startswith("Gemini in all: likely $0.0") and "no budget is set" in line for line in text)
    assert planned(machine_for(emulator, tmp_path), task, tmp_path, targets=("tuned",))["worst_usd"] is None


def test_the_verb_plans_without_a_key_or_a_run(tmp_path, cli):
    target = "evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-3.8-flash@low]"
    done = cli("evaluate", "quickstart", "--plan", "--json", "--set", target, check=True)
    found = json.loads(done.stdout)
    assert [item["requests"] for item in found["targets"]] == [1000] * 5
    assert found["worst_usd"] > found["likely_usd"] > 0
    assert list(tmp_path.iterdir()) == []
    done = cli("evaluate", "quickstart", "--plan", "--set", "evaluate.targets=[base,tuned,q8_0,q4_0,gemini:gemini-9]")
    assert done.returncode == 2
    assert "no facts about a Gemini model 'gemini-9'" in done.stderr
