"""The shipped configuration about images goes its whole way: from drawn rows to answers about forms that a server gives
with llama.cpp.

The model is nano with eyes, whose images llama.cpp reads as transformers does. Two dozen steps teach it the JSON and
not the reading: that each part of the way sees the same picture is told by answers that differ from form to form and
are the same at both ends.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from gemma_ops.config import MachineConfig, loading, shipped
from gemma_ops.nano import forms, nano_towers
from gemma_ops.recipes import preflight
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.runs.run import Run
from gemma_ops.tasks.task import load_task
from tests.helpers.live_server import serving

TASK = shipped.root() / "eval" / "drawn_forms"
ASKED = 16
SMALL = {
    "train.weights": "fp32", "train.learning_rate": 1.0e-2, "train.batch": 8, "train.max_steps": 20,
    "train.max_length": 256, "train.samples": 0, "quantize.formats": "[q8_0]", "quantize.fidelity_rows": 2,
    "evaluate.targets": "[tuned,q8_0]", "evaluate.gates": "[]", "evaluate.rows": ASKED,
    "register.artifacts": "[adapter,q8_0]", "machine.device": "cpu", "machine.workers": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A finished run, and where it lies."""

    folder: Path
    machine: MachineConfig
    answers: dict[str, dict[str, Any]]
    """What was stored, by target and row: of `tuned`, then of `q8_0`."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("forms")
    rows = forms.write_rows(root / "rows", 64)
    base = nano_towers.save_towers(root / "base", bidirectional=True)
    places = {"data.path": rows, "model.base": base, "machine.runs": root / "runs", "machine.mlflow": root / "mlflow"}
    config = loading.read_run_config(["drawn-forms"], [f"{key}={value}" for key, value in (places | SMALL).items()])
    recipe = find_recipe(config.recipe)
    preflight.check_ahead(config, recipe)
    with Run(config) as run:
        recipe(run, config)
    answers: dict[str, dict[str, Any]] = {"tuned": {}, "q8_0": {}}
    for line in (run.path / "evaluate" / "answers.jsonl").read_text().splitlines():
        found = json.loads(line)
        answers[found["target"]][found["row"]] = found
    return Made(run.path, config.machine, answers)


def fields(text: str) -> list[Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    keys = ("left", "right", "level", "colour", "shape", "number")
    return [body.get(key) if isinstance(body, dict) else None for key in keys]


def alike(pairs: list[tuple[str, str]]) -> float:
    """The share of fields that are there and the same."""
    both = [pair for one, other in pairs for pair in zip(fields(one), fields(other), strict=True)]
    return sum(one is not None and one == other for one, other in both) / len(both)


@pytest.mark.slow
def test_llamacpp_answers_about_forms_what_the_tuned_model_does(made: Made) -> None:
    report = json.loads((made.folder / "quantize" / "report.json").read_text())["mmproj"]
    assert "image" in report["served"]
    tuned, quantized = ([found[row]["text"] for row in sorted(found)] for found in made.answers.values())
    assert len(tuned) == len(quantized) == ASKED
    same = alike(list(zip(tuned, quantized, strict=True)))
    assert same >= 0.8
    others = [*quantized[1:], quantized[0]]
    apart = alike(list(zip(tuned, others, strict=True)))
    print("SAME", same, apart)
    assert apart < same - 0.1, "the answers don't tell one form from another"


@pytest.mark.slow
def test_the_registered_version_serves_the_answers_of_its_evaluation(made: Made) -> None:
    rows = {row.id: row for row in load_task(TASK).rows}
    with serving("drawn-forms/1", machine=made.machine, form=None, context=600, also=()) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
        for name in sorted(made.answers["q8_0"])[:4]:
            (place,) = rows[name].media.values()
            picture = base64.b64encode(Path(str(place)).read_bytes()).decode()
            content = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": forms.ASK},
            ]
            reply = client.chat.completions.create(
                model=live.service.facts.model, messages=[{"role": "user", "content": content}], max_tokens=96,
                temperature=0,
            )  # fmt: skip
            answer = made.answers["q8_0"][name]
            assert reply.choices[0].message.content == answer["text"]
            assert reply.usage.prompt_tokens == answer["prompt_tokens"]
