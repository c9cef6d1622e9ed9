"""Images and sounds make nano with towers measurably better at a task about them: one configuration each, from rows to
the verdict of a gate.

Towers are random and frozen, so what is learned is to name what they show. The gate is the one that users write: on
files that were not trained on, the tuned model's `exact_match` lies above the base's by more than the margin, and an
interval says so. The base says neither a colour nor a pitch and scores 0; who had learned the words alone and guessed
would score 1/4 of four colours and 1/3 of three pitches, so the margin lies above that.
"""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import loading
from gemma_ops.nano import nano_towers
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.runs.run import Run
from tests.helpers import media_rows
from tests.helpers.answer_tasks import RECIPE

CONFIG = """
name: {kind}
recipe: {recipe}
model: {{base: {base}}}
data: {{path: {rows}, privacy: any, near_duplicates: null, valid_share: 0}}
train:
  weights: fp32
  learning_rate: {rate}
  schedule: constant
  warmup_share: 0.0
  lora: {{rank: 8, alpha: 16}}
  batch: 16
  max_steps: {steps}
  max_length: 128
  samples: 0
evaluate:
  tasks: [{task}]
  targets: [base, tuned]
  gates: [{{metric: exact_match, target: tuned, test: superior, versus: base, margin: 0.5}}]
machine: {{device: cpu, workers: 1, runs: {runs}, mlflow: null}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return nano_towers.save_towers(tmp_path_factory.mktemp("nano"))


@pytest.mark.parametrize(("kind", "steps", "rate"), [("image", 12, 1.0e-2), ("audio", 32, 5.0e-3)])
def test_the_measured_score_rises(tmp_path, base, kind, steps, rate):
    media_rows.write(tmp_path / "rows", kind, 96, seed=1)
    task = media_rows.task(tmp_path / "task", kind, 48, seed=2)
    file = tmp_path / "config.yaml"
    file.write_text(
        CONFIG.format(
            kind=kind,
            recipe=RECIPE,
            base=base,
            rows=tmp_path / "rows/rows.jsonl",
            steps=steps,
            task=task,
            rate=rate,
            runs=tmp_path / "runs",
        )
    )
    config = loading.read_run_config([file])
    with Run(config) as run:
        evidence = find_recipe(config.recipe)(run, config)
    verdict = json.loads((evidence.path / "verdict.json").read_text())
    assert verdict["verdict"] == "pass", verdict
