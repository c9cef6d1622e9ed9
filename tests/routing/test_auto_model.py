"""The model `auto` over HTTP: the official clients, nano behind llama.cpp, and the Gemini emulator."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx2
import openai
import pytest
from google import genai
from google.genai import errors, types

from gemma_ops.emulator import Emulator
from gemma_ops.routing.decision_log import read_log
from gemma_ops.routing.replay import replay_log
from gemma_ops.routing.routing_policy import load_policy
from gemma_ops.serving.accounting import Accounts
from gemma_ops.serving.key_budgets import KeyBudgets
from gemma_ops.serving.keys import Grant, Keys
from tests.helpers import patience
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.live_server import make_files, serving
from tests.privacy.test_personal_data import FOUND

PICTURE = base64.b64encode(b"\x89PNG not really").decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
LONG = "tell me more of it. " * 60
KEPT = []
"""Clients of Google's, which close themselves when nobody holds them."""
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def gemini():
    with Emulator() as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", KEY)
        yield started


@pytest.fixture(autouse=True)
def healed(gemini, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)  # every test begins without the keys of whoever runs it
    yield
    gemini.heal()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf")) / "q8_0" / "model.gguf"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The shipped one, with tools of the service and a dearer request allowed."""
    path = tmp_path_factory.mktemp("policy") / "mine.yaml"
    text = "budget: {dollars_per_request: 2.0}\ngemini: {hosted_tools: [code]}\nlatency: {waiting: 1}\n"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def live(file, policy, gemini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    with serving(
        file, gemini=machine_for(gemini, folder), routing=policy, routing_log=str(folder / "log.jsonl"), queue=16
    ) as started:
        yield started


def ask(live, content, privacy="any", **more):
    """An answer of OpenAI's client with what its headers say, or the error."""
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
    headers = {"x-gemma-ops-privacy": privacy} if privacy else {}
    given = {
        "model": "auto",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "extra_headers": headers,
    }
    raw = client.chat.completions.with_raw_response.create(**(given | more))
    return raw.parse(), raw.headers


def google(live, privacy="any"):
    headers = {"x-gemma-ops-privacy": privacy} if privacy else {}
    KEPT.append(genai.Client(api_key="any", http_options=types.HttpOptions(base_url=live.url, headers=headers)))
    return KEPT[-1]


def refused(live, *args, **more):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(live, *args, **more)
    return caught.value, caught.value.response.headers


def records(live):
    return list(read_log(live.router.log.path))


def test_what_is_private_is_answered_here_and_what_is_long_by_gemini(live, gemini):
    before = len(gemini.log)
    found, told = ask(live, "hello", privacy=None)
    assert (told["x-gemma-ops-lane"], told["x-gemma-ops-model"], found.model) == ("local", "nano", "nano")
    assert told["x-gemma-ops-reasons"] == "class local_only: no class was declared; 14 tokens fit here (256)"
    assert len(gemini.log) == before
    found, told = ask(live, LONG)
    assert (told["x-gemma-ops-lane"], found.model) == ("gemini", "gemini-3.8-flash")
    assert "too many for the 256 here" in told["x-gemma-ops-reasons"]
    assert found.choices[0].finish_reason == "stop"
    assert float(told["x-gemma-ops-dollars"]) == pytest.approx(found.usage.gemma_ops["dollars"])
    assert found.usage.gemma_ops["dollars"] > 0
    assert found.usage.prompt_tokens == gemini.log[-1].usage["promptTokenCount"]
    error, told = refused(live, LONG, privacy="local_only")
    assert (error.status_code, error.code, told["x-gemma-ops-lane"]) == (400, "no_lane", "refuse")
    assert "never leaves this machine" in error.message
    assert len(gemini.log) == before + 1


def test_what_auto_answers_here_is_there_for_a_shadow_and_what_gemini_answers_is_not(live, monkeypatch):
    asked, close = [], Accounts.close
    monkeypatch.setattr(
        Accounts, "close", lambda self, account, status: (asked.append(account.asked.ask), close(self, account, status))
    )
    ask(live, "hello")
    ask(live, LONG)
    assert [one and one.messages[0]["content"] for one in asked] == ["hello", None]


def test_a_class_in_the_body_counts_and_the_stricter_of_two_holds(live):
    given = [{"privacy": "any"}, {"privacy": "local_only"}, {"privacy": "public"}]
    assert ask(live, LONG, privacy=None, metadata=given[0])[1]["x-gemma-ops-lane"] == "gemini"
    assert refused(live, LONG, privacy="any", metadata=given[1])[1]["x-gemma-ops-privacy"] == "local_only"
    error, _ = refused(live, LONG, privacy=None, metadata=given[2])
    assert (error.status_code, error.param) == (400, "metadata.privacy")
    turn = {"role": "user", "parts": [{"text": LONG}]}
    labelled = httpx2.post(
        f"{live.url}/v1beta/models/auto:generateContent",
        json={"contents": [turn], "labels": {"privacy": "any"}},
        timeout=60,
    )
    assert (labelled.status_code, labelled.headers["x-gemma-ops-lane"]) == (200, "gemini")


def test_streams_come_in_pieces_from_either_lane(live, gemini):
    for content, lane in (("hello", "local"), (LONG, "gemini")):
        chunks, told = ask(live, content, stream=True, stream_options={"include_usage": True}, max_tokens=40)
        parts = list(chunks)
        assert told["x-gemma-ops-lane"] == lane
        texts = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
        assert len(texts) > (2 if lane == "gemini" else 0)
        assert parts[-1].usage.gemma_ops["lane"] == lane
        events = list(google(live).models.generate_content_stream(model="auto", contents=content))
        assert "".join(event.text or "" for event in events)
        assert events[-1].usage_metadata.total_token_count
    assert gemini.log[-1].op == "stream"


def test_images_files_and_a_services_tools_are_carried_whole(live, gemini):
    _, told = ask(live, [{"type": "text", "text": "what is"}, IMAGE, {"type": "text", "text": "this?"}])
    assert told["x-gemma-ops-lane"] == "gemini"
    parts = gemini.log[-1].body["contents"][0]["parts"]
    assert [sorted(part) for part in parts] == [["text"], ["inlineData"], ["text"]]
    assert parts[1]["inlineData"]["data"] == PICTURE
    pdf = types.Part.from_bytes(data=b"%PDF-1.7", mime_type="application/pdf")
    config = types.GenerateContentConfig(tools=[types.Tool(code_execution=types.ToolCodeExecution())])
    assert google(live).models.generate_content(model="auto", contents=[pdf, "sum it up"], config=config).text
    sent = gemini.log[-1].body
    assert sent["contents"][0]["parts"][0]["inlineData"]["mime_type"] == "application/pdf"
    assert sent["tools"] == [{"codeExecution": {}}] or sent["tools"] == [{"code_execution": {}}]
    for privacy in (None, "local_only"):
        assert "image" in refused(live, [IMAGE], privacy=privacy)[0].message
        with pytest.raises(errors.ClientError, match="code is run by a service"):
            google(live, privacy).models.generate_content(model="auto", contents="add 2 and 2", config=config)


def test_what_can_not_be_carried_is_refused_by_name(live, gemini):
    before = len(gemini.log)
    search = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    with pytest.raises(errors.ClientError, match="search"):
        google(live).models.generate_content(model="auto", contents="news?", config=search)
    assert "search" in refused(live, "news?", extra_body={"web_search_options": {}})[0].message
    elsewhere = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    assert "data: URL" in refused(live, [elsewhere])[0].message
    assert "detail" in refused(live, [{**IMAGE, "image_url": {**IMAGE["image_url"], "detail": "low"}}])[0].message
    clip = {"inlineData": {"mimeType": "video/mp4", "data": "aGk="}, "videoMetadata": {"fps": 5}}
    limited = {"urlContext": {"only": ["a.example"]}}
    for body, word in (({"parts": [clip]}, "videoMetadata"), ({"parts": [{"text": "a"}]}, "settings of its own")):
        asked = {"contents": [body]} | ({"tools": [limited]} if word.startswith("settings") else {})
        told = httpx2.post(f"{live.url}/v1beta/models/auto:generateContent", json=asked, timeout=60)
        assert (told.status_code, word in told.json()["error"]["message"]) == (400, True)
    assert "probabilities of tokens" in refused(live, LONG, logprobs=True)[0].message
    assert "several replies" in refused(live, LONG, n=2)[0].message
    assert refused(live, "a", frequency_penalty=1)[0].param == "frequency_penalty"
    assert len(gemini.log) == before


def test_functions_are_called_by_either_lane(live):
    found, told = ask(live, LONG, tools=[TOOL])
    (call,) = found.choices[0].message.tool_calls
    assert (told["x-gemma-ops-lane"], call.function.name, found.choices[0].finish_reason) == (
        "gemini",
        "look_up",
        "tool_calls",
    )
    assert isinstance(json.loads(call.function.arguments), dict)
    assert ask(live, "hello", tools=[TOOL])[1]["x-gemma-ops-lane"] == "local"


def test_gemini_failing_falls_back_where_that_fits_and_says_so(live, gemini):
    asking = {"extra_body": {"metadata": {"privacy": "any"}}, "privacy": None}
    for fault in ("503", "500", "cut", "no_candidates"):
        gemini.fail(fault, times=None, seconds=0.01)
        error, told = refused(live, LONG)  # too long to be answered here
        assert (error.status_code, told["x-gemma-ops-lane"]) == (502, "refuse")
        assert "gemini failed" in told["x-gemma-ops-reasons"]
        gemini.heal()
    live.service.slots.waiting += 5  # as if five waited: public work goes to Gemini
    try:
        assert ask(live, "hello", **asking)[1]["x-gemma-ops-lane"] == "gemini"
        gemini.fail("503", times=None, seconds=0.01)
        for more in ({}, {"stream": True}):
            found, told = ask(live, "hello", **asking, **more)
            assert told["x-gemma-ops-lane"] == "local"
            assert "gemini failed (gemini)" in told["x-gemma-ops-reasons"]
            list(found) if more else None
    finally:
        live.service.slots.waiting -= 5


def test_what_gemini_blocks_is_told_and_its_silence_is_not_waited_for(file, gemini, tmp_path):
    with serving(
        file, gemini=machine_for(gemini, tmp_path), routing="default", routing_log=str(tmp_path / "log")
    ) as live:
        gemini.fail("blocked_reply", times=1)
        error, _ = refused(live, LONG)
        assert (error.status_code, error.code) == (400, "content_filter")
        assert ask(live, LONG)[1]["x-gemma-ops-lane"] == "gemini"
        gemini.fail("429", times=1, seconds=600)
        began = time.monotonic()
        assert "429" in refused(live, LONG)[0].message
        before = len(gemini.log)
        assert "of silence" in refused(live, LONG)[0].message
        assert len(gemini.log) == before
        assert time.monotonic() - began < 300


def test_an_engine_that_is_killed_sends_public_work_to_gemini_and_private_work_nowhere(file, policy, gemini, tmp_path):
    with serving(file, gemini=machine_for(gemini, tmp_path), routing=policy, routing_log=str(tmp_path / "log")) as live:
        os.kill(live.engine.pid, signal.SIGKILL)
        patience.until(lambda: not live.engine.alive(), 30, every=0.001)
        live.engine.alive = lambda: False  # for as long as this takes
        before = len(gemini.log)
        error, told = refused(live, "plant-a-secret", privacy=None)
        assert (error.status_code, told["x-gemma-ops-lane"], told["Retry-After"]) == (503, "refuse", "1")
        with pytest.raises(errors.ServerError):
            google(live, "local_only").models.generate_content(model="auto", contents="plant-a-secret")
        assert len(gemini.log) == before
        found, told = ask(live, "hello")
        assert (found.model, told["x-gemma-ops-lane"]) == ("gemini-3.8-flash", "gemini")
        assert "does not answer" in told["x-gemma-ops-reasons"]
        del live.engine.alive
        patience.until(live.engine.alive, 60)
        assert ask(live, "hello", privacy=None)[1]["x-gemma-ops-lane"] == "local"


def test_without_money_or_terms_public_work_stays_here(file, gemini, tmp_path):
    poor = machine_for(gemini, tmp_path, budget_usd=0.0001)
    with serving(file, gemini=poor, routing="default", routing_log=str(tmp_path / "log")) as live:
        assert "is left of the budget" in refused(live, LONG)[0].message
        assert ask(live, "hello")[1]["x-gemma-ops-lane"] == "local"
    shut = machine_for(gemini, tmp_path, accept_terms=None)
    with serving(file, gemini=shut, routing="default", routing_log=str(tmp_path / "log")) as live:
        assert "Gemini is shut" in live.router.told()
        assert "Gemini can't be asked" in refused(live, LONG)[0].message
        assert ask(live, "hello")[1]["x-gemma-ops-lane"] == "local"
    with serving(
        file, gemini=machine_for(gemini, tmp_path), routing="default", routing_log=str(tmp_path / "log"), privacy="paid"
    ) as live:
        assert "the policy keeps class paid" in refused(live, LONG)[0].message


def test_a_key_declares_the_class_of_what_is_asked_with_it(file, gemini, tmp_path):
    path = tmp_path / "keys"
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()}" for name in ("open", "inner", "plain")]
    path.write_text(f"{lines[0]} privacy=any\n{lines[1]} privacy=local_only\n{lines[2]}\n")
    with serving(
        file,
        keys=Keys.read(path),
        gemini=machine_for(gemini, tmp_path),
        routing="default",
        routing_log=str(tmp_path / "log"),
    ) as live:

        def lane(key, privacy):
            headers = {"Authorization": f"Bearer {key}"} | ({"x-gemma-ops-privacy": privacy} if privacy else {})
            body = {"model": "auto", "messages": [{"role": "user", "content": LONG}]}
            found = httpx2.post(f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            return found.headers["x-gemma-ops-lane"]

        assert [lane("open", None), lane("open", "local_only")] == ["gemini", "refuse"]
        assert [lane("inner", "any"), lane("plain", None), lane("plain", "any")] == ["refuse", "refuse", "gemini"]


def test_what_a_private_model_said_before_is_not_passed_on(live, gemini, monkeypatch):
    turns = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "on"},
    ]
    assert live.service.facts.learned == "any"
    assert ask(live, "", messages=turns)[1]["x-gemma-ops-lane"] == "gemini"
    object.__setattr__(live.service.facts, "learned", "local_only")
    try:
        assert "learned from rows of that class" in refused(live, "", messages=turns)[0].message
        assert ask(live, LONG)[1]["x-gemma-ops-lane"] == "gemini"
    finally:
        object.__setattr__(live.service.facts, "learned", "any")


