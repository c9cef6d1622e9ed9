"""The shipped configuration about images goes its whole way: from drawn rows to answers about forms that a server gives
with llama.cpp.

The model is random, with E2B's mechanisms and towers. A few steps teach it no reading; that each part of the way sees
the form that it is asked about is told by the probabilities of its answers, which differ from form to form and are
those of transformers.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig, loading, shipped
from gemma_ops.modeling.load import load_model
from gemma_ops.modeling.media_inputs import join_media
from gemma_ops.nano import forms
from gemma_ops.recipes import inputs, preflight
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.runs.run import Run
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.tasks.task import load_task
from tests.helpers import tiny_media
from tests.helpers.live_server import serving

TASK = shipped.root() / "eval" / "drawn_forms"
ASKED = 8
SMALL = {
    "train.weights": "fp32", "train.learning_rate": 3.0e-3, "train.batch": 4, "train.max_steps": 6,
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
    """What was stored, by target and row."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("forms")
    rows = forms.write_rows(root / "rows", 24)
    base = tiny_media.save("edge", root / "base", hidden_size=1536)
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


def test_its_gates_are_such_as_the_shipped_forms_can_decide() -> None:
    config = loading.read_run_config(["drawn-forms"])
    assert config.evaluate.gates
    assert inputs.doubts(config) == []
    assert config.quantize.mmproj == "auto"


@pytest.mark.slow
def test_llamacpp_answers_about_forms_what_the_tuned_model_does(made: Made) -> None:
    report = json.loads((made.folder / "quantize" / "report.json").read_text())["mmproj"]
    assert "image" in report["served"]
    tuned, quantized = made.answers["tuned"], made.answers["q8_0"]
    assert len(tuned) == len(quantized) == ASKED
    same = sum(tuned[row]["text"] == quantized[row]["text"] for row in tuned) / ASKED
    assert same >= 0.75, same


def likely(model: Any, encode: Encoder, prompt: Prompt) -> np.ndarray:
    """Log-probabilities of the first token of an answer in transformers, (vocabulary,)."""
    encoded = encode.encoded(prompt)
    seen = encode.seen(prompt, encoded)
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([encoded.ids]), mm_token_type_ids=torch.tensor([seen.types]), **join_media([seen])
        ).logits[0, -1]
    found: np.ndarray = logits.double().log_softmax(-1).numpy()
    return found


def sent(place: Path) -> list[dict[str, Any]]:
    """A question about a form as OpenAI's protocol has it."""
    url = f"data:image/png;base64,{base64.b64encode(place.read_bytes()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": forms.ASK}]


@pytest.mark.slow
def test_the_registered_version_answers_about_the_form_that_it_is_sent(made: Made) -> None:
    names = sorted(made.answers["q8_0"])[:4]
    rows = {row.id: row for row in load_task(TASK).rows if row.id in names}
    merged = made.folder / "merge/model"
    model, encode = load_model(merged, weights="fp32", towers=True), Encoder(merged)
    expected = [likely(model, encode, Prompt(rows[name].messages, media=rows[name].media)) for name in names]
    texts = [encode.tokenizer.decode([number], skip_special_tokens=False) for number in range(len(expected[0]))]
    ids = {text: number for number, text in enumerate(texts) if texts.count(text) == 1}
    with serving("drawn-forms/1", machine=made.machine, form=None, context=600, also=()) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
        for place, name in enumerate(names):
            reply = client.chat.completions.create(
                model=live.service.facts.model, max_tokens=96, temperature=0, logprobs=True, top_logprobs=8,
                messages=[{"role": "user", "content": sent(Path(str(next(iter(rows[name].media.values())))))}],
            )  # fmt: skip
            answer = made.answers["q8_0"][name]
            assert reply.choices[0].message.content == answer["text"]
            assert reply.usage.prompt_tokens == answer["prompt_tokens"]
            first = [one for one in reply.choices[0].logprobs.content[0].top_logprobs if one.token in ids]
            assert len(first) >= 4
            apart = [max(abs(other[ids[one.token]] - one.logprob) for one in first) for other in expected]
            own = apart.pop(place)
            assert own < 0.4 * min(apart), (own, apart)
