"""Targets: how they are named, what each may see, and what comes back when things go right and wrong. Local models are
nano's; the endpoint is a real HTTP server of the standard library that answers from a function."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.errors import BoundaryError, ConfigError, ServiceError
from gemma_ops.privacy.classes import HERE
from gemma_ops.targets import endpoint_target, open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.spec import parse_target
from gemma_ops.targets.structured import ask_structured
from gemma_ops.targets.target import LOCAL, guard_prompts
from tests.helpers.tiny_models import NANO

HELLO = Prompt([{"role": "user", "content": "Say hello."}], "any", "q1")


def opening(spec, machine=None, **models):
    return open_target(
        spec, machine or MachineConfig(device="cpu"), run="t", use="evaluate", models=RunModels(**models)
    )


# Names


@pytest.mark.parametrize(
    ("name", "kind", "family", "local"),
    [
        ("base", "base", "gemma", True),
        ("q4_0", "quantized", "gemma", True),
        ("./some/folder", "folder", "gemma", True),
        ("gguf:/models/a@b.gguf@/models/a", "gguf", "gemma", True),
        ("gemini:gemini-3.8-flash@low", "gemini", "gemini", False),
        ("gemini:gemma-4-31b-it", "gemini", "gemma", False),
        ("openai:http://localhost:8000/v1#qwen3-32b", "openai", "qwen", False),
        ("openai:https://host/v1#our-model@llama", "openai", "llama", False),
        ("openai:https://host/v1#our-model", "openai", "unknown", False),
        ("openai:https://host/v1#mixtral-8x7b", "openai", "mistral", False),
        ("openai:https://host/v1#dolphin-2", "openai", "unknown", False),
    ],
)
def test_a_name_tells_kind_lineage_and_place(name, kind, family, local):
    spec = parse_target(name)
    assert (spec.kind, spec.family, spec.local) == (kind, family, local)


def test_parts_of_a_name():
    assert (
        parse_target("gemini:gemini-3.8-flash@low").model,
        parse_target("gemini:gemini-3.8-flash@low").thinking,
    ) == (
        "gemini-3.8-flash",
        "low",
    )
    gguf = parse_target("gguf:/models/a@b.gguf@/models/a")
    assert (gguf.place, gguf.tokenizer) == ("/models/a@b.gguf", "/models/a")
    found = parse_target("openai:http://localhost:8000/v1/#org/name@llama")
    assert (found.place, found.model) == ("http://localhost:8000/v1", "org/name")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("turned", "did you mean tuned"),
        ("gemini:", "names no model"),
        ("gemini:gemini-3.8-flash@hard", "no thinking level 'hard'"),
        ("openai:localhost:8000#m", "is no endpoint"),
        ("openai:http://localhost:8000/v1", "is no endpoint"),
        ("gguf:model.gguf", "names no tokenizer"),
    ],
)
def test_a_wrong_name_is_told(name, told):
    with pytest.raises(ConfigError, match=told):
        parse_target(name)


def test_rows_that_a_target_may_not_see_are_refused_together():
    target = opening("openai:https://example.com/v1#m")
    prompts = [HELLO, Prompt(HELLO.messages, "paid", "q2"), Prompt(HELLO.messages, "local_only", "q3")]
    with pytest.raises(BoundaryError, match=r"2 of 3 rows of task t are paid .*\(the first: q2\)"):
        guard_prompts(target, prompts, "task t")
    guard_prompts(target, prompts[:1], "task t")


# Local models


class Colour(BaseModel):
    name: Literal["red", "green"]
    shades: list[Annotated[str, Field(max_length=6)]] = Field(min_length=1, max_length=2)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    pytest.importorskip("xllamacpp")
    from gemma_ops.export.checkpoint import MergedCheckpoint
    from gemma_ops.export.gguf_tensors import plan_tensors
    from gemma_ops.export.gguf_writer import write_gguf

    file = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    source = MergedCheckpoint(NANO)
    write_gguf(source, plan_tensors(source, "bf16"), file, threads=1)
    return file


def test_llamacpp_writes_nothing_but_the_shape_it_was_asked_for(gguf):
    """nano knows nothing of colours: without enforcement it writes something else, with it every reply is valid."""
    target = opening(f"gguf:{gguf}@{NANO}")
    prompts = [Prompt([{"role": "user", "content": f"Ticket {n}: a colour."}]) for n in range(3)]
    free = [answer for batch in target.answer([prompts], max_new_tokens=64) for answer in batch]
    assert not any(answer.text.startswith("{") for answer in free)
    found = ask_structured(target, prompts, Colour, max_new_tokens=64, batch=2)
    assert all(item.value is not None and item.tries == 1 for item in found), [item.problem for item in found]
    assert {answer.end for answer in free} <= {"stop", "length"}
    assert all(0 < (answer.first_seconds or 0) <= answer.seconds * 3 + 1e-3 for answer in free)


def test_transformers_is_asked_for_a_shape_in_words():
    target = opening("base", base=NANO)
    seen = []
    from gemma_ops.targets import checkpoint_target

    class Watching(checkpoint_target.Encoder):
        def encoded(self, prompt, schema=None):
            found = super().encoded(prompt, schema)
            seen.append(self.tokenizer.decode(found.ids))
            return found

    before, checkpoint_target.Encoder = checkpoint_target.Encoder, Watching
    try:
        (plain,), (asked,) = (
            next(iter(target.answer([[HELLO]], max_new_tokens=4, schema=schema)))
            for schema in (None, Colour.model_json_schema())
        )
    finally:
        checkpoint_target.Encoder = before
        target.close()
    assert "JSON schema" not in seen[0]
    assert "JSON schema" in seen[1]
    assert asked.prompt_tokens > plain.prompt_tokens
    assert 0 < plain.first_seconds <= plain.seconds


def test_a_local_target_needs_its_files(tmp_path):
    for spec, told in ((f"gguf:{tmp_path}/no.gguf@{NANO}", "does not exist"), (f"{tmp_path}/", "holds no checkpoint")):
        with pytest.raises(ConfigError, match=told):
            opening(spec)


# Shapes


class Scripted:
    """Answers what it is told to, in order, and remembers what it was asked."""

    name = identity = "scripted"
    sees, family, place, lockstep = LOCAL, "test", HERE, False

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            self.asked += [prompt.messages for prompt in batch]
            yield [self.replies.pop(0) for _ in batch]

    def close(self):
        pass


def said(text, end="stop", **more):
    return Answer(text, end, 10, 5, 0.5, **more)


def test_an_invalid_reply_gets_one_more_try_with_what_is_wrong():
    target = Scripted(
        said('{"name": "blue", "shades": []}', dollars=0.01), said('{"name": "red", "shades": ["x"]}', dollars=0.02)
    )
    (found,) = ask_structured(target, [HELLO], Colour, max_new_tokens=9)
    assert found.value == Colour(name="red", shades=["x"])
    assert found.tries == 2
    assert (found.answer.prompt_tokens, found.answer.seconds, round(found.answer.dollars, 9)) == (20, 1.0, 0.03)
    *_, reply, repair = target.asked[1]
    assert reply == {"role": "assistant", "content": '{"name": "blue", "shades": []}'}
    assert "'red' or 'green'" in repair["content"]
    assert "shades" in repair["content"]


def test_two_invalid_replies_are_no_value():
    (found,) = ask_structured(Scripted(said("red"), said("still red")), [HELLO], Colour, max_new_tokens=9)
    assert (found.value, found.tries) == (None, 2)
    assert "Invalid JSON" in found.problem


@pytest.mark.parametrize("end", ["length", "blocked", "error"])
def test_a_reply_that_did_not_end_well_is_never_read(end):
    """Even when what came looks whole: a cut reply that parses is still not what the model wanted to say."""
    target = Scripted(said('{"name": "red", "shades": ["x"]}', end, reason="SAFETY"))
    (found,) = ask_structured(target, [HELLO], Colour, max_new_tokens=9)
    assert found.value is None
    assert "SAFETY" in found.problem
    assert len(target.asked) == 1  # and not asked again: rewording until it passes is not what the terms allow


def test_a_fence_around_the_value_is_no_problem_and_order_is_kept():
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("a long question", "short", "mid-size")]
    target = Scripted(
        *(said(f'Here:\n```json\n{{"name": "red", "shades": ["{n}"]}}\n```') for n in ("short", "mid", "long"))
    )
    found = ask_structured(target, prompts, Colour, max_new_tokens=9, batch=2)
    assert [item.value.shades for item in found] == [["long"], ["short"], ["mid"]]


# Endpoints


@contextmanager
def serving(answer):
    """A server whose replies are made by `answer(body, number)`: (status, headers, payload), a list of events for a
    stream, or None to hang up."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                log.append((body, dict(self.headers)))
                number = len(log)
            made = answer(body, number)
            if made is None:
                self.close_connection = True
                self.connection.close()
                return
            status, headers, payload = made
            stream = isinstance(payload, list)
            self.send_response(status)
            kind = "text/event-stream" if stream else "application/json"
            for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for event in payload if stream else ():
                self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.01)
            if not stream:
                self.wfile.write(json.dumps(payload).encode())

        def log_message(self, *_):
            pass

    log, lock = [], threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", log
    finally:
        server.shutdown()
        server.server_close()