def test_sixty_requests_in_both_protocols_leave_nothing_private_and_no_word_in_the_log(live, gemini):
    draw, before = random.Random(5), len(records(live))
    gemini.fail("503", times=None, share=0.2, seconds=0.01)
    planted = []

    def one(number):
        mark = f"plant{number:02d}q{draw.getrandbits(32):08x}"
        kind, personal, _ = FOUND[number % len(FOUND)] if number % 3 == 0 else ("", "", "")
        privacy = (None, "local_only", "any", "any")[number % 4]
        text = f"{mark} {personal} {LONG if number % 2 else ''}"
        planted.append((mark, privacy != "any" or bool(kind)))
        try:
            if number % 5 < 3:
                ask(live, text, privacy)
            else:
                google(live, privacy).models.generate_content(model="auto", contents=text)
        except (openai.APIStatusError, errors.APIError) as error:
            code = getattr(error, "status_code", None) or error.code
            assert code in (400, 429, 502, 503)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(60)))
    arrived = json.dumps([entry.body for entry in gemini.log])
    assert [mark for mark, private in planted if private and mark in arrived] == []
    assert sum(mark in arrived for mark, _ in planted) >= 8
    patience.until(lambda: len(records(live)) == before + 60, 30)
    log = live.router.log.path.read_text()
    assert "plant" not in log
    assert "tell me more" not in log
    assert all(len(record.decision.reasons) > 1 for record in records(live))
    assert oct(live.router.log.path.with_name("log.jsonl.key").stat().st_mode)[-3:] == "600"


