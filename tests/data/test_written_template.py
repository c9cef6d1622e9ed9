"""The chat template as plain Python against the template itself, over random conversations of every shape."""

from __future__ import annotations

import random

import pytest

from gemma_ops.data import template
from gemma_ops.data.template import inference_template, render_template, training_template
from gemma_ops.errors import DataError
from tests.helpers.conversations import CONVERSATIONS, EDGE, TEXTS, VALUES, conversation

SOURCES = {
    "training": training_template(),
    "small": inference_template(),
    "large": inference_template(empty_thought=True),
    "google": EDGE.read_text(encoding="utf-8"),
}
ODD = [
    *TEXTS, "", " ", "\n", "\u00a0 x \u2003", "\x1c a \x85", "<channel|>", "a<|channel>b<channel|>c", "{{ bos_token }}",
    "{% if %}", "ß İ ǅ", '<|"|>', "&amp; & <", "\u200b", "x\r\ny",
]  # fmt: skip
LEAVES = [*VALUES, "ß İ", "", 0, -1, 10**20, 1e-9, 1e22, 0.1, -0.0, {"Z": 1, "a": 2, "B": [{}], "b": None}, [[], {}]]
ROLES = ["user", "user", "assistant", "assistant", "assistant", "model", "system", "developer", "tool", "critic"]
STRANGE = [None, 3, True, {}, {"a": 1}, ("x",), [None], ["x"], [{"type": "text"}], [{"text": "x"}], b"x"]


def odd_text(draw):
    return "".join(draw.choice(ODD) for _ in range(draw.randrange(1, 3)))


def odd_parts(draw):
    kinds = ["image", "image_url", "audio", "input_audio", "video", "other"]
    return [
        {"type": "text", "text": odd_text(draw)} if draw.random() < 0.6 else {"type": draw.choice(kinds)}
        for _ in range(draw.randrange(4))
    ]


def odd_schema(draw, depth=0):
    kinds = ["string", "integer", "number", "boolean", "array", "object", "String"]
    schema = {"type": draw.choice(kinds)}
    if draw.random() < 0.5:
        schema["description"] = odd_text(draw)
    if draw.random() < 0.3:
        schema["enum"] = draw.choice([["a", "b"], [], [1, None], ["x<"]])
    if draw.random() < 0.2:
        schema["nullable"] = draw.random() < 0.5
    if depth < 2 and draw.random() < 0.4:
        schema["items"] = draw.choice([{}, odd_schema(draw, depth + 1), {"type": ["string", "null"], "x": None}])
    if depth < 2 and draw.random() < 0.4:
        schema["properties"] = {
            draw.choice(["b", "B", "a", "type", "x y"]): odd_schema(draw, depth + 1) for _ in range(draw.randrange(3))
        }
    if draw.random() < 0.3:
        schema["required"] = draw.choice([[], ["a"], ["b", "a"]])
    if draw.random() < 0.1:
        del schema["type"]
    if draw.random() < 0.1:
        schema[draw.choice(["default", "format", "additionalProperties", "minimum"])] = draw.choice(LEAVES)
    return schema


def odd_tools(draw):
    found = []
    for name in "fg"[: draw.randrange(3)]:
        function = {"name": name, "description": odd_text(draw), "parameters": odd_schema(draw)}
        for key in ("description", "parameters"):
            if draw.random() < 0.1:
                del function[key]
        if draw.random() < 0.1:
            function["response"] = {"type": "object", "description": "d"}
        found.append({"type": "function", "function": function})
    return found


def odd_call(draw, number):
    arguments = {draw.choice(["a", "B", "b", "x<"]): draw.choice(LEAVES) for _ in range(draw.randrange(4))}
    made = {"type": "function", "function": {"name": draw.choice("fg"), "arguments": arguments}}
    if draw.random() < 0.05:
        made["function"]["arguments"] = draw.choice([None, "{}"])
    return made | ({"id": f"c{number}"} if draw.random() < 0.9 else {})


def odd_message(draw):
    """A message as somebody may have written it: keys and values of every kind, seldom one that nothing knows."""
    message = {"role": draw.choice(ROLES), "content": odd_text(draw) if draw.random() < 0.7 else odd_parts(draw)}
    if draw.random() < 0.3:
        message[draw.choice(["reasoning", "reasoning_content"])] = draw.choice([odd_text(draw), "", None])
    if draw.random() < 0.3:
        message["tool_calls"] = [odd_call(draw, number) for number in range(draw.randrange(3))]
    if draw.random() < 0.15:
        message["tool_responses"] = [
            {"name": draw.choice(["f", "", None]), "response": draw.choice(LEAVES)} for _ in range(draw.randrange(3))
        ]
    if message["role"] == "tool":
        message |= {key: value for key, value in (("tool_call_id", "c0"), ("name", "g")) if draw.random() < 0.7}
    if draw.random() < 0.05:
        message[draw.choice(["content", "reasoning", "name"])] = draw.choice(STRANGE)
    if draw.random() < 0.02:
        del message["content"]
    return message


def odd_conversation(draw):
    return [odd_message(draw) for _ in range(draw.randrange(6))], odd_tools(draw) if draw.random() < 0.4 else None


def rendered(source, messages, tools, variables):
    try:
        found = render_template(source, messages, tools, **variables)
    except DataError as error:
        return str(error.what)
    except Exception as error:
        return type(error)
    return found.text, found.spans


def variables_of(draw, source):
    names = ["add_generation_prompt", "enable_thinking", "preserve_thinking", "empty_thought"]
    return {name: draw.random() < 0.5 for name in names if draw.random() < 0.7}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("make", [conversation, odd_conversation])
def test_plain_python_renders_what_the_template_renders(source, make, monkeypatch):
    draw = random.Random(f"{source} {make.__name__}")
    cases = []
    for _ in range(8 * CONVERSATIONS):
        messages, tools = make(draw)
        cases.append((SOURCES[source], messages, tools, variables_of(draw, source)))
    known = [template._written(text, *rest) is not None for text, *rest in cases]
    # Those of the contract are all known; of the odd ones enough for the comparison to mean something.
    assert all(known) if make is conversation else sum(known) > len(known) / 3
    ours = [rendered(*case) for case in cases]
    monkeypatch.setattr(template, "_written", lambda *_: None)
    for case, found in zip(cases, ours, strict=True):
        assert rendered(*case) == found, case[1:]
    if source == "training":
        assert any(found[1] for found in ours if isinstance(found, tuple))
