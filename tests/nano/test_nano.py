"""nano is a Gemma 4 in every mechanism, has learned what it should and not what it shouldn't, and can be built
again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gemma_ops.data import chat
from gemma_ops.nano import WEIGHTS, lessons, nano_shape, pretrain, tickets
from gemma_ops.runs import digest

TASK = Path(__file__).parents[2] / "eval" / "support_desk"


def test_it_has_every_mechanism_of_gemma_4():
    config = json.loads((WEIGHTS / "config.json").read_text())
    text = config["text_config"]
    assert config["architectures"] == ["Gemma4ForConditionalGeneration"]
    assert text["num_kv_shared_layers"] == 3
    assert text["use_double_wide_mlp"]
    assert text["hidden_size_per_layer_input"] == 32
    assert set(text["layer_types"]) == {"sliding_attention", "full_attention"}
    assert text["final_logit_softcapping"] == 30.0
    assert text["tie_word_embeddings"]


def test_it_fits_into_5_mb_and_is_safetensors_only():
    files = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert files["model.safetensors"] <= 5_000_000
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth"))}


def test_its_tokenizer_has_gemmas_ids_and_loses_nothing():
    tokenizer = chat.load_tokenizer(WEIGHTS)
    assert {index: tokenizer.id_to_token(index) for index in nano_shape.SPECIAL} == nano_shape.SPECIAL
    for text in ("Route this: é 😀 日本\n\ttab", "order K37519", '{"a": [1, 2.5]}', "  two  spaces "):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_its_template_is_gemmas():
    assert (WEIGHTS / "chat_template.jinja").read_text(encoding="utf-8") == chat.inference_template()
    stops = json.loads((WEIGHTS / "generation_config.json").read_text())["eos_token_id"]
    assert stops == list(nano_shape.STOPS)


@pytest.fixture(scope="module")
def model():
    import torch

    from gemma_ops.modeling.load import load_model

    torch.set_num_threads(1)
    return load_model(WEIGHTS, weights="fp32")


def share_right(model, questions, answers):
    from gemma_ops.modeling.generate import answer_prompts

    tokenizer = chat.load_tokenizer(WEIGHTS)
    prompts = [chat.chat_prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    given = [item.text for item in answer_prompts(model, tokenizer, prompts, max_new_tokens=96, batch_size=32)]
    return sum(one == two for one, two in zip(given, answers, strict=True)) / len(answers)


@pytest.mark.parametrize(
    "make, least",
    [
        (lessons._repeat, 0.6),
        (lessons._to_json, 0.6),
        (lessons._repeat_message, 0.8),
        (lessons._topic, 0.9),
        (lessons._ticket_question, 0.75),
    ],
)
def test_it_has_learned_to_read_copy_and_answer(model, make, least):
    rng = random.Random(f"held out {make.__name__}")
    items = [make(rng) for _ in range(64)]
    assert share_right(model, [item.question for item in items], [item.answer for item in items]) >= least


def test_it_has_not_learned_to_route(model):
    rows = tickets.test_rows(48, seed=11)
    assert share_right(model, [row["prompt"] for row in rows], [row["reference"] for row in rows]) == 0.0


def test_a_shortened_rebuild_ends_with_the_same_bytes(tmp_path):
    losses = [pretrain.pretrain(tmp_path / name, steps=4, rows=4, corpus_lines=300) for name in ("one", "two")]
    assert losses[0] == losses[1]
    assert digest.of_path(tmp_path / "one") == digest.of_path(tmp_path / "two")
    other = pretrain.pretrain(tmp_path / "three", steps=4, rows=4, corpus_lines=300, seed=21)
    assert other != losses[0]


def test_the_shipped_rows_are_the_generators(tmp_path):
    tickets.write_tickets(tmp_path)
    for name in ("train.jsonl", "data.jsonl"):
        assert (tmp_path / name).read_bytes() == (TASK / name).read_bytes()


def test_test_frames_and_names_are_new():
    assert not set(tickets.TRAINING_FRAMES) & set(tickets.TEST_FRAMES)
    train = [json.loads(row["messages"][1]["content"]) for row in tickets.training_rows(3000, 1)]
    test = [json.loads(row["reference"]) for row in tickets.test_rows(300, 1)]
    orders = {row["order"] for row in train if row["order"]}
    assert sum(row["order"] in orders for row in test) <= 3
    names = {row["customer"] for row in train}
    assert sum(row["customer"] in names for row in test) / len(test) < 0.2


def test_every_combination_occurs():
    rows = [tickets.ticket(random.Random(seed)) for seed in range(2000)]
    assert {(row.routing["category"], row.routing["priority"]) for row in rows} == {
        (category, priority) for category in tickets.ISSUES for priority in tickets.CUES
    }
    assert {row.routing["product"] for row in rows} == set(tickets.PRODUCTS)
    assert all((row.routing["order"] or "") in row.text and row.routing["customer"] in row.text for row in rows)
