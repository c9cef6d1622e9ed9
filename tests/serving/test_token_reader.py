"""Replies read while they come: the same text as evaluation reads, calls as the template writes them, stops that
stop."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from gemma_ops.data import chat
from gemma_ops.modeling.generate import STOPS, read_reply
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.nano import WEIGHTS
from gemma_ops.serving.calls import FunctionCall, read_call
from gemma_ops.serving.engine import Tokens
from gemma_ops.serving.model import ServedModel
from gemma_ops.serving.serving_canary import RecordedAnswers, run_canary
from gemma_ops.serving.token_reader import ReplyReader
from gemma_ops.wire.ask import Ask

TOKENIZER = load_tokenizer(WEIGHTS)
STOP_IDS = {TOKENIZER.token_to_id(name) for name in STOPS}
PROMPT = [2]


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def read(tokens, stops=(), step=1, prompt=PROMPT):
    reader, pieces = ReplyReader(TOKENIZER, prompt, stops), []
    for start in range(0, len(tokens), step):
        pieces += reader.feed(tokens[start : start + step])
    pieces += reader.close()
    text, thought = ("".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("text", "thought"))
    return text, thought, [piece.call for piece in pieces if piece.call], reader


@pytest.mark.parametrize("seed", range(40))
def test_pieces_make_what_evaluation_reads(seed):
    """Random tokens, bytes of unfinished characters among them, with thoughts before and in between."""
    draw = random.Random(seed)
    words = [*range(300, 2000), *range(260, 300)]
    tokens = draw.choices(words, k=draw.randrange(1, 40))
    if seed % 2:
        tokens = [*ids("<|channel>thought\n"), *draw.choices(words, k=8), *ids("<channel|>"), *tokens]
    if seed % 3:
        tokens = [*tokens, TOKENIZER.token_to_id(draw.choice(STOPS)), 400]
    said = read_reply(TOKENIZER, list(tokens), STOP_IDS)
    text, thought, _, reader = read(tokens, step=draw.choice((1, 3)))
    assert (text, thought) == (said.text, said.thought)
    assert (reader.tokens, reader.thought_tokens) == (said.tokens, said.thought_tokens)
    assert reader.stopped == (said.end == "stop")


def test_a_thought_that_the_prompt_has_opened_is_one():
    text, thought, _, _ = read(ids("hm<channel|>yes<turn|>"), prompt=[2, *ids("<|channel>thought\n")])
    assert (text, thought) == ("yes", "hm")


@pytest.mark.parametrize(
    ("stops", "wanted"),
    [(["travel"], "my"), (["l ad"], "my trave"), (["xyz"], "my travel adapter"), (["adapter", "tra"], "my")],
)
@pytest.mark.parametrize("step", [1, 2, 9])
def test_a_stop_sequence_is_found_across_tokens_and_not_shown(stops, wanted, step):
    text, *_, reader = read(ids("my travel adapter"), stops, step)
    assert text == wanted
    assert reader.stopped == (wanted != "my travel adapter")


def value(draw, depth=0):
    kinds = ["text", "int", "float", "bool", "null"] + (["list", "object"] if depth < 3 else [])
    match draw.choice(kinds):
        case "text":
            return "".join(draw.choices('ab, :{}[]"\\\n é😀', k=draw.randrange(0, 8)))
        case "int":
            return draw.randrange(-1000, 1000)
        case "float":
            return round(draw.uniform(-10, 10), 3)
        case "bool":
            return draw.random() < 0.5
        case "null":
            return None
        case "list":
            return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {f"k{number}": value(draw, depth + 1) for number in range(draw.randrange(4))}


@pytest.mark.parametrize("seed", range(60))
def test_what_the_template_writes_is_read_back(seed):
    draw = random.Random(seed)
    arguments = {f"key_{number}": value(draw) for number in range(draw.randrange(4))}
    call = {"id": "1", "type": "function", "function": {"name": "do_it", "arguments": arguments}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call, call]}]
    text = chat.render_chat(turns).text
    said = text[text.index("<|tool_call>") : text.rindex("<tool_call|>") + len("<tool_call|>")]
    shown, _, calls, reader = read([*ids(said), TOKENIZER.token_to_id("<|tool_response>")])
    assert calls == [FunctionCall("do_it", arguments)] * 2, json.dumps(arguments)
    assert (shown, reader.broken, reader.stopped) == ("", [], True)


@pytest.mark.parametrize(
    "text",
    [
        "call:{}",
        "do{a:1}",
        "call:f{a:1",
        "call:f{a}",
        "call:f{a:x}",
        'call:f{a:<|"|>x}',
        "call:f{a:1}b",
        "call:f{a:1 b:2}",
        "call:f{a:nan}",
        "call:f{a:01}",
    ],
)
def test_what_is_no_call_is_told_and_shown_as_text(text):
    with pytest.raises(ValueError):
        read_call(text)
    shown, _, calls, reader = read(ids(f"<|tool_call>{text}<tool_call|>"))
    assert calls == []
    assert shown
    assert reader.broken


class Repeating:
    """An engine that says the same tokens to everybody."""

    slots, context, senses = 2, 512, None

    def __init__(self, said):
        self.said = said

    async def complete(self, prompt, sampling, shown=None):
        for token in self.said[:-1]:
            yield Tokens((token,))
        yield Tokens(tuple(self.said[-1:]), end="stop")


def test_a_canary_hears_a_call_as_the_evaluation_read_it():
    """Clients get a call apart from the text; the evaluation recorded it in the text, without the call's marks."""
    said = ids('<|tool_call>call:track{order:<|"|>P1<|"|>}<tool_call|><|tool_response>')
    model = ServedModel(WEIGHTS, Repeating(said), thinks=False)
    asked = [{"role": "user", "content": "Where is P1?"}]
    tools = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}}]
    rows = [
        {
            "messages": asked, "tools": tools, "ids": model.prompt(Ask(messages=asked, tools=tools)).ids,
            "max_new_tokens": 32, "answers": {"tuned": read_reply(TOKENIZER, list(said), STOP_IDS).text, "base": "?"},
        }
    ]  # fmt: skip
    found = asyncio.run(run_canary(model, RecordedAnswers(tuple(rows)), "tuned"))
    assert (found.good, found.same) == (True, 1)
    rows[0]["answers"]["tuned"] = "call:track{order:P2}"
    assert not asyncio.run(run_canary(model, RecordedAnswers(tuple(rows)), "tuned")).good
