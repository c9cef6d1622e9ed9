"""The Gemini emulator speaks the protocol: google-genai itself talks to it, for every endpoint and every fault."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from enum import Enum
from typing import Literal

import httpx2
import jsonschema
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel, Field

from gemma_ops.emulator import Body, EmulatedReply, Emulator
from gemma_ops.gemini.models import model_facts
from tests.helpers.emulated import KEY, client_of

FLASH = "gemini-3.8-flash"
DOCUMENT = (
    "Goods may be returned within 30 days of delivery, e.g. by parcel. Refunds are paid within 14 days to the account "
    "that was used. Damaged goods need a photo of the box."
)
PROMPT = f"Write questions.\n<document>\n{DOCUMENT}\n</document>\nQuote the evidence letter by letter, please."


@pytest.fixture
def client(emulator):
    return client_of(emulator)


@pytest.fixture(params=[None, "v1beta"], ids=["v1", "v1beta"])
def any_version(emulator, request):
    return client_of(emulator, request.param)


def send(emulator, path, body=None, method="POST", **headers):
    """One request without google-genai; returns status, headers and body."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        emulator.url + path, data, {"Content-Type": "application/json", **headers}, method=method
    )
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_generate(any_version, emulator):
    replies = [any_version.models.generate_content(model=FLASH, contents=PROMPT) for _ in range(2)]
    usage = replies[0].usage_metadata
    assert replies[0].text[:30] in DOCUMENT
    assert replies[0].text == replies[1].text
    assert replies[0].candidates[0].finish_reason == types.FinishReason.STOP
    assert replies[0].model_version == FLASH
    assert replies[0].response_id != replies[1].response_id
    assert usage.prompt_token_count > 20
    assert usage.thoughts_token_count > 0
    assert usage.total_token_count == (
        usage.prompt_token_count + usage.candidates_token_count + usage.thoughts_token_count
    )
    entry = emulator.log[0]
    assert entry.body["contents"][0]["parts"][0]["text"] == PROMPT
    assert (entry.op, entry.model, entry.status, entry.billed, entry.tier) == ("generate", FLASH, 200, True, "standard")
    assert entry.usage["thoughtsTokenCount"] == usage.thoughts_token_count
    assert entry.response_id == replies[0].response_id
    assert entry.key == emulator.log[1].key