def test_metrics_and_a_replay_add_up(live):
    found = records(live)
    text = httpx2.get(f"{live.url}/metrics").text
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    lanes = {key: value for key, value in counts.items() if key.startswith("gemma_ops_lane_requests_total")}
    assert sum(lanes.values()) == len(found)
    billed = sum(record.outcome.dollars or 0 for record in found)
    spent = sum(value for key, value in counts.items() if key.startswith("gemma_ops_lane_dollars_total"))
    assert spent == pytest.approx(billed)
    same = replay_log(found, load_policy(live.given.routing))
    assert same.leaked == []
    assert same.requests == len(found)


def test_auto_is_a_model_that_can_be_asked_for_its_tokens(live):
    names = [model.id for model in openai.OpenAI(base_url=f"{live.url}/v1", api_key="any").models.list()]
    assert names == ["nano", "auto"]
    listed = [model.name for model in google(live).models.list()]
    assert listed == ["models/nano", "models/auto"]
    assert google(live).models.count_tokens(model="auto", contents="hello").total_tokens == 14


def test_a_key_spends_its_own_budget_and_no_more_also_after_a_restart(file, policy, gemini, tmp_path):
    def server(**budgets):
        digests = {
            hashlib.sha256(name.encode()).hexdigest(): Grant(name, budget=most) for name, most in budgets.items()
        }
        log, machine = str(tmp_path / "log.jsonl"), machine_for(gemini, tmp_path)
        return serving(file, keys=Keys(digests), gemini=machine, routing=policy, routing_log=log)

    def sent(live, key):
        body = {"model": "auto", "messages": [{"role": "user", "content": LONG}], "max_tokens": 8}
        headers = {"authorization": f"Bearer {key}", "x-gemma-ops-privacy": "any"}
        reply = httpx2.post(f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        return reply.headers["x-gemma-ops-lane"], reply.headers["x-gemma-ops-reasons"], reply

    with server(rich=1.0, poor=0.0001) as live:
        lane, why, reply = sent(live, "rich")
        assert lane == "gemini"
        cost = reply.json()["usage"]["gemma_ops"]["dollars"]
        lane, why, _ = sent(live, "poor")
        assert lane == "refuse"
        assert "$0.0001 is left of poor's budget" in why
        most = live.router.budgets.left(Grant("rich", budget=1.0))
        assert most == pytest.approx(1.0 - cost)
        patience.until(lambda: len(records(live)) == 2, 30)  # a thread writes them
        reserve = records(live)[-2].signals.gemini.most
        page = httpx2.get(live.url).text
        assert f"<td>gemini<td>1<td>50%<td>{reply.json()['usage']['total_tokens']:,}<td>${cost:.4f}" in page
        assert "<td>refuse<td>1<td>50%<td>0<td>$0.0000" in page
        assert "left today" in page
    assert [one.key for one in records(live)] == ["rich", "poor"]
    with server(rich=cost + reserve * 1.01) as live:  # what it spent before counts: once more, and no further
        assert sent(live, "rich")[0] == "gemini"
        assert sent(live, "rich")[0] == "refuse"


def test_a_budget_counts_what_is_under_way_and_begins_anew_each_day():
    now = [datetime(2026, 11, 30, 23, 59, tzinfo=UTC)]
    budgets, grant = KeyBudgets(now=lambda: now[0]), Grant("a", budget=5.0)
    settle, unknown = budgets.reserve(grant, 3.0), budgets.reserve(grant, 1.0)
    assert budgets.left(grant) == 1.0
    settle(0.5)
    unknown(None)
    assert budgets.left(grant) == 3.5
    assert budgets.left(Grant("b")) == float("inf")
    late = budgets.reserve(grant, 3.0)
    now[0] += timedelta(minutes=2)
    assert budgets.left(grant) == 5.0
    late(0.1)
    assert budgets.left(grant) == 5.0
