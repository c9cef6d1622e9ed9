"""A drafter's GGUF file runs in llama.cpp beside its target: the same answers, in as many steps as with transformers'
drafter."""

from __future__ import annotations

import json

import pytest
import torch

from gemma_ops.data import chat
from gemma_ops.drafting.drafter_gguf import write_drafter_gguf
from gemma_ops.drafting.drafter_unroll import DraftBatch, TargetTable, drafts_right, engine_steps
from gemma_ops.drafting.recorded_states import record_states
from gemma_ops.errors import ModelError
from gemma_ops.export import quantizing
from gemma_ops.modeling.drafter_files import load_drafter
from gemma_ops.modeling.llamacpp_drafts import TimedGguf
from gemma_ops.modeling.load import load_model
from gemma_ops.nano import DRAFTER, WEIGHTS
from tests.helpers import tiny_drafters, tiny_models
from tests.helpers.live_server import make_files

QUESTIONS = [
    "Repeat: red blue seven 4821 stone",
    "As JSON: name is Ivo Truson, code is K37519",
    "Topic: When will the card arrive?",
    "In: river stone paper cloud green. What comes after paper?",
    "Repeat the message: The tablet is three weeks late.",
    "Which order? It is order P46038. The door lock shows a blank screen.",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """nano's GGUF files, with its shipped drafter's."""
    folder = make_files(tmp_path_factory.mktemp("files"))
    write_drafter_gguf(DRAFTER, WEIGHTS, folder / "drafter.gguf", learned="paid")
    return folder


def test_llamacpp_drafts_what_transformers_drafts(files, tmp_path):
    tokenizer, model = chat.load_tokenizer(WEIGHTS), load_model(WEIGHTS, weights="fp32")
    prompts = [chat.chat_prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    rows = record_states(model, prompts, tmp_path, answer_tokens=48, batch=8)
    table = TargetTable(model.get_input_embeddings().weight.detach(), 30.0)
    drafter = load_drafter(DRAFTER)
    told = []
    with TimedGguf(files / "bf16/model.gguf", context=256, drafter=files / "drafter.gguf", drafted=4) as gguf:
        for number in range(len(rows)):
            row = rows[number]
            places = len(row) - row.asked - 1
            right = drafts_right(
                drafter, table, DraftBatch.of([row], "cpu", torch.float32), 4, clusters=False
            )[0, :places].tolist()  # fmt: skip
            reply = gguf.timed_reply(row.ids[: row.asked].tolist(), 48)
            assert reply.tokens == row.ids[row.asked :].tolist()
            told.append((engine_steps(right), (reply.steps, reply.kept)))
    assert [ours[0] for ours, _ in told] == [theirs[0] for _, theirs in told]
    # llama.cpp may count the token that ends an answer as its own.
    assert all(0 <= ours[1] - theirs[1] <= 1 for ours, theirs in told)
    steps, kept = (sum(theirs[part] for _, theirs in told) for part in (0, 1))
    assert kept > steps, "the shipped drafter knows nano"


def test_answers_are_those_without_a_drafter(files):
    tokenizer = chat.load_tokenizer(WEIGHTS)
    with (
        TimedGguf(files / "q4_0/model.gguf", context=256) as alone,
        TimedGguf(files / "q4_0/model.gguf", context=256, drafter=files / "drafter.gguf", drafted=2) as drafted,
    ):
        for question in QUESTIONS:
            ids = chat.chat_prompt_ids(tokenizer, [{"role": "user", "content": question}])
            plain, quick = alone.timed_reply(ids, 40), drafted.timed_reply(ids, 40)
            assert plain.tokens == quick.tokens
            assert (plain.steps, plain.drafted, plain.kept) == (len(plain.tokens) - 1, 0, 0)
            assert quick.drafted == 2 * quick.steps


@pytest.mark.parametrize("kind", ["e2b", "moe", "dense31", "unified"])
def test_every_kind_of_gemma_4_runs_with_its_drafter(tmp_path, kind):
    target = tiny_models.save(kind, tmp_path / "model")
    quantizing.write_formats(tmp_path, quantizing.MergedCheckpoint(target), ["bf16"], 1, {"bf16": "any"})
    drafter = tiny_drafters.save_tiny_drafter(target, tmp_path / "drafter", clusters=32 if kind == "e2b" else 0)
    write_drafter_gguf(drafter, target, tmp_path / "drafter.gguf")
    prompt = [2, 105, 300, 301, 302]
    with (
        TimedGguf(tmp_path / "bf16/model.gguf", context=128) as alone,
        TimedGguf(tmp_path / "bf16/model.gguf", context=128, drafter=tmp_path / "drafter.gguf", drafted=2) as drafted,
    ):
        assert alone.timed_reply(prompt, 12).tokens == drafted.timed_reply(prompt, 12).tokens


def test_the_file_says_what_it_learned_and_brings_no_clusters(files):
    import gguf

    reader = gguf.GGUFReader(files / "drafter.gguf")
    assert reader.get_field("general.architecture").contents() == "gemma4-assistant"
    assert reader.get_field("gemma_ops.learned").contents() == "paid"
    assert reader.get_field("gemma4-assistant.nextn_predict_layers").contents() == 4
    assert reader.get_field("gemma4-assistant.embedding_length_out").contents() == 128
    names = {tensor.name for tensor in reader.tensors}
    assert {"nextn.pre_projection.weight", "nextn.post_projection.weight", "rope_freqs.weight"} <= names
    assert not any("masked" in name or "attn_k" in name for name in names)


def test_what_llamacpp_cant_run_is_refused(tmp_path):
    target = tiny_models.save("dense31", tmp_path / "model")
    wide = tiny_drafters.save_tiny_drafter(target, tmp_path / "wide", hidden=64)
    with pytest.raises(ModelError, match="as wide as its target"):
        write_drafter_gguf(wide, target, tmp_path / "drafter.gguf")
    drafter = tiny_drafters.save_tiny_drafter(target, tmp_path / "drafter")
    _rename(drafter / "model.safetensors", "post_projection.weight", "post_projector.weight")
    with pytest.raises(ModelError, match="no place for post_projector"):
        write_drafter_gguf(drafter, target, tmp_path / "drafter.gguf")
    with pytest.raises(ModelError, match="no value for 1 parameters of a drafter, among them post_projection"):
        load_drafter(drafter)
    assert not (tmp_path / "drafter.gguf").exists()


def _rename(file, old, new):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors[new] = tensors.pop(old)
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_shipped_drafter_is_small_and_as_googles_are():
    config = json.loads((DRAFTER / "config.json").read_text())
    assert (DRAFTER / "model.safetensors").stat().st_size < 1_000_000
    assert config["architectures"] == ["Gemma4AssistantForCausalLM"]
    assert config["use_ordered_embeddings"]
    assert config["text_config"]["num_kv_shared_layers"] == config["text_config"]["num_hidden_layers"] == 4
