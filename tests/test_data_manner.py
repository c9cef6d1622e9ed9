"""Thinking modes and which answers carry loss, for the templates of small and large sizes."""

from __future__ import annotations

import json

import pytest

from gemma_ops.data import chat
from gemma_ops.data.tokens import NO_LOSS, Manner, encode_rows
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
    (row,) = encode_rows(tmp_path / "rows.jsonl", tokenizer, manner, max_length=None)
    scored = [label for label in row["labels"] if label != NO_LOSS]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)  # noqa: E731
    return decode(row["input_ids"]), decode(scored)


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
def test_keep_empty_prefix_leaves_thinking_alone_on_rows_without_thoughts(tokenizer, tmp_path, large):
    manner = Manner(empty_thought=large, thinking="keep-empty-prefix")
    text, scored = shown(tokenizer, tmp_path, PLAIN, manner)
    assert text.count(EMPTY) == 2
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
