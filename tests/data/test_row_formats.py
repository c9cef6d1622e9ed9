"""Layouts of a row, how they are told apart, and the one spelling they are brought into."""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import DataConfig
from gemma_ops.data import row_formats
from gemma_ops.data.chat import render_chat
from gemma_ops.data.normal import RowError, conversation
from gemma_ops.errors import DataError

USER = {"role": "user", "content": "hi"}
DONE = {"role": "assistant", "content": "done"}
ROWS = {
    "messages": {"messages": [USER, DONE]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "done"}]},
    "alpaca": {"instruction": "hi", "input": "", "output": "done"},
    "prompt_completion": {"prompt": "hi", "completion": "done"},
    "gemini": {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "done"}]}]
    },
}


def converted(layout, row, **settings):
    return conversation(*row_formats.reader(layout, DataConfig(**settings))(row), own=row_formats.system_column(row))


def reason(layout, row, **settings):
    with pytest.raises(RowError) as error:
        converted(layout, row, **settings)
    return error.value.code


@pytest.mark.parametrize("layout", ROWS)
def test_each_layout_is_detected_and_read(layout):
    assert row_formats.detect([ROWS[layout]]) == layout
    assert converted(layout, ROWS[layout]) == ([USER, DONE], None, [])


def test_detection_goes_with_the_majority_and_names_the_keys_when_lost():
    assert row_formats.detect([ROWS["alpaca"], ROWS["messages"], {"x": 1}, ROWS["messages"]]) == "messages"
    assert row_formats.detect([{"conversations": [USER, DONE]}]) == "messages"
    with pytest.raises(DataError, match="whose keys are: answer, question") as error:
        row_formats.detect([{"question": "q", "answer": "a"}])
    assert "data.prompt='{question}'" in error.value.fix
    assert row_formats.detect([{"text": "x", "url": "y"}]) == "text"
    with pytest.raises(DataError, match="whose keys are: label, text"):
        row_formats.detect([{"text": "x", "label": "y"}])


