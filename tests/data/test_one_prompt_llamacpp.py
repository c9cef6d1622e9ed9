"""llama.cpp asks with the same tokens: its own renderer and tokenizer, over the template that the GGUF file embeds."""

from __future__ import annotations

import json
import random

import pytest

from gemma_ops.data import chat
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare.foreign_marks import key_of_two_orders
from tests.data.test_template_llamacpp import _Socket, gguf  # noqa: F401 - a fixture
from tests.helpers.conversations import CONVERSATIONS, beginnings, conversation, templates

xllamacpp = pytest.importorskip("xllamacpp", reason="the extra `gguf` is not installed")
SIZES = templates()


@pytest.fixture
def engine(gguf, tmp_path):  # noqa: F811
    """A function from a template to one that posts to a llama.cpp server which holds it."""

    def start(template):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.chat_template = template
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup, params.ui = 64, 1, -1, False, False
        params.hostnames = [str(tmp_path / "llama.sock")]
        server = xllamacpp.Server(params)

        def post(path, body):
            connection = _Socket(server.listening_address.removeprefix("unix://"))
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())

        return post

    return start


def as_clients_send(messages):
    """OpenAI's form: arguments as JSON text, thoughts as `reasoning_content`."""
    for message in messages:
        sent = dict(message)
        if "tool_calls" in sent:
            sent["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in sent["tool_calls"]
            ]
        if thought := sent.pop("reasoning", None):
            sent["reasoning_content"] = thought
        yield sent


@pytest.mark.slow
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("size", ["E2B", "31B"])
def test_llama_cpp_asks_with_the_tokens_of_training(engine, size, thinking):
    post = engine(SIZES[size])
    tokenizer = chat.load_tokenizer(WEIGHTS)
    draw = random.Random(f"{size}{thinking}")
    asked = 0
    for _ in range(CONVERSATIONS):
        messages, tools = conversation(draw)
        if any("tool_responses" in message for message in messages):  # Gemma's own form has no place in the protocol
            continue
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        if messages[last - 1]["role"] == "assistant":  # the server would go on with it
            continue
        if key_of_two_orders([messages, tools]):  # sorts capitals first, and `data check` says so
            continue
        body = {"messages": list(as_clients_send(messages[:last])), "add_generation_prompt": True}
        body |= {"chat_template_kwargs": {"enable_thinking": thinking}} | ({"tools": tools} if tools else {})
        rendered = post("/apply-template", body)["prompt"]
        ids = post("/tokenize", {"content": rendered, "add_special": True, "parse_special": True})["tokens"]
        made = chat.examples(tokenizer, messages, tools, template=SIZES[size], thinking=thinking)
        assert ids in [beginning for one in made for beginning in beginnings(one)], rendered
        asked += 1
    assert asked > CONVERSATIONS / 4
