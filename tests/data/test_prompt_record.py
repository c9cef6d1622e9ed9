"""A model trained to think is asked to think: the mode is recorded with it, and thoughts are stored apart from
answers."""

from __future__ import annotations

import json

import pytest

from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.data import chat
from gemma_ops.data.prompt_record import Prompting, read_prompting, write_prompting
from gemma_ops.data.template import inference_template
from gemma_ops.errors import ModelError
from gemma_ops.evaluation import ask_targets
from gemma_ops.modeling.generate import read_reply
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.nano import WEIGHTS
from gemma_ops.targets import open_target
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import AskingMode

ASK = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return chat.load_tokenizer(WEIGHTS)


def said(tokenizer, text, prompt=""):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    stops = {tokenizer.token_to_id("<turn|>")}
    return read_reply(tokenizer, ids, stops, opened=left_open(tokenizer, before))


@pytest.mark.parametrize(
    ("reply", "prompt", "text", "thought", "end"),
    [
        ("Yes.<turn|>", "", "Yes.", "", "stop"),
        ("<|channel>thought\nso\nit is\n<channel|>Yes.<turn|>", "", "Yes.", "so\nit is", "stop"),
        ("<|channel>thought\n<channel|>Yes.<turn|>", "", "Yes.", "", "stop"),
        ("so\n<channel|>Yes.<turn|>", "<tool_response|><|channel>thought\n", "Yes.", "so", "stop"),
        ("<channel|>Yes.<turn|>", "<tool_response|><|channel>thought\n", "Yes.", "", "stop"),
        ("Yes.<turn|>", "<|turn>model\n<|channel>thought\n<channel|>", "Yes.", "", "stop"),
        ("<|channel>thought\non and on", "", "", "on and on", "length"),
        ("still thinking", "<|channel>thought\n", "", "still thinking", "length"),
    ],
)
def test_a_thought_is_no_part_of_the_answer(tokenizer, reply, prompt, text, thought, end):
    found = said(tokenizer, reply, prompt)
    assert (found.text, found.thought, found.end) == (text, thought, end)
    assert found.tokens + found.thought_tokens == len(tokenizer.encode(reply, add_special_tokens=False).ids)


def test_the_mode_is_found_where_the_weights_lie(tmp_path):
    assert read_prompting(tmp_path) is None
    recorded = Prompting.of("on", inference_template())
    (tmp_path / "model").mkdir()
    write_prompting(tmp_path / "model", recorded)
    assert read_prompting(tmp_path) == recorded
    assert recorded.template_name == "the template that gemma-ops brings"
    (tmp_path / "model/prompting.json").write_text('{"thinking": "on"}')
    with pytest.raises(ModelError, match="can't be read"):
        read_prompting(tmp_path)


@pytest.mark.parametrize(
    ("trained", "setting", "asked"),
    [
        ("on", "as_trained", True),
        ("off", "as_trained", False),
        ("mixed", "as_trained", False),
        (None, "as_trained", False),
        ("on", "off", False),
        ("off", "on", True),
    ],
)
def test_evaluation_asks_as_training_did_unless_told_otherwise(tmp_path, trained, setting, asked):
    (tmp_path / "model").mkdir()
    if trained:
        write_prompting(tmp_path / "model", Prompting.of(trained, inference_template()))
    settings = EvaluateConfig(thinking=setting)
    for name in ("base", "tuned", "q4_0"):  # the base is asked as what was made of it, so that they are compared
        assert ask_targets.asking_mode(name, settings, RunModels(tuned=tmp_path)).thinking is asked
    assert ask_targets.asking_mode(f"{tmp_path}/model", settings, RunModels()).thinking is asked


def test_a_question_is_asked_in_the_tokens_of_training(tokenizer):
    for thinking in (False, True):
        asked = Encoder(WEIGHTS, AskingMode(thinking=thinking)).encoded(Prompt(ASK))
        learned = chat.encode_chat(tokenizer, [*ASK, {"role": "assistant", "content": "So."}], thinking=thinking)
        assert learned.ids[: len(asked.ids)] == asked.ids
        assert ("<|think|>" in asked.text) is thinking


def test_answers_of_one_mode_are_not_taken_for_those_of_another(tmp_path):
    machine = MachineConfig(runs=str(tmp_path))
    opened = [
        open_target("base", machine, run="r", use="evaluate", models=RunModels(base=WEIGHTS), asked=asked)
        for asked in (
            AskingMode(),
            AskingMode(thinking=True),
            AskingMode(thinking=True, thought_tokens=7),
            AskingMode(control="spell"),
        )
    ]
    assert len({target.identity for target in opened}) == 4


def test_a_reply_may_think_beyond_the_answers_limit(tmp_path, monkeypatch):
    from gemma_ops.modeling import generate

    limits = []

    def answer(*_, max_new_tokens, **__):
        limits.append(max_new_tokens)
        return iter(())

    monkeypatch.setattr(generate, "answer_prompts", answer)
    for asked in (AskingMode(), AskingMode(thinking=True, thought_tokens=30)):
        target = open_target(
            "base", MachineConfig(), run="r", use="evaluate", models=RunModels(base=WEIGHTS), asked=asked
        )
        assert list(target.answer([[Prompt(ASK)]], max_new_tokens=5)) == [[]]
    assert limits == [5, 35]


@pytest.mark.slow
def test_training_records_its_mode_and_merging_and_quantizing_carry_it(tmp_path, cli):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": str(n), "reasoning": "so"},
            ]
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [
        "name=think", "data.path=rows.jsonl", "train.thinking=on", "train.max_steps=2", "machine.mlflow=null",
        "machine.device=cpu", "data.near_duplicates=null", "quantize.formats=[q8_0]", "quantize.fidelity_rows=2",
    ]  # fmt: skip
    done = cli("run", "quickstart", "--until", "quantize", *(part for item in sets for part in ("--set", item)))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/think"
    found = [
        json.loads((run / place / "prompting.json").read_text())
        for place in ("train/adapter", "merge/model", "quantize/q8_0", "quantize/bf16")
    ]
    assert [one["thinking"] for one in found] == ["on"] * 4
    assert len({one["template"] for one in found}) == 1