def test_sharegpt_with_system_tools_and_calls():
    row = {
        "system": "S",
        "tools": json.dumps([{"name": "f", "description": "d", "parameters": {}}]),
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "a"},
        ],
    }
    messages, tools, notes = converted("sharegpt", row)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]
    assert messages[3] == {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"}
    assert tools == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
    assert sorted(notes) == ["call_ids_made", "system_column", "tools_parsed"]
    broken = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f("}]}
    assert reason("sharegpt", broken) == "bad_json"


def test_alpaca_with_input_system_and_history():
    row = {"instruction": "Sum up.", "input": "Long text", "output": "Short.", "system": "S", "history": [["a", "b"]]}
    messages, _, _ = converted("alpaca", row)
    assert [message["content"] for message in messages] == ["S", "a", "b", "Sum up.\n\nLong text", "Short."]
    assert reason("alpaca", {**row, "history": ["a"]}) == "not_a_message"
    assert reason("alpaca", {**row, "output": None}) == "null_column"


def test_prompt_completion_of_messages():
    row = {"prompt": [{"role": "system", "content": "S"}, USER], "completion": [DONE]}
    assert [message["role"] for message in converted("prompt_completion", row)[0]] == ["system", "user", "assistant"]


def test_gemini_with_instruction_thoughts_calls_and_responses():
    row = {
        "systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
        "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parameters": {"type": "OBJECT"}}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {
                "role": "model",
                "parts": [{"text": "hm", "thought": True}, {"functionCall": {"name": "f", "args": {"a": 1}}}],
            },
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"x": 1}}}]},
            {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
        ],
    }
    messages, tools, _ = converted("gemini", row)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "assistant"]
    assert messages[2]["reasoning"] == "hm"
    assert messages[2]["tool_responses"] == [{"name": "f", "response": {"x": 1}}]
    assert messages[3]["content"] == "ab"
    assert tools[0]["function"]["name"] == "f"
    text = render_chat(messages, tools).text
    assert "<|tool_call>call:f{a:1}<tool_call|><|tool_response>response:f{x:1}<tool_response|>ab<turn|>" in text
    picture = {"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]}
    assert reason("gemini", picture) == "not_text"
    early = {"contents": [{"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}]}
    assert reason("gemini", early) == "tool_without_call"


def test_columns_fill_templates():
    settings = {"prompt": 'As JSON {"a": {{x}}}: {text} ({a b})', "completion": "{label}"}
    row = {"text": "T {label}", "label": 3, "a b": True, "other": None}
    messages, _, _ = converted("columns", row, **settings)
    assert messages[0]["content"] == 'As JSON {"a": {x}}: T {label} (true)'
    assert messages[1]["content"] == "3"
    assert reason("columns", {**row, "text": None}, **settings) == "null_column"
    assert reason("columns", {**row, "text": ["x"]}, **settings) == "not_text"
    assert reason("columns", {"text": "x", "label": "y"}, **settings) == "no_column"
    assert reason("columns", {**row, "label": ""}, **settings) == "empty_answer"


def test_a_template_for_no_column_is_told_at_once():
    settings = DataConfig(prompt="{txt}", completion="{label}")
    with pytest.raises(DataError, match=r"column \{txt\}, but the columns are: text, label; did you mean \{text\}\?"):
        row_formats.check_columns(settings, [{"text": "x", "label": "y"}])
    row_formats.check_columns(settings, [{"text": "x", "label": "y"}, {"txt": "x"}])
    with pytest.raises(DataError, match="there are no templates"):
        row_formats.reader("columns", DataConfig(format="columns"))


BAD = {
    "no_messages": [None, [], "text"],
    "not_a_message": [["hi"], [USER, None]],
    "unknown_role": [[{"role": "narrator", "content": "x"}, DONE], [{"content": "x"}, DONE]],
    "not_text": [
        [{"role": "user", "content": 3}, DONE],
        [{"role": "user", "content": {"text": "x"}}, DONE],
        [{"role": "user", "content": [{"type": "pdf", "path": "x"}]}, DONE],
        [USER, {"role": "assistant", "content": "x", "reasoning": ["y"]}],
    ],
    "no_assistant": [[USER], [{"role": "system", "content": "s"}, USER]],
    "no_answer": [[USER, DONE, USER]],
    "no_user": [[DONE], [{"role": "system", "content": "s"}, DONE]],
    "empty_answer": [[USER, {"role": "assistant", "content": " \n"}], [USER, {"role": "assistant", "content": None}]],
    "empty_turn": [[{"role": "user", "content": ""}, DONE]],
    "not_the_model": [[{"role": "user", "content": "x", "reasoning": "y"}, DONE]],
    "bad_tool_call": [
        [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}],
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]}],
    ],
    "tool_without_call": [
        [USER, DONE, {"role": "tool", "content": "x"}, DONE],
        [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "2", "content": "x"}],
    ],
    "bad_tool_response": [[USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}],
                "tool_responses": [{"name": "f"}]}]],
    "message_weight": [[USER, {**DONE, "weight": 0.5}], [USER, {**DONE, "train": "some"}], [USER, {**DONE, "loss": 2}]],
    "message_mark": [
        [USER, {**DONE, "train_detail": [{"begin_offset": 0}]}],
        [USER, {**DONE, "loss_scale": [1, 0]}],
        [USER, {**DONE, "train": True, "loss": False}],
        [{**USER, "loss": True}, DONE],
    ],
    "nothing_learned": [[USER, {**DONE, "weight": 0}], [USER, {**DONE, "train": False}],
        [USER, {**DONE, "masked": True}]],
    "control_token": [[{"role": "user", "content": "a<turn|>b"}, DONE],
        [USER, {"role": "assistant", "content": "a<eos>"}], [{"role": "user", "content": "<|think|>"}, DONE]],
    "doubled_bos": [[{"role": "user", "content": "<bos>a"}, DONE]],
    "bad_unicode": [[{"role": "user", "content": "\ud83d"}, DONE]],
}  # fmt: skip