def test_stream(any_version, emulator):
    whole = any_version.models.generate_content(model=FLASH, contents=PROMPT)
    events = list(any_version.models.generate_content_stream(model=FLASH, contents=PROMPT))
    assert len(events) > 1
    assert "".join(event.text for event in events) == whole.text
    assert [event.candidates[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert events[-1].usage_metadata.candidates_token_count == whole.usage_metadata.candidates_token_count
    assert events[0].usage_metadata.candidates_token_count is None
    assert emulator.log[1].usage["totalTokenCount"] == events[-1].usage_metadata.total_token_count


def test_a_stream_without_sse_is_an_array_and_so_is_its_error(emulator):
    path, body = f"/v1/models/{FLASH}:streamGenerateContent", {"contents": [{"parts": [{"text": PROMPT}]}]}
    _, _, reply = send(emulator, path, body, **{"x-goog-api-key": KEY})
    assert len(json.loads(reply)) > 1
    status, _, reply = send(emulator, path, body | {"contents": []}, **{"x-goog-api-key": KEY})
    assert (status, json.loads(reply)[0]["error"]["status"]) == (400, "INVALID_ARGUMENT")
    status, _, reply = send(emulator, path + "?alt=sse", body | {"contents": []}, **{"x-goog-api-key": KEY})
    assert (status, json.loads(reply)["error"]["code"]) == (400, 400)


def test_counting_tokens_agrees_with_what_is_counted_later(any_version):
    counted = any_version.models.count_tokens(model=FLASH, contents=PROMPT).total_tokens
    assert (
        counted == any_version.models.generate_content(model=FLASH, contents=PROMPT).usage_metadata.prompt_token_count
    )


class Row(BaseModel):
    quote: str
    question: str
    answer: str
    kind: Literal["fact", "reason"]
    level: int = Field(ge=1, le=5)
    code: str = Field(pattern=r"^[A-Z]{2}-\d{3}$")
    note: str | None = None


class Rows(BaseModel):
    rows: list[Row] = Field(min_length=2, max_length=3)
    keep: bool


class Tree(BaseModel):
    value: float
    children: list[Tree] = []


def test_json_follows_its_schema_and_quotes_the_document(any_version):
    schema = Rows.model_json_schema()
    config = {"response_mime_type": "application/json", "response_json_schema": schema}
    found = json.loads(any_version.models.generate_content(model=FLASH, contents=PROMPT, config=config).text)
    jsonschema.validate(found, schema)
    assert len({row["quote"] for row in found["rows"]}) == len(found["rows"])
    for row in found["rows"]:
        assert row["quote"] in DOCUMENT
        assert len(row["quote"].split()) > 3
        assert row["answer"] == row["quote"]
        assert "text" not in row["question"]
        assert "document" not in row["question"]


def test_the_older_kind_of_schema_and_enums(client):
    config = {"response_mime_type": "application/json", "response_schema": Rows}
    assert isinstance(client.models.generate_content(model=FLASH, contents=PROMPT, config=config).parsed, Rows)
    verdict = Enum("Verdict", {"A": "A", "B": "B"})
    config = {"response_mime_type": "text/x.enum", "response_schema": verdict}
    assert client.models.generate_content(model=FLASH, contents=PROMPT, config=config).parsed in verdict


def test_a_recursive_schema_ends(client):
    schema = Tree.model_json_schema()
    config = {"response_mime_type": "application/json", "response_json_schema": schema}
    reply = client.models.generate_content(model=FLASH, contents=PROMPT, config=config)
    jsonschema.validate(json.loads(reply.text), schema)


def test_a_declared_function_is_called_once(client):
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    declaration = types.FunctionDeclaration(name="wait", description="waits", parameters_json_schema=schema)
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declaration])])
    reply = client.models.generate_content(model=FLASH, contents=PROMPT, config=config)
    call = reply.function_calls[0]
    assert (call.name, type(call.args["days"])) == ("wait", int)
    result = types.Part.from_function_response(name="wait", response={"result": "done"})
    turns = [types.UserContent(PROMPT), reply.candidates[0].content, types.Content(role="user", parts=[result])]
    assert client.models.generate_content(model=FLASH, contents=turns, config=config).text


def test_snake_and_camel_case_are_the_same(emulator):
    snake = {"contents": [{"parts": [{"text": "Hello there"}]}], "generation_config": {"max_output_tokens": 1}}
    camel = {"contents": [{"parts": [{"text": "Hello there"}]}], "generationConfig": {"maxOutputTokens": 1}}
    for body in (snake, camel):
        _, _, reply = send(emulator, f"/v1beta/models/{FLASH}:generateContent?key={KEY}", body)
        assert json.loads(reply)["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert emulator.log[0].key == emulator.log[1].key


def item(text, key):
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "metadata": {"key": key}}


def test_an_inline_batch_goes_through_its_states(any_version, emulator):
    items = [item("First question of two?", "one"), item("Second question of two?", "two")]
    job = any_version.batches.create(model=FLASH, src=items, config={"display_name": "mine"})
    states = [job.state, *(any_version.batches.get(name=job.name).state for _ in range(2))]
    assert [state.name for state in states] == ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
    done = any_version.batches.get(name=job.name)
    assert done.display_name == "mine"
    assert [reply.metadata for reply in done.dest.inlined_responses] == [{"key": "one"}, {"key": "two"}]
    assert [reply.response.text for reply in done.dest.inlined_responses] == [
        "First question of two?",
        "Second question of two?",
    ]
    assert [(entry.key, entry.tier, entry.billed) for entry in emulator.of("item")] == [
        ("one", "batch", True),
        ("two", "batch", True),
    ]
    assert [entry.billed for entry in emulator.of("batch_create", "batch_get")] == [False] * 4


def upload_requests(client, tmp_path, keys):
    file = tmp_path / "requests.jsonl"
    lines = [{"key": key, "request": {"contents": [{"parts": [{"text": f"About {key}."}]}]}} for key in keys]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return client.files.upload(file=str(file), config={"mime_type": "jsonl", "display_name": "requests"})


def results_of(client, job):
    data = client.files.download(file=job.dest.file_name)
    return {line["key"]: line for line in map(json.loads, data.decode().splitlines())}


def finish(client, job):
    for _ in range(3):
        job = client.batches.get(name=job.name)
    return job