def events(text, end="stop", usage=True):
    pieces = [{"id": "r1", "model": "m-7", "choices": [{"delta": {"content": piece}}]} for piece in text.split("|")]
    last = {"choices": [{"delta": {}, "finish_reason": end}]}
    tokens = {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "completion_tokens_details": {"reasoning_tokens": 400},
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    return [*pieces, last, *([{"choices": [], "usage": tokens}] if usage else []), "[DONE]"]


def one(target, prompt=HELLO, **options):
    return next(iter(target.answer([[prompt]], max_new_tokens=7, **options)))[0]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(endpoint_target, "PAUSE", 0.01)


def paying(url, folder, budget=1.0, dollars_out=1.0):
    """Settings with an endpoint that costs money, and a budget."""
    priced = {"url": url, "dollars_in": 1.0, "dollars_out": dollars_out}
    return MachineConfig(runs=str(folder), endpoints=(priced,), gemini={"budget_usd": budget})


def test_an_endpoint_streams_and_counts(tmp_path):
    with serving(lambda body, number: (200, {}, events("Hel|lo"))) as (url, log):
        machine = paying(url, tmp_path, dollars_out=10.0)
        found = one(opening(f"openai:{url}#m", machine))
    assert (found.text, found.end, found.model, found.response_id) == ("Hello", "stop", "m-7", "r1")
    assert (found.prompt_tokens, found.new_tokens, found.thought_tokens, found.cached_tokens) == (1000, 100, 400, 64)
    assert found.dollars == pytest.approx(0.006)  # thoughts are paid for
    assert 0 < found.first_seconds < found.seconds
    body = log[0][0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.0)


def test_without_usage_or_prices_the_cost_is_unknown_not_zero(tmp_path):
    with serving(lambda body, number: (200, {}, events("hi", usage=False))) as (url, _):
        assert one(opening(f"openai:{url}#m", paying(url, tmp_path))).dollars is None
    with serving(lambda body, number: (200, {}, events("hi"))) as (url, _):
        assert one(opening(f"openai:{url}#m")).dollars is None


def test_answers_keep_their_order_and_go_out_together():
    together, most, lock = 0, 0, threading.Lock()

    def slow(body, number):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.05 if "0" in body["messages"][0]["content"] else 0.02)
        with lock:
            together -= 1
        return 200, {}, events(body["messages"][0]["content"])

    prompts = [[Prompt([{"role": "user", "content": f"q{n}"}]) for n in range(start, start + 4)] for start in (0, 4)]
    with serving(slow) as (url, _):
        found = list(opening(f"openai:{url}#m").answer(prompts, max_new_tokens=7))
    assert [[answer.text for answer in batch] for batch in found] == [
        ["q0", "q1", "q2", "q3"],
        ["q4", "q5", "q6", "q7"],
    ]
    assert most == 4


