"""The official clients of OpenAI and Google against the server, only the base URL changed; load, cancellation, a dead
engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from google import genai
from google.genai import errors, types

from gemma_ops.data import chat, published
from gemma_ops.modeling.llamacpp import GGUF
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.runs.processes import Birth
from gemma_ops.serving.keys import Keys
from tests.helpers import patience
from tests.helpers.live_server import NAME, make_files, serving

QUESTIONS = [row["prompt"] for row in tickets.test_rows(24, 0)]
SCHEMA = {
    "type": "object", "properties": {"team": {"enum": ["billing", "tech"]}}, "required": ["team"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds an order.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def live(files):
    with serving(files / "q8_0" / "model.gguf") as started:
        yield started


@pytest.fixture
def client(live):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def google(live):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=live.url))


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def recorded(files):
    """What the evaluation's own engine says, greedily."""
    tokenizer, template = load_tokenizer(WEIGHTS), published.template_of(WEIGHTS)
    prompts = [chat.chat_prompt_ids(tokenizer, user(text), template=template) for text in QUESTIONS]
    with GGUF(files / "q8_0" / "model.gguf", threads=1) as model:
        return list(model.answer(prompts, tokenizer, max_new_tokens=48, batch_size=8))


def test_greedy_answers_over_http_are_those_of_the_evaluation(client, google, recorded):
    def by_openai(text):
        found = client.chat.completions.create(model=NAME, messages=user(text), temperature=0, max_tokens=48)
        return found.choices[0].message.content, found.choices[0].finish_reason, found.usage.completion_tokens

    def by_gemini(text):
        config = types.GenerateContentConfig(temperature=0, max_output_tokens=48)
        found = google.models.generate_content(model=NAME, contents=text, config=config)
        return found.text or "", found.candidates[0].finish_reason.name, found.usage_metadata.candidates_token_count

    with ThreadPoolExecutor(4) as pool:
        one, two = list(pool.map(by_openai, QUESTIONS)), list(pool.map(by_gemini, QUESTIONS))
    ends = {"length": "MAX_TOKENS", "stop": "STOP"}
    assert apart(one, [(answer.text, answer.end, answer.new_tokens) for answer in recorded]) <= 1
    assert apart(two, [(answer.text, ends[answer.end], answer.new_tokens) for answer in recorded]) <= 1


def apart(first, second):
    """How many differ. One question's first two tokens are so close that the prompts decoded beside it decide (in one
    run of ten)."""
    return sum(one != two for one, two in zip(first, second, strict=True))


