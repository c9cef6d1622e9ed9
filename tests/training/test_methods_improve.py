"""Each method makes nano measurably better at a task made for it: one configuration, from rows to the verdict of a
gate.

The gate is the one that users write: on questions whose sentence frames occur in no training row, the tuned model's
`exact_match` lies above the base's by more than the margin, and an interval says so. The base scores about 0.2.
"""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import loading
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.runs.run import Run
from tests.helpers import answer_tasks

CONFIG = """
name: {method}
recipe: {recipe}
model: {{base: nano}}
data: {{path: {rows}, privacy: any, near_duplicates: null}}
train:
  method: {method}
  weights: fp32
  learning_rate: 1.0e-3
  schedule: constant
  warmup_share: 0.0
  max_length: 128
  samples: 0
  {own}
evaluate:
  tasks: [{task}]
  targets: [base, tuned]
  gates: [{{metric: exact_match, target: tuned, test: superior, versus: base, margin: 0.3}}]
machine: {{device: cpu, workers: 1, runs: {runs}, mlflow: null}}
"""

METHODS = {
    "dpo": ("pair", "max_steps: 12"),
    "kto": ("judged", "max_steps: 18"),
    "grpo": (
        "conversation",
        (
            "max_steps: 14\n  batch: 8\n  micro_batch: 64\n"
            "  reinforce: {rewards: [exact_match], generations: 8, max_new_tokens: 12}"
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_measured_score_rises(tmp_path, method):
    kind, own = METHODS[method]
    rows, task = answer_tasks.write(tmp_path, kind)
    recipe = answer_tasks.RECIPE
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(method=method, recipe=recipe, rows=rows, own=own, task=task, runs=tmp_path / "runs"))
    config = loading.read_run_config([file])
    with Run(config) as run:
        evidence = find_recipe(config.recipe)(run, config)
    verdict = json.loads((evidence.path / "verdict.json").read_text())
    assert verdict["verdict"] == "pass", verdict
