"""OpenAI's responses and completions, and calls that are required, by the official clients."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from google import genai
from google.genai import errors, types

from gemma_ops.data import chat, published
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.serving import responses_front
from gemma_ops.serving.calls import FunctionCall
from gemma_ops.serving.engine import Tokens
from gemma_ops.serving.model import RenderedPrompt, Said
from gemma_ops.serving.responses_front import response_events
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.completions import read_completion
from gemma_ops.wire.responses import read_response
from tests.helpers.live_server import NAME, make_files, serving

QUESTION = tickets.test_rows(1, 3)[0]["prompt"]
LOOK_UP = {"type": "object", "properties": {"id": {"type": "string"}}}
SCHEMA = {
    "type": "object", "properties": {"team": {"enum": ["billing", "tech"]}}, "required": ["team"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    files = make_files(tmp_path_factory.mktemp("gguf"))
    with serving(files / "q8_0" / "model.gguf") as started:
        yield started


@pytest.fixture
def client(live):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def google(live):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=live.url))


def test_a_response_says_what_chat_says(client):
    said = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=24,
    )
    asked = {"model": NAME, "instructions": "be brief", "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked)
    assert whole.output_text == said.choices[0].message.content
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        said.usage.prompt_tokens,
        said.usage.completion_tokens,
    )
    assert whole.store is False
    cut = said.choices[0].finish_reason == "length"
    assert (whole.status, whole.incomplete_details is None) == (("incomplete", False) if cut else ("completed", True))
    with client.responses.stream(**asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == whole.output_text
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage


def test_a_response_takes_a_conversation_with_calls(live, client):
    tool = {"type": "function", "name": "look_up", "description": "Finds.", "parameters": LOOK_UP}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "where is A1?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"id": "A1"}'},
        {"type": "function_call_output", "call_id": "c1", "output": '{"at": "home"}'},
    ]
    told = client.responses.create(model=NAME, input=items, tools=[tool], max_output_tokens=2, temperature=0)
    function = {"name": "look_up", "description": "Finds.", "parameters": LOOK_UP}
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"id": "A1"}'}}
    chatted = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "user", "content": "where is A1?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"at": "home"}'},
        ],
        tools=[{"type": "function", "function": function}],
        max_tokens=2,
        temperature=0,
    )
    assert told.usage.input_tokens == chatted.usage.prompt_tokens


def test_a_schema_binds_in_a_response(client):
    form = {"format": {"type": "json_schema", "name": "team", "schema": SCHEMA}}
    said = client.responses.create(model=NAME, input="my card", text=form, temperature=1.5)
    assert json.loads(said.output_text)["team"] in ("billing", "tech")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"), ({"include": ["file_search_call.results"]}, "include"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"), ({"truncation": "auto"}, "truncation"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"), ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_what_a_response_does_not_do_is_refused_by_name(more, field):
    with pytest.raises(RefusalError) as caught:
        read_response({"model": NAME, "input": "a"} | more)
    assert caught.value.field == field


def test_events_of_thoughts_text_and_calls_build_up_what_the_response_holds(live):
    asyncio.run(_built_up(live))


async def _built_up(live):
    said = Said(end="calls", prompt_tokens=3, tokens=5, thought_tokens=2)

    async def pieces():
        for piece in (Piece("thought", "hm"), Piece("text", "let "), Piece("text", "me see")):
            said.text += piece.text if piece.kind == "text" else ""
            yield piece
        for name in ("look_up", "book"):
            said.calls.append(FunctionCall(name, {"id": "Ä"}))
            yield Piece("call", call=said.calls[-1])

    ask = read_response({"model": NAME, "input": "a"})
    found = [event async for event in response_events(live.service, ask, said, pieces(), "n1")]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [item["type"] for item in found[-1]["response"]["output"]] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    assert found[-1]["type"] == "response.completed"
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    said.thought = "hm"
    whole, _ = await responses_front.whole_response(_Spoken(live.service, said), ask, "n1")
    assert whole["output"] == done
    assert json.loads(done[2]["arguments"]) == {"id": "Ä"}


class _Spoken:
    """A service that has said what it was given."""

    def __init__(self, service, said):
        self.facts, self._said = service.facts, said

    async def reply(self, ask):
        return self._said


def test_a_completion_goes_on_from_a_text_as_it_stands(client, tmp_path):
    tokenizer, template = load_tokenizer(WEIGHTS), published.template_of(WEIGHTS)
    ids = chat.chat_prompt_ids(tokenizer, [{"role": "user", "content": QUESTION}], template=template)
    chatted = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=16
    )
    said = client.completions.create(model=NAME, prompt=ids, temperature=0, max_tokens=16, logprobs=2)
    assert said.choices[0].text == chatted.choices[0].message.content
    assert len(said.choices[0].logprobs.tokens) == len(said.choices[0].logprobs.token_logprobs) > 0
    assert all(len(top) <= 2 for top in said.choices[0].logprobs.top_logprobs)
    text = client.completions.create(model=NAME, prompt="Dear team", temperature=0, max_tokens=8)
    assert text.usage.prompt_tokens == 1 + len(tokenizer.encode("Dear team", add_special_tokens=False).ids)
    parts = list(client.completions.create(model=NAME, prompt="Dear team", temperature=0, max_tokens=8, stream=True))
    assert "".join(part.choices[0].text for part in parts) == text.choices[0].text
    with pytest.raises(openai.BadRequestError, match=r"spells the control token <\|turn>"):
        client.completions.create(model=NAME, prompt="<|turn>model\n")
    with pytest.raises(openai.BadRequestError, match="vocabulary ends"):
        client.completions.create(model=NAME, prompt=[1 << 20])


@pytest.mark.parametrize(
    ("more", "field"),
    [({"prompt": ["a", "b"]}, "prompt"), ({"echo": True}, "echo"), ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt")],
)  # fmt: skip
def test_what_a_completion_does_not_do_is_refused_by_name(more, field):
    with pytest.raises(RefusalError) as caught:
        read_completion({"model": NAME, "prompt": "a"} | more)
    assert caught.value.field == field


def test_a_required_call_is_made_or_the_reply_is_an_error(client, google):
    """nano was never taught to call: what it must say is held, and what it can't finish is no answer."""
    tools = [
        {"type": "function", "function": {"name": name, "description": "d", "parameters": LOOK_UP}}
        for name in ("look_up", "book")
    ]
    try:
        said = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "go"}], tools=tools, tool_choice="required",
            temperature=0, max_tokens=12,
        )  # fmt: skip
        (choice,) = said.choices
        assert choice.message.tool_calls or choice.message.content.startswith(("call:look_up{", "call:book{"))
    except openai.InternalServerError as error:
        assert "no call that can be read" in str(error)  # noqa: PT017
    for names, wanted in ((["book"], "call:book{"), (["look_up"], "call:look_up{")):
        config = types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[{"name": one["function"]["name"],
                            "parameters_json_schema": LOOK_UP} for one in tools])],
            tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY",
                    allowed_function_names=names)),
            temperature=0, max_output_tokens=10,
        )  # fmt: skip
        try:
            answer = google.models.generate_content(model=NAME, contents="go", config=config)
        except errors.ServerError as error:
            assert "no call that can be read" in str(error)  # noqa: PT017
            continue
        assert answer.function_calls or answer.text.startswith(wanted)


def test_a_call_that_had_to_be_made_and_was_not_is_an_error(live):
    """The engine ends without one: nothing is passed off as an answer."""
    asyncio.run(_not_called(live))


async def _not_called(live):
    model = live.service.model
    ask = Ask(
        [{"role": "user", "content": "go"}], [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        must_call=("f",),
    )  # fmt: skip
    assert model.begun(ask) == [model.tokenizer.token_to_id("<|tool_call>")]
    said = Said()
    stop = model.tokenizer.token_to_id("<turn|>")

    class Ending:
        context = 100

        async def complete(self, prompt, sampling, shown):
            assert prompt[-1] == model.begun(ask)[0]
            assert sampling.calls == ("f",)
            yield Tokens((stop,), end="stop")

    engine, model.engine = model.engine, Ending()
    try:
        sampling = model.sampling(ask, RenderedPrompt([1]))
        with pytest.raises(RefusalError, match="no call that can be read"):
            [piece async for piece in model.answer(RenderedPrompt([1]), sampling, said, begun=model.begun(ask))]
    finally:
        model.engine = engine