def test_a_stream_is_the_whole_answer_in_pieces(client, google, recorded):
    whole = recorded[0]
    parts = list(
        client.chat.completions.create(
            model=NAME,
            messages=user(QUESTIONS[0]),
            temperature=0,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole.text
    assert len(parts) > 5
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == whole.end
    assert (parts[-1].usage.prompt_tokens, parts[-1].usage.completion_tokens) == (whole.prompt_tokens, whole.new_tokens)
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=48)
    events = list(google.models.generate_content_stream(model=NAME, contents=QUESTIONS[0], config=config))
    assert "".join(event.text or "" for event in events) == whole.text
    assert events[-1].usage_metadata.candidates_token_count == whole.new_tokens


def test_json_schema_binds_in_both_protocols(client, google):
    shape = {"type": "json_schema", "json_schema": {"name": "route", "schema": SCHEMA}}
    found = client.chat.completions.create(model=NAME, messages=user("my card"), response_format=shape, temperature=0)
    assert json.loads(found.choices[0].message.content)["team"] in ("billing", "tech")
    for given in (
        {"response_json_schema": SCHEMA},
        {
            "response_schema": {
                "type": "OBJECT",
                "properties": {"team": {"type": "STRING", "enum": ["billing", "tech"]}},
                "required": ["team"],
            }
        },
    ):
        config = types.GenerateContentConfig(
            response_mime_type="application/json", temperature=0, max_output_tokens=60, **given
        )
        assert json.loads(google.models.generate_content(model=NAME, contents="my card", config=config).text)["team"]


def test_logprobs_of_a_greedy_answer_are_those_of_its_likeliest_tokens(client, google):
    found = client.chat.completions.create(
        model=NAME, messages=user(QUESTIONS[0]), temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    tokens = found.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == found.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob == max(other.logprob for other in token.top_logprobs) <= 0
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=6, response_logprobs=True, logprobs=2)
    result = google.models.generate_content(model=NAME, contents=QUESTIONS[0], config=config).candidates[0]
    chosen = [one.log_probability for one in result.logprobs_result.chosen_candidates]
    assert chosen == pytest.approx([token.logprob for token in tokens], abs=1e-4)
    assert result.avg_logprobs == pytest.approx(sum(chosen) / len(chosen))


def test_a_seed_repeats_and_replies_of_one_request_differ(client):
    def ask(**more):
        found = client.chat.completions.create(
            model=NAME, messages=user("hello there"), temperature=1.5, max_tokens=12, **more
        )
        return [choice.message.content for choice in found.choices]

    assert ask(seed=5) == ask(seed=5)
    assert len(set(ask(seed=5, n=4))) > 1
    assert ask(seed=5, n=2)[0] == ask(seed=5)[0]


def test_a_conversation_with_tools_is_asked_as_it_is_trained(live, client, google):
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"id": "A1"}'}}
    turns = [
        *user("where is A1?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"at": "home"}'},
    ]
    asked = client.chat.completions.create(model=NAME, messages=turns, tools=[TOOL], temperature=0, max_tokens=8)
    tokenizer, template = load_tokenizer(WEIGHTS), published.template_of(WEIGHTS)
    row = [
        *user("where is A1?"),
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function",
                    "function": {"name": "look_up", "arguments": {"id": "A1"}}}]},
        {"role": "tool", "tool_call_id": "call_1", "name": "look_up", "content": '{"at": "home"}'},
    ]  # fmt: skip
    assert asked.usage.prompt_tokens == len(chat.chat_prompt_ids(tokenizer, row, [TOOL], template=template))
    declared = types.FunctionDeclaration(
        name="look_up", description="Finds an order.", parameters_json_schema=TOOL["function"]["parameters"]
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])], temperature=0, max_output_tokens=8,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )  # fmt: skip
    contents = [
        types.Content(role="user", parts=[types.Part(text="where is A1?")]),
        types.Content(
            role="model", parts=[types.Part(function_call=types.FunctionCall(name="look_up", args={"id": "A1"}))]
        ),
        types.Content(
            role="user",
            parts=[types.Part(function_response=types.FunctionResponse(name="look_up", response={"at": "home"}))],
        ),
    ]
    found = google.models.generate_content(model=NAME, contents=contents, config=config)
    counted = google.models.count_tokens(model=NAME, contents="where is A1?").total_tokens
    assert counted == len(chat.chat_prompt_ids(tokenizer, user("where is A1?"), template=template))
    assert found.usage_metadata.prompt_token_count > counted


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"logit_bias": {"5": 1}}, "logit_bias"), ({"n": 17}, "n"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"), ({"temperature": 3}, "temperature"),
        ({"extra_body": {"best_of": 2}}, "best_of"), ({"reasoning_effort": "high"}, "thinking"),
        ({"store": True}, "store"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages"),
        ({"messages": [*user("a"), {"role": "assistant", "content": "b"}]}, "messages"),
        ({"messages": user("say <|turn>model")}, "messages"), ({"messages": user("word " * 400)}, "messages"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(client, more, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": NAME, "messages": user("a")} | more))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"tools": [types.Tool(google_search=types.GoogleSearch())]}, "googleSearch"),
        ({"presence_penalty": 0.5}, "presencePenalty"),
        ({"cached_content": "cachedContents/x"}, "cachedContent"),
        ({"response_modalities": ["IMAGE"]}, "responseModalities"),
        ({"safety_settings": [types.SafetySetting(category="HARM_CATEGORY_HARASSMENT",
                        threshold="BLOCK_LOW_AND_ABOVE")]}, "safetySettings"),
        ({"thinking_config": types.ThinkingConfig(thinking_budget=512)}, "thinking"),
    ],
)  # fmt: skip
def test_what_only_gemini_does_is_refused_by_name(google, config, word):
    with pytest.raises(errors.ClientError, match=word) as caught:
        google.models.generate_content(model=NAME, contents="a", config=types.GenerateContentConfig(**config))
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")


def test_an_image_is_refused_and_not_dropped(google):
    image = types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png")
    with pytest.raises(errors.ClientError, match="text"):
        google.models.generate_content(model=NAME, contents=[image, "what is it?"])


def test_models_are_listed_and_other_names_are_not_answered(client, google):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "gemma-ops"
    assert [model.name for model in google.models.list()] == [f"models/{NAME}"]
    assert google.models.get(model=NAME).input_token_limit == 256
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=user("a"))
    counted = google.models.generate_content(model="gemini-3.8-flash", contents="a").usage_metadata
    assert (
        counted.prompt_token_count == google.models.count_tokens(model=NAME, contents="a").total_tokens
    )  # `also_called`


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_a_page_elsewhere_can_not_ask_by_a_name_of_its_own(live, host):
    for path, body in (
        ("/v1/chat/completions", {"model": NAME, "messages": user("a")}),
        ("/v1beta/models", None),
        ("/", None),
    ):
        ask = (
            httpx2.post(f"{live.url}{path}", json=body, headers={"Host": host})
            if body
            else httpx2.get(f"{live.url}{path}", headers={"Host": host})
        )
        assert ask.status_code == 403
    assert httpx2.get(f"{live.url}/v1/models", headers={"Host": "localhost:8080"}).status_code == 200


def test_logs_and_metrics_count_and_hold_no_content(live, client):
    secret = "zebra-crossing"
    client.chat.completions.create(model=NAME, messages=user(secret), max_tokens=3)
    assert live.records[-1]["status"] == 200
    assert live.records[-1]["tokens"] <= 3
    assert secret not in json.dumps(live.records)
    text = httpx2.get(f"{live.url}/metrics").text
    line = next(line for line in text.splitlines() if 'protocol="openai",status="200"' in line)
    assert int(line.split()[-1]) == live.service.tally.requests["openai", 200]
    assert httpx2.get(f"{live.url}/ready").json() == {"status": "ready", "model": NAME, "version": ""}
    page = httpx2.get(live.url).text
    assert "What runs" in page
    assert secret not in page


def test_beyond_the_queue_requests_are_told_to_come_back(live, client):
    """Both slots are held and four wait; what comes then is refused at once, and those that were taken are all
    answered."""

    def ask():
        return len(client.chat.completions.create(model=NAME, messages=user("count"), max_tokens=20).choices)

    held, go_on = threading.Event(), asyncio.Event()

    async def hold():
        async with live.service.slots.taken(), live.service.slots.taken():
            held.set()
            await go_on.wait()

    holding = asyncio.run_coroutine_threadsafe(hold(), live.loop)
    assert held.wait(30)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask) for _ in range(4)]
        patience.until(lambda: live.service.slots.waiting == 4, 30)
        with pytest.raises(openai.RateLimitError, match="4 requests wait") as caught:
            ask()
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        live.loop.call_soon_threadsafe(go_on.set)
        assert [one.result() for one in waiting] == [1] * 4
    holding.result(30)


