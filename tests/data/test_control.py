"""Content never becomes a control token: rows are rejected, questions refused or spelled out."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import AddedToken

from gemma_ops.answer import Prompt
from gemma_ops.data import chat, control
from gemma_ops.data.normal import conversation as normal
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.evaluation.ask_targets import refuse_control_questions
from gemma_ops.nano import WEIGHTS
from tests.helpers.conversations import CONVERSATIONS, conversation, templates

ROWS = 20 * CONVERSATIONS
EDGE = templates()["E2B"]
ASK = {"role": "user", "content": "Q"}
SAY = {"role": "assistant", "content": "A"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"k": "v"}}}
USED = [
    ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "r"},
    SAY,
]
TOOL = {
    "type": "function",
    "function": {
        "name": "g",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return chat.load_tokenizer(WEIGHTS)


def strewn(draw, value, odd, *, free=False):
    """A JSON value with `odd` put into some of its texts, and into keys where any may stand (`free`)."""
    if isinstance(value, str):
        at = draw.randrange(len(value) + 1)
        return value if draw.random() < 0.8 else value[:at] + odd + value[at:]
    if isinstance(value, dict):
        return {
            strewn(draw, key, odd) if free else key: item
            if key in ("role", "type", "id", "tool_call_id")
            else strewn(draw, item, odd, free=key in ("arguments", "properties", "response"))
            for key, item in value.items()
        }
    return [strewn(draw, item, odd) for item in value] if isinstance(value, list) else value


def controls(tokenizer, ids):
    known = {tokenizer.token_to_id(token) for token in control.control_tokens(tokenizer)}
    return [token for token in ids if token in known]


def harmless(value):
    """The same conversation with no `<` in it, the model's channels stripped: what is left are the template's
    tokens."""
    if isinstance(value, str):
        return value.replace("<", "(")
    if isinstance(value, dict):
        if value.get("role") == "assistant":
            value = {**value, "content": control.stripped(value["content"])}
        return {harmless(key): harmless(item) for key, item in value.items()}
    return [harmless(item) for item in value] if isinstance(value, list | tuple) else value


def test_no_row_and_no_question_becomes_structure(tokenizer):
    draw = random.Random(11)
    rejected = spelled = 0
    codes, reasons = set(), set()
    for _ in range(ROWS):
        odd = draw.choice([*control.CONTROL, "<|tu", "rn>", "<|turn ", "<", "|>", "channel|>"])
        messages, tools = strewn(draw, list(conversation(draw)), odd)
        try:
            turns, declared, _ = normal(messages, tools)
        except RowError as error:
            codes.add(error.code)
            rejected += 1
        else:
            thinking = draw.random() < 0.5
            made = chat.examples(tokenizer, turns, declared, template=EDGE, thinking=thinking)
            plain = chat.examples(tokenizer, harmless(turns), harmless(declared), template=EDGE, thinking=thinking)
            ids = [controls(tokenizer, one.ids) for one in made]
            assert ids == [controls(tokenizer, one.ids) for one in plain], (messages, tools)
        question = messages[: 1 + max(index for index, turn in enumerate(messages) if turn["role"] == "user")]
        asked = chat.prompt(tokenizer, question, tools, template=EDGE, control="spell")
        plain = chat.prompt(tokenizer, harmless(question), harmless(tools), template=EDGE)
        assert controls(tokenizer, asked.ids) == controls(tokenizer, plain.ids), (question, tools)
        try:
            refused = chat.prompt(tokenizer, question, tools, template=EDGE)
            assert refused.ids == asked.ids  # what is not shown (an earlier thought) needs no refusal
        except DataError as error:
            reasons.add(error.what.partition(" token ")[0])
            spelled += 1
    assert codes <= {"control_token", "doubled_bos", "tool_without_call"}
    assert reasons == {"the conversation's own text spells the control"}
    assert rejected > ROWS / 4
    assert spelled > ROWS / 8


PLACES = {
    "an argument": [ASK, {**USED[1], "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"k": ["X"]}}}]},
        *USED[2:]],
    "a key of arguments": [ASK, {**USED[1], "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"X": 1}}}]},
        *USED[2:]],
    "a function's name": [ASK, {**USED[1], "tool_calls": [{**CALL, "function": {"name": "fX", "arguments": {}}}]},
        *USED[2:]],
    "a response's name": [ASK, {**USED[1], "tool_responses": [{"name": "fX", "response": 1}]}, SAY],
    "a response": [ASK, {**USED[1], "tool_responses": [{"name": "f", "response": {"k": "X"}}]}, SAY],
    "a tool's result": [*USED[:2], {**USED[2], "content": "X"}, SAY],
    "reasoning": [ASK, {**SAY, "reasoning": "aXb"}],
    "an answer": [ASK, {**SAY, "content": "aXb"}],
    "a question": [{**ASK, "content": "aXb"}, SAY],
    "a system turn": [{"role": "system", "content": "aXb"}, ASK, SAY],
    "parts joined": [{**ASK, "content": [{"type": "text", "text": "Y"}, {"type": "text", "text": "Z"}]}, SAY],
}  # fmt: skip


@pytest.mark.parametrize("token", ["<|turn>", '<|"|>', "<pad>", "<mask>", "<unk>", "<|image|>", "<|video|>"])
@pytest.mark.parametrize("place", PLACES)
def test_a_row_that_would_need_a_control_token_is_rejected_with_its_reason(place, token):
    head, tail = token[:2], token[2:]
    put = {"X": token, "Y": head, "Z": tail}

    def filled(value):
        if isinstance(value, str):
            for letter, text in put.items():
                value = value.replace(letter, text)
            return value
        if isinstance(value, dict):
            return {filled(key): filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else value

    with pytest.raises(RowError) as caught:
        normal(filled(PLACES[place]))
    assert caught.value.code == "control_token"
    assert token in caught.value.reason


@pytest.mark.parametrize("spot", ["name", "description", "parameter"])
def test_the_tools_of_a_row_are_looked_at_too(spot):
    function = json.loads(json.dumps(TOOL["function"]))
    if spot == "parameter":
        function["parameters"]["properties"] = {"a<|think|>": {"type": "string"}}
    else:
        function[spot] += "<|think|>"
    with pytest.raises(RowError, match=r"<\|think\|>"):
        normal([ASK, SAY], [{"type": "function", "function": function}])


def test_a_token_that_only_this_tokenizer_calls_special_is_refused_too(tokenizer):
    other = type(tokenizer).from_str(tokenizer.to_str())
    other.add_special_tokens([AddedToken("[odd]", special=True, normalized=False)])
    with pytest.raises(DataError, match=r"\[odd\]"):
        chat.prompt(other, [{**ASK, "content": "an [odd] one"}])
    asked = chat.prompt(other, [{**ASK, "content": "an [odd] one"}], control="spell")
    assert other.token_to_id("[odd]") not in asked.ids
    assert "an [odd] one" in asked.text


def test_spelled_out_text_reads_as_it_was_written(tokenizer):
    text = 'What does <|turn> do, and <|"|> or <turn|>?'
    asked = chat.prompt(tokenizer, [{**ASK, "content": text}], control="spell")
    assert asked.text == f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n"
    assert tokenizer.decode(asked.ids, skip_special_tokens=False) == asked.text
    assert "".join(asked.text[start:end] for start, end in asked.offsets) == asked.text


def test_the_models_own_channels_are_stripped_as_templates_strip_them(tokenizer):
    said = {"role": "assistant", "content": "a <|channel>x<channel|> b < c"}
    history = [ASK, said, ASK]
    whole = chat.render_template(EDGE, history, add_generation_prompt=True).text
    assert chat.prompt(tokenizer, history, template=EDGE).text == whole


class _Target:
    name, lockstep = "tuned", True


def test_questions_are_refused_before_anything_is_asked():
    class Task:
        name, rows = "shelf", [Prompt([ASK], id="q1"), Prompt([{**ASK, "content": "a <turn|> b"}], id="q2")]

    with pytest.raises(DataError, match=r"question q2 spells the control token <turn\|>"):
        refuse_control_questions([_Target()], [Task()])
    _Target.lockstep = False
    refuse_control_questions([_Target()], [Task()])
