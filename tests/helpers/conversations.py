"""Random conversations as people train on them, published templates, and where an example's answers begin."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from gemma_ops.data.template import inference_template

CONVERSATIONS = int(os.environ.get("GEMMA_OPS_CONVERSATIONS", "60"))
"""How many a test tries of each kind; 1,000 takes minutes."""
EDGE = Path(find_spec("trl").origin).parent / "chat_templates" / "gemma4_v5.jinja"
EMPTY = "<|channel>thought\n<channel|>"
TEXTS = [
    "Where is it?", " spaced \n", "a\n\nb", "Größe 😀 你好", '{"a": [1, null]}', "x < y > z | <b>bold</b>", "<|turn",
    "<", "naïve — “q”",
    "<think>hm</think>", "3.5 kg\tok", "|> <",
]  # fmt: skip
VALUES = ["s", "<", 1, 2.5, True, None, [], [1, "b"], {}, {"k": "v", "a<b": [True]}, {"B": 1, "a": 2}]


def templates():
    """By size: what its checkpoints publish. Of the larger sizes Google's latest with their own ending, and the one of
    the file that `GEMMA_OPS_TEMPLATE` names, such as llama.cpp's google-gemma-4-31B-it.jinja."""
    edge = EDGE.read_text(encoding="utf-8")
    ending = "{{- '<|turn>model\\n' -}}\n    {%- elif"
    assert edge.count(ending) == 1
    closing = (
        "{{- '<|turn>model\\n' -}}{{- '' if enable_thinking else '" + EMPTY.replace("\n", "\\n") + "' -}}\n    {%- elif"
    )
    large = edge.replace(ending, closing)
    named = os.environ.get("GEMMA_OPS_TEMPLATE")
    published = Path(named).read_text(encoding="utf-8") if named else large
    ours = inference_template(empty_thought=True)
    return {"E2B": edge, "E4B": inference_template(), "12B": ours, "26B-A4B": large, "31B": published}


def text(draw):
    return draw.choice(TEXTS) + str(draw.randrange(100))


def call(draw, number, name):
    arguments = {draw.choice("abc<"): draw.choice(VALUES) for _ in range(draw.randrange(3))}
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def said(draw, **rest):
    message = {"role": "assistant", "content": text(draw), **rest}
    if draw.random() < 0.4:
        message["reasoning"] = text(draw)
    return message


def using_tools(draw):
    """One to two rounds of one or two calls with their results, in OpenAI's form or in Gemma's own."""
    turns = []
    for _ in range(draw.randrange(1, 3)):
        calls = [call(draw, len(turns) + number, draw.choice("fg")) for number in range(draw.randrange(1, 3))]
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        if draw.random() < 0.5:
            message["reasoning"] = text(draw)
        if draw.random() < 0.25:
            message["tool_responses"] = [
                {"name": item["function"]["name"], "response": draw.choice(VALUES)} for item in calls
            ]
            turns.append(message | ({"content": text(draw)} if draw.random() < 0.3 else {}))
            continue
        results = [{"role": "tool", "tool_call_id": item["id"], "content": text(draw)} for item in calls]
        turns += [message, *results]
    return turns


def conversation(draw, *, media=False):
    """A row as somebody wrote it: `messages` and `tools`, several questions, ending with an answer."""
    messages = [{"role": "system", "content": text(draw)}] if draw.random() < 0.3 else []
    for _ in range(draw.randrange(1, 5)):
        asked = text(draw)
        if media and draw.random() < 0.5:
            image = {"type": "image", "path": f"media/{draw.randrange(9)}.png", "height": 32, "width": 48}
            asked = [image, {"type": "text", "text": asked}]
        messages.append({"role": "user", "content": asked})
        if draw.random() < 0.4:
            messages += using_tools(draw)
        messages.append(said(draw))
        if draw.random() < 0.1:
            messages.append(said(draw))
    tools = [
        {"type": "function", "function": {"name": name, "description": text(draw), "parameters": parameters(draw)}}
        for name in "fg"
    ]
    return messages, tools if draw.random() < 0.6 else None


def parameters(draw):
    kinds = ["string", "integer", "array", "object"]
    properties = {draw.choice("abc<d"): {"type": draw.choice(kinds), "description": text(draw)} for _ in range(3)}
    return {"type": "object", "properties": properties, "required": sorted(properties)[:1]}


def beginnings(example):
    """The tokens before each answer of an example: what stands before each stretch of loss."""
    flags = [False, *example.loss]
    return [example.ids[:place] for place in range(len(example.ids)) if flags[place + 1] and not flags[place]]