def test_a_busy_server_is_asked_again_after_the_time_it_names():
    def busy(body, number):
        return (
            (429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}})
            if number < 3
            else (200, {}, events("ok"))
        )

    with serving(busy) as (url, log):
        began = time.perf_counter()
        found = one(opening(f"openai:{url}#m"))
        assert time.perf_counter() - began > 0.8
    assert (found.text, len(log)) == ("ok", 3)
    assert found.seconds < 0.4  # waiting for its turn is not the model's latency


def test_a_server_that_stays_busy_or_away_ends_the_work():
    with serving(lambda body, number: (503, {}, {"error": "loading model"})) as (url, log):
        with pytest.raises(ServiceError, match="in 4 tries: loading model"):
            one(opening(f"openai:{url}#m"))
        assert len(log) == 4
    with pytest.raises(ServiceError, match="did not answer"):
        one(opening(f"openai:{url}#m"))  # nobody listens there any more


def test_a_refused_question_is_an_error_answer_and_others_go_on():
    def picky(body, number):
        if "long" in body["messages"][0]["content"]:
            return 400, {}, {"error": {"message": "maximum context length is 4096"}}
        return 200, {}, events("fine")

    batch = [Prompt([{"role": "user", "content": text}]) for text in ("long", "short")]
    with serving(picky) as (url, log):
        bad, good = next(iter(opening(f"openai:{url}#m").answer([batch], max_new_tokens=7)))
        assert len(log) == 2  # not asked again: the answer would be the same
    assert (bad.end, bad.text, bad.reason) == ("error", "", "400: maximum context length is 4096")
    assert (good.end, good.text) == ("stop", "fine")