def test_a_batch_from_a_file(any_version, emulator, tmp_path):
    file = upload_requests(any_version, tmp_path, ["a", "b", "c"])
    assert (file.state.name, file.display_name) == ("ACTIVE", "requests")
    job = finish(any_version, any_version.batches.create(model=FLASH, src=file.name))
    found = results_of(any_version, job)
    assert sorted(found) == ["a", "b", "c"]
    assert found["b"]["response"]["candidates"][0]["content"]["parts"][0]["text"] == "About b."
    assert found["b"]["response"]["usageMetadata"]
    assert found["b"]["response"]["modelVersion"] == FLASH
    assert "About b." in emulator.of("upload")[0].body


def test_batches_are_listed_held_cancelled_and_deleted(client, emulator):
    emulator.pace.hold = True
    jobs = [client.batches.create(model=FLASH, src=[item("Why?", "k")]) for _ in range(3)]
    assert {client.batches.get(name=jobs[0].name).state.name for _ in range(3)} == {"JOB_STATE_PENDING"}
    assert [job.name for job in client.batches.list(config={"page_size": 2})] == [job.name for job in reversed(jobs)]
    client.batches.cancel(name=jobs[0].name)
    emulator.pace.hold = False
    assert finish(client, jobs[0]).state.name == "JOB_STATE_CANCELLED"
    assert finish(client, jobs[1]).state.name == "JOB_STATE_SUCCEEDED"
    assert [entry.key for entry in emulator.of("item")] == ["k"]
    client.batches.delete(name=jobs[1].name)
    with pytest.raises(errors.ClientError, match="404"):
        client.batches.get(name=jobs[1].name)


def test_a_batch_runs_for_as_long_as_it_is_told_to(client, emulator):
    emulator.pace.seconds = 3600
    job = client.batches.create(model=FLASH, src=[item("Why?", "k")])
    assert finish(client, job).state.name == "JOB_STATE_RUNNING"
    emulator.pace.seconds = 0
    assert client.batches.get(name=job.name).state.name == "JOB_STATE_SUCCEEDED"


