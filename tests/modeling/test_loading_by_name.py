"""A model is found or refused by name, and answers in batches as it answers alone."""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import MachineConfig, ModelConfig
from gemma_ops.errors import ConfigError, ModelError, ServiceError
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import check_shards, checkpoint, local_base
from gemma_ops.modeling.generate import answer_prompts
from gemma_ops.modeling.load import load_model, load_tokenizer
from gemma_ops.nano import WEIGHTS
from tests.helpers.checkpoints import copied


def test_batched_answers_equal_single_ones():
    model, tokenizer = load_model(WEIGHTS, weights="fp32"), load_tokenizer(WEIGHTS)
    texts = [
        "Repeat: red blue",
        "Repeat: the quick tree and a long stone",
        "Topic: Why was my card declined?",
        "Which order? My router (order K12345) is late.",
    ]
    prompts = [
        tokenizer.encode(f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n", add_special_tokens=False).ids
        for text in texts
    ]
    together = [item.text for item in answer_prompts(model, tokenizer, prompts, max_new_tokens=24, batch_size=4)]
    alone = [next(answer_prompts(model, tokenizer, [prompt], max_new_tokens=24, batch_size=1)) for prompt in prompts]
    assert together == [item.text for item in alone]
    assert {item.end for item in alone} == {"stop"}
    assert next(answer_prompts(model, tokenizer, prompts[:1], max_new_tokens=1, batch_size=1)).end == "length"


def test_fetch_records_bytes_and_copies_none(tmp_path):
    metrics = fetch(tmp_path, ModelConfig(), MachineConfig(), source=local_base("nano"))
    body = json.loads((tmp_path / "model.json").read_text())
    assert body["id"] == "nano"
    assert len(body["files"]["model.safetensors"]) == 64
    assert checkpoint(tmp_path) == WEIGHTS.resolve()
    assert metrics["bytes"] < 5_000_000


def test_a_revision_of_a_local_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no effect on a local model"):
        fetch(tmp_path, ModelConfig(revision="abc"), MachineConfig(), source=local_base("nano"))


def test_incomplete_checkpoints_are_refused(tmp_path):
    folder = copied("multimodal", tmp_path / "sharded")
    shards = check_shards(folder)
    assert len(shards) > 1
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-7])
    with pytest.raises(ModelError, match="cut off"):
        check_shards(folder)
    shards[0].unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of {len(shards)} weight files: {shards[0].name}"):
        check_shards(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="holds no safetensors") as caught:
        check_shards(folder)
    assert "pickled weights can run code" in caught.value.fix


def test_other_families_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="is a llama model"):
        fetch(tmp_path, ModelConfig(base=str(tmp_path)), MachineConfig(), source=tmp_path)
    with pytest.raises(ModelError, match="neither a folder here nor a Hub id") as caught:
        fetch(tmp_path, ModelConfig(base="nanno"), MachineConfig())
    assert "nano" in caught.value.fix
    with pytest.raises(ServiceError, match="did you mean google/gemma-4-E2B-it"):
        fetch(tmp_path, ModelConfig(base="google/gemma-4-E2B-itt"), MachineConfig())