@pytest.mark.parametrize(("code", "told"), [(401, "api_key_env"), (404, "the model's name 'm'")])
def test_a_wrong_key_or_model_is_told_at_once(code, told):
    with serving(lambda body, number: (code, {}, {"error": {"message": "no"}})) as (url, log):
        with pytest.raises(ConfigError, match=told):
            one(opening(f"openai:{url}#m"))
        assert len(log) == 1


@pytest.mark.parametrize(
    ("reply", "end", "reason"),
    [
        (events("Hel|lo")[:2], "error", "broke off"),  # cut in the middle of the stream
        (events("no", "content_filter"), "blocked", "content_filter"),
        (events("", "tool_calls"), "error", "tool_calls"),
        (events("Hel", "length"), "length", ""),
        (["{half"], "error", "can't be read"),
        ([*events("whole")[:1], "{half", *events("x")[-1:]], "error", "can't be read"),
        ({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}, "stop", ""),
        ({"nothing": True}, "error", "broke off"),
    ],
)
def test_how_a_reply_ended_is_never_guessed(reply, end, reason):
    with serving(lambda body, number: (200, {}, reply)) as (url, _):
        found = one(opening(f"openai:{url}#m"))
    assert found.end == end
    assert reason in found.reason


def test_a_connection_that_breaks_once_is_no_matter():
    with serving(lambda body, number: None if number == 1 else (200, {}, events("ok"))) as (url, log):
        assert one(opening(f"openai:{url}#m")).text == "ok"
        assert len(log) == 2


def test_the_schema_goes_along():
    with serving(lambda body, number: (200, {}, events('{"name": "green", "shades": ["mint"]}'))) as (url, log):
        (found,) = ask_structured(opening(f"openai:{url}#m"), [HELLO], Colour, max_new_tokens=50)
    assert found.value.name == "green"
    wish = log[0][0]["response_format"]
    assert wish["type"] == "json_schema"
    assert wish["json_schema"]["schema"] == Colour.model_json_schema()


def test_who_may_see_what(monkeypatch):
    assert opening("openai:http://127.0.0.1:1/v1#m").sees == LOCAL
    assert opening("openai:http://localhost:1/v1#m").place == HERE
    far = "openai:https://llm.example.com/v1#m"
    assert opening(far).sees == {"any"}
    assert opening(far).place == "sent: llm.example.com"
    # A name that only looks like this machine's is not this machine.
    assert opening("openai:http://localhost.example.com/v1#m").sees == {"any"}
    known = {"url": "https://llm.example.com/v1", "privacy": "local_only", "api_key_env": "OUR_KEY"}
    with pytest.raises(ConfigError, match="OUR_KEY is empty"):
        opening(far, MachineConfig(endpoints=(known,)))
    monkeypatch.setenv("OUR_KEY", "s3cret")
    assert opening(far, MachineConfig(endpoints=(known,))).sees == LOCAL


def test_the_key_goes_to_its_own_endpoint_alone(monkeypatch):
    monkeypatch.setenv("OUR_KEY", "s3cret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # what is meant for this machine takes no way round
    with serving(lambda body, number: (200, {}, events("hi"))) as (url, log):
        machine = MachineConfig(endpoints=({"url": url, "privacy": "local_only", "api_key_env": "OUR_KEY"},))
        one(opening(f"openai:{url}#m", machine))
        one(opening(f"openai:{url}/#m", MachineConfig()))
    assert log[0][1]["Authorization"] == "Bearer s3cret"
    assert "Authorization" not in log[1][1]