def test_an_upload_goes_on_where_it_stopped(emulator):
    start = {"x-goog-api-key": KEY, "X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
    _, headers, _ = send(
        emulator, "/upload/v1/files", {}, **start, **{"X-Goog-Upload-Header-Content-Type": "text/plain"}
    )
    path = headers["X-Goog-Upload-URL"].removeprefix(emulator.url)

    def step(command, offset=0, data=b""):
        return send(emulator, path, data, **{"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)})

    step("upload", 0, b"first ")
    assert step("query")[1]["X-Goog-Upload-Size-Received"] == "6"
    assert step("upload", 3, b"second")[0] == 400
    status, headers, reply = step("upload, finalize", 6, b"second")
    assert (status, headers["X-Goog-Upload-Status"], json.loads(reply)["file"]["sizeBytes"]) == (200, "final", "12")
    assert step("query")[0] == 404


def test_files(any_version, tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"0123456789" * 900_000)  # more than the 8 MiB that one piece of an upload holds
    first = any_version.files.upload(file=str(path), config={"mime_type": "text/plain"})
    assert first.size_bytes == 9_000_000
    upload_requests(any_version, tmp_path, ["a"])
    assert any_version.files.get(name=first.name).sha256_hash == first.sha256_hash
    assert len(list(any_version.files.list(config={"page_size": 1}))) == 2
    any_version.files.delete(name=first.name)
    with pytest.raises(errors.ClientError, match="403"):
        any_version.files.get(name=first.name)


def test_caches(any_version):
    text = "A long manual about everything. " * 300
    config = {"contents": text, "ttl": "300s", "display_name": "manual", "system_instruction": "Be brief."}
    cache = any_version.caches.create(model=FLASH, config=config)
    size = cache.usage_metadata.total_token_count
    assert any_version.caches.get(name=cache.name).display_name == "manual"
    assert [found.name for found in any_version.caches.list()] == [cache.name]
    later = any_version.caches.update(name=cache.name, config={"ttl": "3600s"})
    assert later.expire_time > cache.expire_time
    reply = any_version.models.generate_content(model=FLASH, contents="Why?", config={"cached_content": cache.name})
    assert reply.usage_metadata.cached_content_token_count == size
    assert reply.usage_metadata.prompt_token_count == size + 2
    with pytest.raises(errors.ClientError, match="has to be the same"):
        any_version.models.generate_content(
            model="gemini-3.5-flash", contents="Why?", config={"cached_content": cache.name}
        )
    any_version.caches.delete(name=cache.name)
    with pytest.raises(errors.ClientError, match="403"):
        any_version.models.generate_content(model=FLASH, contents="Why?", config={"cached_content": cache.name})
    with pytest.raises(errors.ClientError, match="too small"):
        any_version.caches.create(model=FLASH, config={"contents": "short"})


def test_embeddings_of_like_texts_are_near(any_version, emulator):
    texts = ["goods may be returned", "goods may be returned soon", "an owl sleeps by day"]
    config = {"task_type": "SEMANTIC_SIMILARITY", "output_dimensionality": 64}
    found = any_version.models.embed_content(model="gemini-embedding-001", contents=texts, config=config).embeddings
    near, far = (sum(a * b for a, b in zip(found[0].values, other.values, strict=True)) for other in found[1:])
    assert len(found[0].values) == 64
    assert near > 0.8
    assert far < 0.5
    assert emulator.log[-1].usage["promptTokenCount"] > 0


def test_models(any_version, emulator):
    found = {model.name: model for model in any_version.models.list(config={"page_size": 3})}
    assert found[f"models/{FLASH}"].input_token_limit == model_facts(FLASH).context
    assert any_version.models.get(model=FLASH).output_token_limit == 65_536
    assert ("models/gemini-flash-latest" in found) == ("v1beta" in emulator.log[-1].path)


def test_enterprise_paths(emulator):
    from google.oauth2.credentials import Credentials

    http = types.HttpOptions(base_url=emulator.url)
    by_project = genai.Client(
        enterprise=True, project="p", location="eu", credentials=Credentials("token"), http_options=http
    )
    by_key = genai.Client(enterprise=True, api_key=KEY, http_options=http)
    for client in (by_project, by_key):
        reply = client.models.generate_content(model=FLASH, contents="Why?", config={"service_tier": "flex"})
        assert reply.usage_metadata.traffic_type == types.TrafficType.ON_DEMAND_FLEX
        assert list(client.models.generate_content_stream(model=FLASH, contents="Why?"))[-1].text
        assert client.models.count_tokens(model=FLASH, contents="Why?").total_tokens == 2
    assert emulator.log[0].path == f"/v1beta1/projects/p/locations/eu/publishers/google/models/{FLASH}:generateContent"
    assert emulator.log[3].path == f"/v1beta1/publishers/google/models/{FLASH}:generateContent"
    assert emulator.log[0].tier == "flex"
    assert send(emulator, emulator.log[0].path, {"contents": []})[0] == 401


def test_keys(tmp_path):
    body = {"contents": [{"parts": [{"text": "Why?"}]}]}
    with Emulator(keys=frozenset({"right"}), log=tmp_path / "log.jsonl") as emulator:
        path = f"/v1/models/{FLASH}:generateContent"
        assert send(emulator, path, body)[0] == 403
        status, _, reply = send(emulator, path, body, **{"x-goog-api-key": "wrong"})
        assert (status, json.loads(reply)["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
        assert send(emulator, path, body, **{"x-goog-api-key": "right"})[0] == 200
        assert [entry.billed for entry in emulator.log] == [False, False, True]
    written = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert "wrong" not in written
    assert "right" not in written


REFUSED = [
    ("gemini-9-flash", {}, 404, "not found for API version v1,"),
    ("gemini-flash-latest", {}, 404, "not found"),
    ("gemini-embedding-2", {}, 404, "not supported for generateContent"),
    (FLASH, {"thinking_config": {"thinking_level": "minimal"}}, 400, "MINIMAL is not supported"),
    ("gemini-3.7-flash", {"thinking_config": {"thinking_level": "minimal"}}, 400, "MINIMAL is not supported"),
    ("gemini-4-argon", {"thinking_config": {"thinking_budget": 100}}, 400, "Thinking budget"),
    (FLASH, {"thinking_config": {"thinking_budget": 1, "thinking_level": "low"}}, 400, "only one of"),
    (FLASH, {"max_output_tokens": 100_000}, 400, "supported range"),
    (FLASH, {"temperature": 3.0}, 400, "temperature"),
    (FLASH, {"response_json_schema": {"type": "object"}}, 400, "response schema"),
]


@pytest.mark.parametrize("model,config,code,message", REFUSED, ids=[case[3] for case in REFUSED])
def test_what_the_service_refuses(client, emulator, model, config, code, message):
    with pytest.raises(errors.ClientError, match=message) as caught:
        client.models.generate_content(model=model, contents="Why?", config=config)
    assert caught.value.code == code
    assert not emulator.billed()


def test_requests_that_the_client_would_not_send(client, emulator):
    turns = [types.UserContent("Why?"), types.ModelContent("Because")]
    with pytest.raises(errors.ClientError, match="last turn"):
        client.models.generate_content(model=FLASH, contents=turns)
    path, key = f"/v1/models/{FLASH}:generateContent", {"x-goog-api-key": KEY}
    body = {"contents": [{"parts": [{"text": "Why?"}]}]}
    for wrong in (
        b"{",
        body | {"nonsense": 1},
        {"contents": [{"role": "model", "parts": []}]},
        {},
        {"contents": [{"parts": "Why?"}]},
        body | {"serviceTier": "x"},
    ):
        assert send(emulator, path, wrong, **key)[0] == 400
    assert send(emulator, "/v1/nowhere", body, **key)[0] == 404
    assert [entry.status for entry in emulator.log] == [400] * 7 + [404]


def test_thinking_eats_the_budget_of_the_reply():
    with Emulator(thoughts=(90, 90)) as emulator:
        client = client_of(emulator)
        for most, finish in ((1000, "STOP"), (95, "MAX_TOKENS"), (50, "MAX_TOKENS")):
            reply = client.models.generate_content(model=FLASH, contents=DOCUMENT, config={"max_output_tokens": most})
            usage = reply.usage_metadata
            assert reply.candidates[0].finish_reason.name == finish
            assert usage.candidates_token_count + usage.thoughts_token_count <= most
            assert usage.thoughts_token_count == min(90, most)
            assert (reply.text is None) == (most == 50)


def test_the_same_seed_gives_the_same_and_another_gives_another():
    def texts(seed):
        with Emulator(seed=seed) as emulator:
            client = client_of(emulator)
            replies = [client.models.generate_content(model=FLASH, contents=f"{n} {PROMPT}") for n in range(6)]
            return [(reply.text, reply.usage_metadata.thoughts_token_count) for reply in replies]

    assert texts(1) == texts(1) != texts(2)


def test_a_responder_says_what_it_wants_and_a_failing_one_is_a_500():
    def respond(body: Body):
        if "fail" in body.text:
            raise ValueError("no idea")
        return EmulatedReply(
            f"{body.system}|{body.last}|{body.nth}", prompt_tokens=250_000, cached_tokens=1_000, thought_tokens=7
        )

    with Emulator(respond) as emulator:
        client = client_of(emulator)
        replies = [
            client.models.generate_content(model=FLASH, contents="Why?", config={"system_instruction": "Be kind."})
            for _ in range(2)
        ]
        assert [reply.text for reply in replies] == ["Be kind.|Why?|0", "Be kind.|Why?|1"]
        assert replies[0].usage_metadata.prompt_token_count == 250_000
        assert replies[0].usage_metadata.cached_content_token_count == 1_000
        with pytest.raises(errors.ServerError, match="no idea"):
            client.models.generate_content(model=FLASH, contents="fail")


def test_the_log_is_a_file_too_and_holds_under_threads(tmp_path):
    with Emulator(log=tmp_path / "log.jsonl", latency=0.05) as emulator:
        client = client_of(emulator)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: client.models.generate_content(model=FLASH, contents=f"Number {n}?"), range(48)))
        written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        assert written == [asdict(entry) for entry in emulator.log]
        assert len({entry.key for entry in emulator.log}) == 48
        assert len({entry.response_id for entry in emulator.log}) == 48


def test_a_stopped_service_answers_nobody_on_old_connections_either():
    with Emulator() as emulator:
        client = client_of(emulator)
        client.models.generate_content(model=FLASH, contents="Why?")
    with pytest.raises(httpx2.TransportError):
        client.models.generate_content(model=FLASH, contents="Why?")
    assert len(emulator.log) == 1
