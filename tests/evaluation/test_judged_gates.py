"""Judges as a part of an evaluation: what they say stands in the verdict and the report, and decides only where it
may."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from gemma_ops.config import EvaluateConfig, JudgeConfig
from gemma_ops.emulator import Emulator
from gemma_ops.emulator.planted import planted_judge as planted
from gemma_ops.errors import ConfigError
from gemma_ops.evaluation import evaluate_step
from gemma_ops.judging import judge_evaluation
from gemma_ops.judging.judge_material import Side
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import FACTS, Echo, make_task

JUDGE = "gemini:gemini-3.5-flash-lite@low"
WINS = {"metric": "judge.win_rate", "target": "tuned", "versus": "base", "test": "superior"}
RIGHT = {"metric": "exact_match", "target": "tuned", "versus": "base", "test": "superior"}


def prefers_right(body):
    """The answer that looks like one (`a7`); what is out of order or says `wrong` is none."""
    parts = dict(re.findall(r"begin answer ([AB])\n(.*?)\n===", body.last, re.DOTALL))
    good = {slot: bool(re.fullmatch(r"a\d+", text.strip())) for slot, text in parts.items()}
    return "tie" if good["A"] == good["B"] else "A" if good["A"] else "B"


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(planted(prefers_right)) as started:
        yield started


def go(folder, emulator, gates, **judge):
    task = make_task(folder / "t", 40, privacy="paid")
    out = folder / "runs" / "r" / "evaluate.partial"
    out.mkdir(parents=True, exist_ok=True)
    settings = EvaluateConfig(
        targets=("base", "tuned"), gates=gates, judge=JudgeConfig(judges=(JUDGE,), **judge), tasks=("t",)
    )
    tasks = evaluate_step.load_checked(settings, (task,), None)
    targets = [Echo("base", 4), Echo("tuned", 36)]
    sides = {target.name: Side(target.name, target.identity, "gemma") for target in targets}
    machine = machine_for(emulator, folder)

    def judging(graded):
        return judge_evaluation(out / "judge", settings.judge, settings, machine, graded, sides, run="r")

    metrics = evaluate_step.run_evaluation(out, settings, tasks, targets, FACTS, batch=8, judging=judging)
    return metrics, json.loads((out / "verdict.json").read_text()), out


def test_a_related_uncalibrated_judge_reports_and_does_not_gate(tmp_path, emulator):
    metrics, verdict, out = go(tmp_path, emulator, [RIGHT, WINS])
    # 32 rows only tuned gets right, 4 + 4 on which both say the same: 32 wins, 8 halves.
    assert metrics["t/tuned-base/judge.win_rate"] == pytest.approx(0.9)
    assert metrics["t/tuned-base/judge.win_rate/low"] < 0.9 < metrics["t/tuned-base/judge.win_rate/high"]
    right, wins = verdict["gates"]
    assert (right["outcome"], wins["outcome"]) == ("pass", "report_only")
    assert wins["value"] is None
    assert "may report but not gate" in wins["words"]
    assert verdict["verdict"] == "pass"
    assert verdict["judged"][0]["first"]["name"] == "tuned"
    page = (out / "report.html").read_text()
    assert "What judges say" in page
    assert "report only" in page
    assert "### Judged: tuned against base on t" in (out / "summary.md").read_text()
    # Reported with its figure, counted from one half as its margin is.
    assert "`judge.win_rate` | +0.400 [" in (out / "summary.md").read_text()
    assert 'skipped="1"' in (out / "junit.xml").read_text()
    # Made again, the judgements are there and nobody is asked.
    asked = len(emulator.log)
    go(tmp_path, emulator, [RIGHT, WINS])
    assert len(emulator.log) == asked


def test_with_nothing_but_a_report_nothing_is_decided(tmp_path, emulator):
    _, verdict, out = go(tmp_path, emulator, [WINS])
    assert verdict["verdict"] == "ungated"
    assert "no gate could be decided" in (out / "summary.md").read_text()


@pytest.mark.parametrize(
    "gate, judge, told",
    [
        (WINS, {"judges": ()}, "no judge is named"),
        (WINS | {"versus": "tuned", "target": "base"}, {}, "pairwise judges don't answer"),
        (WINS, {"mode": "pointwise"}, r"pointwise judges don't answer judge\.win_rate"),
        ({"metric": "judge.pass_rate", "target": "tuned", "test": "at_least", "margin": 0.5}, {}, "pairwise judges"),
    ],
)
def test_a_gate_that_no_judge_answers_is_refused_before_anybody_is_asked(tmp_path, gate, judge, told):
    task = make_task(tmp_path / "t", 4)
    settings = EvaluateConfig(
        targets=("base", "tuned"), gates=[gate], judge=JudgeConfig(**({"judges": (JUDGE,)} | judge)), tasks=("t",)
    )
    with pytest.raises(ConfigError, match=told):
        evaluate_step.load_checked(settings, (task,), None)


def test_a_calibration_is_an_input_of_the_step(tmp_path):
    from gemma_ops.config.loading import read_run_config
    from gemma_ops.recipes import inputs

    body = {"name": "x", "evaluate": {"judge": {"judges": [JUDGE], "calibration": "calibration.json"}}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError, match=r"evaluate\.judge\.calibration .* does not exist"):
        inputs.calibration(read_run_config([str(tmp_path / "x.yaml")]))
    (tmp_path / "calibration.json").write_text("{}")
    config = read_run_config([str(tmp_path / "x.yaml")])
    assert inputs.calibration(config) == tmp_path / "calibration.json"
    assert "calibration" not in config.evaluate.identity()["judge"]


def test_the_plan_counts_what_judges_would_be_asked_and_bounds_the_cost(tmp_path, emulator):
    from gemma_ops.evaluation import forecast, forecast_lines

    task = make_task(tmp_path / "t", 40, privacy="paid")
    settings = EvaluateConfig(targets=("base", "tuned"), judge=JudgeConfig(judges=(JUDGE,), rows=30), tasks=("t",))
    machine = machine_for(emulator, tmp_path)
    found = forecast(settings, machine, tasks=(task,), before=tmp_path / "nothing")
    (judge,) = found["judges"]
    assert (judge["requests"], judge["hidden"]) == (60, 0)
    assert 0 < found["likely_usd"] < found["worst_usd"] == judge["worst_usd"]
    assert f"judge {JUDGE} of tuned against base: 60 requests and" in "\n".join(forecast_lines(found))
    assert emulator.log == []
    go(tmp_path, emulator, [], rows=30)
    assert sum(entry.usage is not None for entry in emulator.billed()) <= 60 + judge["canaries"]
    private = make_task(tmp_path / "p", 40, privacy="local_only")
    hidden = forecast(settings, machine, tasks=(private,), before=tmp_path / "nothing")
    assert hidden["judges"][0]["hidden"] == 30
    assert any("may not be shown to the judge" in problem for problem in hidden["problems"])
