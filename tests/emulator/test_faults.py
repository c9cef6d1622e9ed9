"""Every fault of the emulator, as google-genai meets it, and what the log says about it."""

from __future__ import annotations

import json

import httpx2
import pytest
from google.genai import errors

from gemma_ops.emulator import Emulator, orders
from gemma_ops.errors import ConfigError
from tests.helpers.emulated import client_of

FLASH = "gemini-3.8-flash"
TEXT = "Goods may be returned within 30 days. Refunds are paid within 14 days to the same account."
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}


@pytest.fixture
def client(emulator):
    return client_of(emulator)


def ask(client, text=TEXT, **config):
    return client.models.generate_content(model=FLASH, contents=text, config=config)


def stream(client):
    return list(client.models.generate_content_stream(model=FLASH, contents=TEXT))


def status(emulator):
    return [(entry.status, entry.fault, entry.billed) for entry in emulator.log]


def test_too_many_requests(client, emulator):
    emulator.fail("429", times=2, seconds=7)
    for call in (ask, stream):
        with pytest.raises(errors.ClientError) as caught:
            call(client)
        details = {detail["@type"].rsplit(".", 1)[-1]: detail for detail in caught.value.details["error"]["details"]}
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
        assert details["RetryInfo"]["retryDelay"] == "7s"
        assert "PerMinute" in details["QuotaFailure"]["violations"][0]["quotaId"]
    assert ask(client).text
    assert status(emulator) == [(429, "429", False)] * 2 + [(200, "", True)]


def test_the_quota_of_the_day(client, emulator):
    emulator.fail("429_daily", times=None)
    for _ in range(3):
        with pytest.raises(errors.ClientError) as caught:
            ask(client)
        assert "PerDay" in caught.value.details["error"]["details"][0]["violations"][0]["quotaId"]
    emulator.heal()
    assert ask(client).text


@pytest.mark.parametrize(
    "name,kind",
    [
        ("400", errors.ClientError),
        ("500", errors.ServerError),
        ("503", errors.ServerError),
        ("502", errors.ServerError),
    ],
)
def test_refusals(client, emulator, name, kind):
    emulator.fail(name)
    with pytest.raises(kind) as caught:
        ask(client)
    assert caught.value.code == int(name)
    assert status(emulator) == [(int(name), name, False)]


@pytest.mark.parametrize(
    "name,kind",
    [
        ("slow", httpx2.ReadTimeout),
        ("cut", httpx2.TransportError),
        ("cut_reply", httpx2.TransportError),
        ("bad_json", json.JSONDecodeError),
    ],
)
def test_replies_that_never_arrive_whole(client, emulator, name, kind):
    emulator.fail(name, seconds=60)
    options = {"timeout": 200} if name == "slow" else {}
    with pytest.raises(kind):
        ask(client, http_options=options)
    assert status(emulator) == [(200, name, True)]  # the service has done the work
    assert emulator.log[0].usage["totalTokenCount"] > 0
    assert ask(client).text


def test_a_stream_that_ends_early(client, emulator):
    emulator.fail("cut_stream")
    with pytest.raises(httpx2.TransportError):
        stream(client)
    emulator.fail("stream_error")
    with pytest.raises(errors.ServerError, match="503"):
        stream(client)
    assert status(emulator) == [(200, "cut_stream", True), (200, "stream_error", True)]


def test_replies_without_an_answer(client, emulator):
    found = {}
    for name in ("blocked_prompt", "blocked_reply", "recitation", "max_tokens", "no_candidates"):
        emulator.fail(name)
        found[name] = ask(client, max_output_tokens=100)
        assert found[name].text is None
    blocked = found["blocked_prompt"]
    assert (blocked.candidates, blocked.prompt_feedback.block_reason.name) == (None, "SAFETY")
    assert found["no_candidates"].candidates is found["no_candidates"].prompt_feedback is None
    ends = {name: reply.candidates[0].finish_reason.name for name, reply in found.items() if reply.candidates}
    assert ends == {"blocked_reply": "SAFETY", "recitation": "RECITATION", "max_tokens": "MAX_TOKENS"}
    usage = found["max_tokens"].usage_metadata
    assert (usage.thoughts_token_count, usage.candidates_token_count) == (100, 0)
    assert found["blocked_prompt"].usage_metadata.total_token_count == usage.prompt_token_count


def test_replies_that_are_wrong(client, emulator):
    config = {"response_mime_type": "application/json", "response_json_schema": SCHEMA}
    emulator.fail("violates_schema")
    assert set(json.loads(ask(client, **config).text)) == {"a"}
    emulator.fail("truncated")
    cut = ask(client, **config)
    assert cut.candidates[0].finish_reason.name == "MAX_TOKENS"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.text)
    emulator.fail("no_usage", times=2)
    assert ask(client).usage_metadata is None
    assert all(event.usage_metadata is None for event in stream(client))
    assert emulator.log[-1].usage["totalTokenCount"] > 0