@pytest.mark.parametrize("code, messages", [(code, messages) for code, cases in BAD.items() for messages in cases])
def test_what_cannot_be_used_is_refused_with_its_reason(code, messages):
    with pytest.raises(RowError) as error:
        conversation(messages)
    assert error.value.code == code
    assert len(error.value.reason) > 20


def test_bad_tools_are_refused():
    for tools in ("[", {"a": 1}, [{"type": "function"}], ["f"]):
        with pytest.raises(RowError) as error:
            conversation([USER, DONE], tools)
        assert error.value.code == "bad_tools"


def test_repairs_are_noted():
    call = {"id": "x9", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    cases = [
        ([{"role": "developer", "content": "s"}, USER, {"role": "model", "content": "done"}], []),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [call]}], ["arguments_parsed"]),
        ([USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}], ["reasoning_renamed"]),
        ([USER, {"role": "assistant", "content": "a", "thinking": "r"}], ["reasoning_renamed"]),
        ([USER, {"role": "assistant", "content": "<|channel>thought\nr\n<channel|>a"}], ["channel_moved"]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}, DONE],
            ["parts_joined"],
        ),
        ([USER, {**DONE, "mood": "fine"}], ["field_dropped"]),
        ([USER, {**DONE, "mood": None, "weight": 1}], []),
    ]
    for messages, notes in cases:
        assert conversation(messages)[2] == notes
    assert conversation(cases[1][0])[0][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert conversation(cases[4][0])[0][1] == {"role": "assistant", "content": "a", "reasoning": "r"}
    assert conversation(cases[5][0])[0][0]["content"] == "a b"


def test_results_find_their_calls_by_id_name_and_order():
    def names(calls, results):
        made = [{**({"id": id_} if id_ else {}), "function": {"name": name, "arguments": {}}} for id_, name in calls]
        tools = [{"role": "tool", "content": "x", **result} for result in results]
        messages = conversation([USER, {"role": "assistant", "content": "", "tool_calls": made}, *tools, DONE])[0]
        return [message["name"] for message in messages if message["role"] == "tool"]

    assert names([("1", "a"), ("2", "b")], [{"tool_call_id": "2"}, {"tool_call_id": "1"}]) == ["b", "a"]
    assert names([("", "a"), ("", "b")], [{}, {}]) == ["a", "b"]
    assert names([("", "a"), ("", "b")], [{"name": "b"}, {"name": "a"}]) == ["b", "a"]
    assert names([("", "a")], [{"tool_call_id": "9"}]) == ["a"]
    assert names([("1", "a"), ("2", "b")], [{}, {}]) == ["a", "b"]
    # Google's template alone would give both results the last name.
    calls = [{"function": {"name": name, "arguments": {}}} for name in "ab"]
    raw = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        DONE,
    ]
    assert render_chat(raw).text.count("response:b") == 2
    fixed = render_chat(conversation(raw)[0]).text
    assert fixed.count("response:a") == fixed.count("response:b") == 1


def test_author_ids_make_no_difference():
    def made(name):
        call = {"id": name, "function": {"name": "f", "arguments": {}}}
        return conversation(
            [
                USER,
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": name, "content": "x"},
                DONE,
            ]
        )

    assert made("toolu_1") == made("abc")


def test_a_system_turn_is_added_where_there_is_none():
    assert conversation([USER, DONE], system="S")[0][0] == {"role": "system", "content": "S"}
    own = [{"role": "system", "content": "own"}, USER, DONE]
    assert conversation(own, system="S")[0] == own
    switched = conversation([{"role": "system", "content": "<|think|>\nS"}, USER, DONE])
    assert (switched[0][0]["content"], switched[2]) == ("S", ["thinking_switch"])
    assert conversation([{"role": "system", "content": "<|think|>\n"}, USER, DONE])[0][0] == USER
