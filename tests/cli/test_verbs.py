"""The command line as a person uses it: what goes to stdout and stderr, JSON, ejecting, looking."""

from __future__ import annotations

import json
import re

import pytest

from gemma_ops.config.loading import read_run_config
from gemma_ops.config.shipped import shipped


def test_version_and_usage(cli):
    assert re.fullmatch(r"gemma-ops \d+\.\d+\.\d+\n", cli("--version").stdout)
    result = cli("trian")
    assert result.returncode == 2
    assert "Did you mean 'train'" in result.stderr


def test_schema_is_json(cli):
    result = cli("schema")
    assert json.loads(result.stdout)["properties"]["train"]
    assert result.stderr == ""


def test_init_ejects_what_a_run_finds_first(cli, tmp_path):
    result = cli("init", "quickstart", "--to", ".")
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == {"configs/quickstart.yaml", "recipes/lora.py", "eval/support_desk"}
    again = cli("init", "quickstart", "--to", ".")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    (tmp_path / "recipes" / "lora.py").write_text("def recipe(run, config):\n    raise SystemExit('mine')\n")
    mine = cli("run", "quickstart", "--set", "machine.mlflow=null")
    assert "mine" in mine.stderr
    assert read_run_config([tmp_path / "configs" / "quickstart.yaml"]).data.path == str(
        tmp_path / "eval/support_desk/train.jsonl"
    )


def test_a_recipe_without_its_function_is_refused(cli, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    result = cli("run", "quickstart", "--set", "recipe=mine.py", "--set", "machine.mlflow=null")
    assert result.returncode == 2
    assert "has no function recipe(run, config)" in result.stderr


@pytest.mark.parametrize("config", shipped("configs", ".yaml"))
def test_plan_answers_for_every_shipped_configuration(cli, config):
    result = cli("plan", config, "--device", "h100", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


def test_doctor_speaks_and_counts(cli):
    result = cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert "E2B" in result.stdout
    assert "E2B" in cli("doctor").stdout


def test_data_check_shows_the_tokens_that_carry_loss(cli, tmp_path):
    result = cli("data", "check", "quickstart", "--rows", "1", "--html", "tokens.html")
    assert result.returncode == 0, result.stderr
    assert "<|turn>model" in result.stdout
    assert "carry loss" in result.stdout
    assert "<turn|>" in (tmp_path / "tokens.html").read_text().replace("&lt;", "<").replace("&gt;", ">")


def test_show_of_nothing_says_what_there_is(cli):
    result = cli("show", "nothing", "--set", "machine.mlflow=null")
    assert result.returncode != 0
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_step_that_is_not_there_is_refused_before_any_work(cli, tmp_path):
    for option in ("--until", "--redo"):
        result = cli("run", "quickstart", option, "trian", "--set", "machine.mlflow=null")
        assert result.returncode == 2
        assert "has no step 'trian'; did you mean train?" in result.stderr
    assert not (tmp_path / "runs").exists()
    baseline = cli("train", "quickstart", "--set", "recipe=baseline", "--set", "machine.mlflow=null")
    assert "the recipe baseline has no step 'train'" in baseline.stderr