def test_a_continuation_is_a_second_request_that_is_billed(client, emulator):
    emulator.fail("continuation")
    assert ask(client).usage_metadata.candidates_token_count > 0
    assert len(emulator.billed()) == 2
    emulator.fail("continuation")
    assert ask(client, automatic_continuation=False).candidates[0].finish_reason.name == "CONTINUATION"
    assert len(emulator.billed()) == 3


def batch(client, fault_first=None):
    items = [
        {"contents": [{"role": "user", "parts": [{"text": f"{n} {TEXT}"}]}], "metadata": {"key": str(n)}}
        for n in range(4)
    ]
    job = client.batches.create(model=FLASH, src=items)
    for _ in range(2):
        job = client.batches.get(name=job.name)
    return job


def test_items_of_a_batch_fail_alone(client, emulator):
    emulator.fail("item_503", match='"key": "2"')
    emulator.fail("item_missing", match='"key": "3"')
    emulator.fail("blocked_reply", on="item", match='"key": "1"')
    job = batch(client)
    assert job.state.name == "JOB_STATE_SUCCEEDED"
    found = {reply.metadata["key"]: reply for reply in job.dest.inlined_responses}
    assert sorted(found) == ["0", "1", "2"]
    assert found["0"].response.text
    assert found["1"].response.text is None
    assert (found["2"].error.code, found["2"].response) == (14, None)
    assert [(entry.key, entry.status, entry.billed) for entry in emulator.of("item")] == [
        ("0", 200, True),
        ("1", 200, True),
        ("2", 503, False),
        ("3", 200, False),
    ]


@pytest.mark.parametrize("name,state", [("batch_failed", "JOB_STATE_FAILED"), ("batch_expired", "JOB_STATE_EXPIRED")])
def test_jobs_fail_as_a_whole(client, emulator, name, state):
    emulator.fail(name)
    job = batch(client)
    assert (job.state.name, job.dest) == (state, None)
    assert not emulator.billed()


def test_results_may_come_later_than_the_state(client, emulator):
    emulator.fail("output_late")
    job = batch(client)
    assert (job.state.name, job.dest) == ("JOB_STATE_SUCCEEDED", None)
    assert len(client.batches.get(name=job.name).dest.inlined_responses) == 4


def test_uploads_fail(client, emulator, tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("text", encoding="utf-8")
    emulator.fail("upload_failed")
    with pytest.raises(errors.ServerError):
        client.files.upload(file=str(file))
    emulator.fail("503", on="upload")
    with pytest.raises(errors.ServerError):
        client.files.upload(file=str(file))
    assert client.files.upload(file=str(file)).size_bytes == 4


def test_faults_strike_where_they_are_told_to(client, emulator):
    emulator.fail("503", on="count")
    emulator.fail("503", match="owl")
    emulator.fail("500", on="poll", times=2)
    assert ask(client).text
    with pytest.raises(errors.ServerError):
        ask(client, "An owl.")
    assert ask(client, "An owl.").text
    for _ in range(1):
        with pytest.raises(errors.ServerError):
            client.models.count_tokens(model=FLASH, contents=TEXT)
    with pytest.raises(errors.ServerError):
        batch(client)
    with pytest.raises(ConfigError, match="no fault is called"):
        emulator.fail("503s")
    with pytest.raises(ConfigError, match="no operation is called"):
        emulator.fail("503", on="pole")


def test_a_share_is_drawn_by_the_seed_whatever_the_order(tmp_path):
    def struck(seed, order):
        with Emulator(seed=seed) as emulator:
            emulator.fail("no_usage", times=None, share=0.3)
            client = client_of(emulator)
            return {n for n in order if ask(client, f"Number {n}?").usage_metadata is None}

    first = struck(1, range(60))
    assert 8 <= len(first) <= 28
    assert first == struck(1, reversed(range(60)))
    assert first != struck(2, range(60))


def test_orders_come_from_a_file(tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text(
        "- {fault: 429, times: 2, seconds: 0.5}\n- {fault: slow, on: generate, share: 0.1, times: null}\n",
        encoding="utf-8",
    )
    found = [(order.fault, order.times, order.on, order.share, order.seconds) for order in orders.read_orders(file)]
    assert found == [("429", 2, None, 1.0, 0.5), ("slow", None, "generate", 0.1, 1.0)]
    for wrong in (
        "fault: 429",
        "- 429",
        "- {fault: slow, often: 3}",
        "- {times: 3}",
        "- {fault: slow, times: many}",
        "- [",
        "nothing",
    ):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ConfigError):
            orders.read_orders(file)
