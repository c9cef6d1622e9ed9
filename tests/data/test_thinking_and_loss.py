"""Thinking modes and which answers carry loss, for the templates of small and large sizes."""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import DataConfig
from gemma_ops.data import answer_tables, chat
from gemma_ops.data.answer_tables import Encoding
from gemma_ops.data.arrow import token_table
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.row_tokens import NO_LOSS, Manner, encode_rows
from gemma_ops.nano import WEIGHTS

PLAIN = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]
THOUGHT = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2", "reasoning": "one and one"}]
EMPTY = "<|channel>thought\n<channel|>"


@pytest.fixture(scope="module")
def tokenizer():
    return chat.load_tokenizer(WEIGHTS)


def shown(tokenizer, tmp_path, messages, manner):
    """The text of a row, and the part of it that carries loss."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    rows = list(encode_rows(tmp_path / "rows.jsonl", tokenizer, manner, max_length=None))
    scored = [label for row in rows for label in row["labels"] if label != NO_LOSS]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)  # noqa: E731
    return "".join(decode(row["input_ids"]) for row in rows), decode(scored)


@pytest.mark.parametrize("large", [False, True])
def test_off_follows_the_checkpoint(tokenizer, tmp_path, large):
    text, scored = shown(tokenizer, tmp_path, PLAIN, Manner(empty_thought=large))
    assert text.count(EMPTY) == (2 if large else 0)
    assert "<|think|>" not in text
    assert EMPTY not in scored


@pytest.mark.parametrize("large", [False, True])
def test_on_asks_for_thoughts_and_trains_them(tokenizer, tmp_path, large):
    text, scored = shown(tokenizer, tmp_path, THOUGHT, Manner(empty_thought=large, thinking="on"))
    assert "<|think|>" in text
    assert "one and one" in scored
    text, _ = shown(tokenizer, tmp_path, PLAIN, Manner(empty_thought=large, thinking="on"))
    assert EMPTY not in text


@pytest.mark.parametrize("large", [False, True])
def test_mixed_asks_for_thoughts_where_a_row_holds_one(tokenizer, tmp_path, large):
    manner = Manner(empty_thought=large, thinking="mixed")
    text, scored = shown(tokenizer, tmp_path, PLAIN, manner)
    assert text.count(EMPTY) == (2 if large else 0)
    assert "<|think|>" not in text
    assert EMPTY not in scored
    text, scored = shown(tokenizer, tmp_path, THOUGHT, manner)
    assert "<|think|>" in text
    assert "one and one" in scored


@pytest.mark.parametrize("manner", [Manner(loss_on="last"), Manner(loss_on="last", empty_thought=True)])
def test_loss_on_the_last_answer_only(tokenizer, tmp_path, manner):
    _, scored = shown(tokenizer, tmp_path, PLAIN, manner)
    assert "2" in scored
    assert "1" not in scored
    _, scored = shown(tokenizer, tmp_path, PLAIN, Manner())
    assert "1" in scored


def test_a_tool_call_after_the_last_question_belongs_to_the_last_answer(tokenizer, tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"what": "rain"}}}
    messages = [
        *PLAIN,
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ]
    _, scored = shown(tokenizer, tmp_path, messages, Manner(loss_on="last"))
    assert "look" in scored
    assert "No." in scored
    assert "dry" not in scored
    assert "2" not in scored


TOOL = {"type": "function", "function": {"name": "look", "description": "Weather", "parameters": {"type": "object"}}}


def imported(tmp_path, row):
    """A row as somebody wrote it, read from a file, as `prepare` would keep it."""
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps(row) + "\n")
    (item,) = Importer(source, DataConfig(path=str(source)))
    assert item.example, item.reason
    return item.example


@pytest.mark.parametrize("large", [False, True])
def test_openais_tool_calls_are_trained_and_what_tools_say_is_not(tokenizer, tmp_path, large):
    """Arguments as a JSON string, a null content and a result by its id: OpenAI's own form of a conversation."""
    call = {
        "id": "call_7",
        "type": "function",
        "function": {"name": "look", "arguments": '{"place": "Oslo", "days": 2}'},
    }
    row = imported(
        tmp_path,
        {
            "messages": [
                {"role": "user", "content": "Rain in Oslo?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_7", "content": "snow"},
                {"role": "assistant", "content": "It is white."},
            ],
            "tools": [TOOL],
        },
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = list(encode_rows(tmp_path / "rows.jsonl", tokenizer, Manner(empty_thought=large), max_length=None))
    assert len(rows) == (2 if large else 1)
    scored = tokenizer.decode(
        [label for row in rows for label in row["labels"] if label != NO_LOSS], skip_special_tokens=False
    )
    assert 'call:look{days:2,place:<|"|>Oslo<|"|>}' in scored
    assert "<|tool_response>" in scored
    assert scored.endswith("It is white.<turn|>")
    assert "snow" not in scored
    assert "Weather" not in scored
    assert "Weather" in tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=False)


def test_a_rows_weight_reaches_its_table(tokenizer, tmp_path):
    rows = [imported(tmp_path, {"messages": PLAIN, **weight}) for weight in ({}, {"weight": 2.5})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, _ = token_table(tmp_path / "rows.jsonl", tmp_path / "tables", tokenizer, Manner(), max_length=64)
    assert made["weight"] == [1.0, 2.5]
    assert made["scored"][1] == pytest.approx(2.5 * made["scored"][0])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("thinking", ["off", "on", "mixed"])
def test_compared_answers_and_prompts_are_asked_for_in_the_same_manner(tokenizer, tmp_path, thinking, large):
    manner = Manner(empty_thought=large, thinking=thinking)
    row = {"id": "a", "messages": PLAIN[:1], "chosen": [PLAIN[1]], "rejected": [PLAIN[3]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (pair,), _ = answer_tables.pairs(tmp_path / "rows.jsonl", tmp_path / "p", Encoding(tokenizer, 128, manner), "dpo")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "messages": PLAIN[:2]}) + "\n")
    (asked,), _ = answer_tables.prompt_rows(
        tmp_path / "rows.jsonl", tmp_path / "q", Encoding(tokenizer, 128, manner), "grpo"
    )
    assert asked["prompt"] == chat.chat_prompt_ids(tokenizer, PLAIN[:1], **manner.of(PLAIN[:2]))
    assert pair["prompt_ids"] == asked["prompt"]
    text = tokenizer.decode(asked["prompt"], skip_special_tokens=False)
    assert text.count(EMPTY) == (large and thinking != "on")
    assert ("<|think|>" in text) == (thinking == "on")
    assert tokenizer.decode(pair["chosen_ids"], skip_special_tokens=False) == "1<turn|>"