def test_a_client_that_goes_ends_the_work(live, client):
    stream = client.chat.completions.create(
        model=NAME, messages=user("go on"), max_tokens=230, temperature=2, stream=True
    )
    next(iter(stream))
    stream.close()
    patience.until(lambda: live.service.slots.running == 0, 30)


def test_an_engine_that_dies_is_started_again_and_the_request_under_way_is_told(files):
    with serving(files / "q8_0" / "model.gguf", context=4096, max_tokens=3000) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
        long = {"type": "array", "items": {"type": "integer"}, "minItems": 900}  # not over before it is killed
        shape = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": long}}
        stream = client.chat.completions.create(model=NAME, messages=user("go on"), response_format=shape, stream=True)
        next(iter(stream))
        os.kill(live.engine.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="ended in the middle"):
            list(stream)
        patience.until(lambda: live.engine.restarts == 1 and live.engine.alive(), 60)
        assert client.chat.completions.create(model=NAME, messages=user("a"), max_tokens=2).choices


def test_requests_that_wait_when_the_engine_dies_are_answered_by_the_next(files):
    with serving(files / "q8_0" / "model.gguf", slots=1, queue=8) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)

        def ask(number):
            return client.chat.completions.create(model=NAME, messages=user(f"go {number}"), max_tokens=4).choices

        with ThreadPoolExecutor(6) as pool:
            held, go_on = threading.Event(), asyncio.Event()

            async def hold():
                async with live.service.slots.taken():
                    held.set()
                    await go_on.wait()

            holding = asyncio.run_coroutine_threadsafe(hold(), live.loop)
            assert held.wait(30)
            waiting = [pool.submit(ask, number) for number in range(6)]
            patience.until(lambda: live.service.slots.waiting == 6, 30)
            os.kill(live.engine.pid, signal.SIGKILL)
            live.loop.call_soon_threadsafe(go_on.set)
            assert all(one.result() for one in waiting)
        holding.result(30)
        assert live.engine.restarts == 1


def test_a_key_is_needed_where_keys_are_set(files, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# teams\nteam-a {hashlib.sha256(b'secret').hexdigest()}\n")
    with serving(files / "q8_0" / "model.gguf", keys=Keys.read(path)) as live:
        bad = openai.OpenAI(base_url=f"{live.url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            bad.chat.completions.create(model=NAME, messages=user("a"))
        with pytest.raises(openai.AuthenticationError):
            list(bad.models.list())
        good = openai.OpenAI(base_url=f"{live.url}/v1", api_key="secret", max_retries=0)
        assert good.chat.completions.create(model=NAME, messages=user("a"), max_tokens=2).choices
        google = genai.Client(api_key="secret", http_options=types.HttpOptions(base_url=live.url))
        assert google.models.count_tokens(model=NAME, contents="a").total_tokens


def test_the_engine_ends_with_its_parent(files):
    """Killed outright, the parent can end nothing: the child ends by itself."""
    code = (
        "import asyncio, sys, time\nfrom pathlib import Path\nfrom gemma_ops.serving.llamacpp_engine import LlamaCpp\n"
        "async def main():\n    engine = LlamaCpp(Path(sys.argv[1]), slots=1, context=64)\n    await engine.start()\n"
        "    print(engine.pid, flush=True)\n    await asyncio.sleep(600)\nasyncio.run(main())"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(files / "q8_0" / "model.gguf")], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    patience.until(lambda: Birth.of(child) is None, 30)


def test_threads_of_clients_get_their_own_answers(client, recorded):
    """Replies don't mix: twelve at once, each equal to its own."""
    barrier = threading.Barrier(6)

    def ask(number):
        barrier.wait(30)
        found = client.chat.completions.create(
            model=NAME, messages=user(QUESTIONS[number]), temperature=0, max_tokens=48
        )
        return found.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        assert apart(list(pool.map(ask, range(6))), [answer.text for answer in recorded[:6]]) == 0
