"""One request: how it is spelled on the wire, every way it can end or fail, what each costs, and what is kept."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time

import pytest

from gemma_ops.config import MachineConfig
from gemma_ops.emulator import EmulatedReply, Emulator
from gemma_ops.emulator.faults import NAMES
from gemma_ops.errors import BudgetError, ConfigError, DataError, ServiceError
from gemma_ops.gemini import cache, prices, reply, request_wire
from gemma_ops.gemini.batch import BatchDoor
from gemma_ops.gemini.cache import Store, open_ledger
from gemma_ops.gemini.client import Client
from gemma_ops.gemini.limiter import Limiter
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.retry import backoff
from gemma_ops.gemini.spending import spending
from gemma_ops.gemini.usage import Usage
from tests.helpers import patience
from tests.helpers.emulated import KEY, machine_for

FLASH = "gemini-3.8-flash"


def request(text="How tall is the tower?", **more):
    settings = {"model": FLASH, "max_output_tokens": 256, "use": "evaluate", "privacy": "any"}
    return Request(messages=({"role": "user", "content": text},), **(settings | more))


def client_of(machine, run="test"):
    config = machine.gemini
    return Client(config, Store(open_ledger(machine, run), "rehearsal"))


@pytest.fixture
def client(machine):
    return client_of(machine)


# Fault, how the request ends, what the journal counts for the tries before, and what of it is paid for:
# `once` the reply, `more` the reply and a full reservation for a try whose bill is not known, `full` a reservation
# because the service did not say, `nothing`.
OUTCOMES = {
    "429": ("stop", ["busy"], "once"),
    "429_bare": ("stop", ["busy"], "once"),
    "429_closed": (ConfigError, ["stop"], "nothing"),
    "429_daily": (ServiceError, ["stop"], "nothing"),
    "401": (ConfigError, ["stop"], "nothing"),
    "403": (ConfigError, ["stop"], "nothing"),
    "404": (ConfigError, ["stop"], "nothing"),
    "408": ("stop", ["failed"], "once"),
    "504": ("stop", ["failed"], "once"),
    "500": ("stop", ["failed"], "once"),
    "502": ("stop", ["failed"], "once"),
    "503": ("stop", ["failed"], "once"),
    "400": ("error", ["refused"], "nothing"),
    "slow": ("stop", ["lost"], "more"),
    "cut": ("stop", ["lost"], "more"),
    "cut_reply": ("stop", ["lost"], "more"),
    "cut_stream": ("stop", ["lost"], "more"),
    "stream_error": ("stop", ["lost"], "more"),
    "bad_json": ("stop", ["lost"], "more"),
    "violates_schema": ("stop", [], "once"),
    "truncated": ("length", [], "once"),
    "max_tokens": ("length", [], "once"),
    "blocked_prompt": ("blocked", [], "once"),
    "blocked_reply": ("blocked", [], "once"),
    "recitation": ("blocked", [], "once"),
    "no_candidates": ("error", [], "once"),
    "no_usage": ("stop", [], "full"),
    "continuation": ("length", [], "once"),
    "item_503": ("stop", ["failed"], "once"),
    "item_missing": ("stop", ["failed"], "once"),
    "batch_failed": (ServiceError, [], "nothing"),
    "batch_expired": (ServiceError, [], "nothing"),
    "output_late": ("stop", [], "once"),
    "upload_failed": ("stop", [], "once"),
}


def test_every_fault_of_the_emulator_has_an_outcome():
    assert OUTCOMES.keys() == NAMES


@pytest.mark.parametrize("fault", sorted(OUTCOMES))
def test_a_fault_is_counted_retried_or_refused_and_never_an_empty_answer(fault, emulator, tmp_path):
    """`truth` is what the service counted; the ledger must agree to the nanodollar, and count more only where it can't
    know."""
    end, faults, paid = OUTCOMES[fault]
    by_batch = fault.startswith(("item", "batch", "output", "upload"))
    short = {"timeout_seconds": 0.5} if "slow" in fault else {}
    machine = machine_for(emulator, tmp_path, batch="always" if by_batch else "never", **short)
    client = client_of(machine)
    emulator.fail(fault, seconds=0.05 if fault.startswith("429") else 1.0)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    asked = request(stream="stream" in fault, schema=schema if fault == "violates_schema" else None)

    sent = None
    if isinstance(end, type):
        with pytest.raises(end, match=r"quota of the day|batch job|not open to|refused the key|does not know"):
            ask(client, asked, by_batch)
        assert client.store.find(asked.key()) is None
    else:
        sent = ask(client, asked, by_batch)
        answer = sent.answer
        assert (answer.end, sent.faults) == (end, faults)
        assert bool(answer.text.strip()) or answer.end != "stop"
        assert bool(answer.reason) == (answer.end in ("blocked", "error"))
        # What is whole is kept and never asked again; a failure is asked again.
        assert (client.store.find(asked.key()) is not None) == (end != "error")

    spent = client.store.ledger.spent()
    tier = "batch" if by_batch else "standard"
    now = dt.datetime.now(dt.UTC)
    worst = prices.worst(FLASH, prices.prompt_bound(request_wire.body(asked)), 256, tier=tier, at=now)
    bills = [
        prices.request_price(FLASH, Usage.of_metadata(entry.usage), tier=tier, at=now) for entry in emulator.billed()
    ]
    truth = {"once": bills[-1:], "more": [worst, *bills[-1:]], "full": [worst], "nothing": []}[paid]
    assert (spent.settled, spent.reserved, spent.lost) == (sum(truth), 0, 0)
    assert spent.settled >= sum(bills)
    if sent and paid in ("once", "full"):
        assert sent.answer.dollars == pytest.approx(spent.settled / prices.NANO)


def ask(client, asked, by_batch):
    if not by_batch:
        return client.answer(asked)
    found = []
    BatchDoor(client, note=lambda **fields: None).answer({1: asked}, lambda number, sent: found.append(sent))
    return found[0]


@pytest.mark.parametrize("fault", ["503", "cut", "bad_json", "429"])
def test_tries_end(fault, emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, attempts=3))
    emulator.fail(fault, times=None, seconds=0.01)
    sent = client.answer(request())
    assert (sent.answer.end, sent.answer.text, sent.tries, len(emulator.log)) == ("error", "", 3, 3)
    assert "the last of 3 tries" in sent.answer.reason
    lost = fault in ("cut", "bad_json")
    assert (client.store.ledger.spent().settled > 0) == lost == (sent.answer.dollars > 0)


def test_the_wait_that_the_service_asks_for_is_kept(emulator, client):
    """The library would have tried again after 0.05 s, whatever RetryInfo says."""
    emulator.fail("429", times=2, seconds=0.3)
    began = time.monotonic()
    assert client.answer(request()).tries == 3
    assert time.monotonic() - began > 0.6
    gaps = [after.time - before.time for before, after in zip(emulator.log, emulator.log[1:], strict=False)]
    assert min(gaps) >= 0.3


def test_a_quota_of_the_day_stops_everything_and_says_until_when(emulator, client):
    client.answer(request())
    emulator.fail("429_daily", times=None)
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"quota of the day[\s\S]*PerDay[\s\S]*again after .*midnight Pacific"):
            client.answer(request("another"))
    assert len(emulator.log) == 2
    assert client.store.find(request().key())


def test_a_service_that_is_down_stops_the_run(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, attempts=1))
    emulator.fail("503", times=None)
    ends = [client.answer(request(f"question {number}")).answer.end for number in range(19)]
    assert set(ends) == {"error"}
    with pytest.raises(ServiceError, match="the last 20 requests"):
        client.answer(request("the last straw"))


def test_a_crowd_that_is_too_much_gets_smaller_and_comes_through(emulator, client):
    emulator.fail("429", times=8, seconds=0.1)
    ends = together(8, lambda number: client.answer(request(f"question {number}")).answer.end)
    assert ends == ["stop"] * 8
    assert len(emulator.billed()) == 8
    assert client.limiter.limit < 8


def test_one_question_of_two_runs_is_asked_once(emulator, machine):
    """Each has its own connection to the store, as two processes do; the second waits for what the first one sends."""
    emulator.latency = 0.2
    clients = [client_of(machine, run) for run in ("one", "two", "three")]
    answers = together(3, lambda number: clients[number].answer(request()).answer)
    assert answers[0] == answers[1] == answers[2]
    assert len(emulator.log) == 1


def together(count, work):
    results = []
    threads = [threading.Thread(target=lambda number=number: results.append(work(number))) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_backoff_doubles_with_jitter():
    waits = [[backoff(attempt, None, rehearsal=False) for _ in range(50)] for attempt in (1, 3, 12)]
    assert max(waits[0]) <= 2.0 < max(waits[1]) <= 8.0
    assert max(waits[2]) <= 60.0
    assert len(set(waits[0])) > 40
    assert min(backoff(1, 7.0, rehearsal=False) for _ in range(20)) >= 7.0


def test_too_many_requests_lower_the_crowd_and_answers_raise_it():
    now = [0.0]
    limiter = Limiter(16, clock=lambda: now[0])
    for _ in range(10):  # one crowd is turned away: that is one message, not ten
        limiter.too_many(started=0.0, wait=None)
        now[0] += 0.01
    assert limiter.limit == 8
    limiter.too_many(started=1.0, wait=None)
    assert limiter.limit == 4
    for _ in range(4):
        limiter.served()
    assert 4.9 < limiter.limit < 5.1
    for _ in range(500):
        limiter.served()
    assert limiter.limit == 16


def test_no_more_at_once_than_allowed():
    limiter, most, inside, lock = Limiter(3), [0], [0], threading.Lock()

    def work(_):
        with limiter.slot():
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            with lock:
                inside[0] -= 1

    together(12, work)
    assert most[0] == 3


def test_the_defaults_that_do_harm_are_off_on_every_request(emulator, client):
    client.answer(request())
    client.answer(request("again", stream=True))
    emulator.fail("continuation")
    client.answer(request("a long story"))
    assert [entry.body["store"] for entry in emulator.log] == [False] * 3
    assert len(emulator.log) == 3  # a continuation would have been a second bill


def test_a_batch_line_says_what_a_direct_request_says(emulator, client):
    call = {"id": "c1", "function": {"name": "lookup", "arguments": '{"name": "Eiffel"}'}}
    asked = Request(
        model=FLASH,
        messages=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How tall?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"metres": 330}'},
        ),
        max_output_tokens=64,
        use="evaluate",
        privacy="any",
        schema={
            "type": "object",
            "properties": {"answer": {"$ref": "#/$defs/text"}},
            "$defs": {"text": {"type": "string"}},
        },
        thinking="low",
        tools=(
            {"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {"type": "object"}}},
        ),
    )
    client.answer(asked)
    sent, line = (canonical(body) for body in (emulator.log[-1].body, request_wire.body(asked)))
    assert sent == line
    assert line["systeminstruction"]["parts"] == [{"text": "Be brief."}]
    assert [turn["role"] for turn in line["contents"]] == ["user", "model", "user"]
    assert line["contents"][1]["parts"][0]["functioncall"] == {"name": "lookup", "args": {"name": "Eiffel"}}
    assert line["contents"][2]["parts"][0]["functionresponse"] == {"name": "lookup", "response": {"metres": 330}}
    assert line["generationconfig"]["responsejsonschema"]["$defs"]  # nothing of the schema is lost
    assert line["generationconfig"]["thinkingconfig"] == {"thinkinglevel": "LOW"}


def canonical(value):
    """Field names without case or underscores: the library mixes both on the wire."""
    if isinstance(value, dict):
        return {key.replace("_", "").lower(): canonical(item) for key, item in value.items()}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def test_sampling_parameters_go_only_to_models_that_take_them(emulator, client):
    client.answer(request(temperature=0.3, seed=7))
    client.answer(request(model="gemini-3.1-flash-lite", temperature=0.3, seed=7))
    configs = [canonical(entry.body)["generationconfig"] for entry in emulator.log]
    assert "temperature" not in configs[0]
    assert (configs[1]["temperature"], configs[1]["seed"]) == (0.3, 7)


def test_flex_is_asked_for_and_paid_as_flex(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, service_tier="flex"))
    answer = client.answer(request()).answer
    entry = emulator.log[0]
    assert (entry.body["serviceTier"], entry.tier, answer.tier) == ("flex", "flex", "flex")
    now = dt.datetime.now(dt.UTC)
    assert (
        answer.dollars == prices.request_price(FLASH, Usage.of_metadata(entry.usage), tier="flex", at=now) / prices.NANO
    )


def test_what_the_service_would_refuse_is_refused_before():
    with pytest.raises(ConfigError, match=r"no thinking level 'minimal'[\s\S]*low, medium, high"):
        request_wire.check_request(request(thinking="minimal"))
    with pytest.raises(ConfigError, match=r"gemini-3\.8-flash"):
        request_wire.check_request(request(model="gemini-3.8-flsh"))
    with pytest.raises(DataError, match="the model's own"):
        request_wire.check_request(Request(FLASH, ({"role": "assistant", "content": "{"},), 8, "judge"))
    for arguments, told in (("{", "no JSON"), ("[1]", "list, not an object"), (7, "int, not an object")):
        calling = {"function": {"name": "lookup", "arguments": arguments}}
        turns = ({"role": "assistant", "tool_calls": [calling]}, {"role": "user", "content": "and?"})
        with pytest.raises(DataError, match=f"request row-7 .*{told}"):
            request_wire.check_request(Request(FLASH, turns, 8, "judge", id="row-7"))
    for broken in ({"text": "cut \ud83d"}, {"schema": {"\udc00": {}}}):
        with pytest.raises(DataError, match="request row-8 holds half a character"):
            request_wire.check_request(request(id="row-8", **broken))
        with pytest.raises(DataError, match="row-8"):  # as a forecast asks, which sends nothing
            request_wire.body(request(id="row-8", **broken))
    with pytest.raises(DataError, match="other than text"):
        request_wire.check_request(Request(FLASH, ({"role": "user", "content": [{"type": "image_url"}]},), 8, "judge"))


def test_usage_is_recorded_with_thoughts_and_cached_input(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    said = EmulatedReply("ok", prompt_tokens=100, cached_tokens=40, output_tokens=2, thought_tokens=50)
    with Emulator(lambda body: said) as emulator:
        client = client_of(machine_for(emulator, tmp_path))
        answer = client.answer(request()).answer
    assert (answer.prompt_tokens, answer.cached_tokens, answer.new_tokens, answer.thought_tokens) == (100, 40, 2, 50)
    assert answer.model == FLASH
    assert answer.response_id == emulator.log[0].response_id
    assert answer.dollars > 50 * 3.75e-6  # the thoughts are in the bill
    assert client.store.find(request().key()) == answer


def test_streaming_measures_the_first_token(emulator, client):
    assert client.answer(request()).answer.first_seconds is None
    streamed = client.answer(request("again", stream=True)).answer
    assert 0 < streamed.first_seconds <= streamed.seconds
    assert emulator.log[-1].op == "stream"


def test_a_key_or_model_that_is_wrong_stops_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "wrong")
    with Emulator(keys=frozenset({"right"})) as emulator:
        client = client_of(machine_for(emulator, tmp_path))
        with pytest.raises(ConfigError, match="refused the key"):
            client.answer(request())
        with pytest.raises(ConfigError, match="refused the key"):
            client.answer(request("another"))
        assert len(emulator.log) == 1
        assert client.store.ledger.spent().total == 0


def test_nobody_there_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator() as emulator:
        machine = machine_for(emulator, tmp_path, attempts=2)
    client = client_of(machine)
    with pytest.raises(ServiceError, match="can't be reached"):
        client.answer(request())
    assert client.store.ledger.spent().total == 0


def test_a_full_cap_waits_for_requests_on_the_wire(tmp_path, monkeypatch):
    """The cap has room for two at their worst; each costs far less than that, so all eight come through one after
    another."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    now = dt.datetime.now(dt.UTC)
    worst = prices.worst(
        FLASH, prices.prompt_bound(request_wire.body(request("question 0"))), 256, tier="standard", at=now
    )
    with Emulator(latency=0.02, thoughts=(0, 4)) as emulator:
        client = client_of(machine_for(emulator, tmp_path, budget_usd=worst * 2 / prices.NANO, concurrency=8))
        ends = together(8, lambda number: client.answer(request(f"question {number}")).answer.end)
        assert ends == ["stop"] * 8
        spent = client.store.ledger.spent()
        assert spent.total == spent.settled <= worst * 2
        with pytest.raises(BudgetError, match="of the run's"):
            client.answer(request(max_output_tokens=60_000))


@pytest.mark.parametrize("fault", [None, "cut", "503"])
def test_a_reservation_that_can_not_be_closed_stops_everything(fault, emulator, tmp_path):
    """It stays held by a process that lives: the next request would wait for it to make room, for ever."""
    now = dt.datetime.now(dt.UTC)
    worst = prices.worst(FLASH, prices.prompt_bound(request_wire.body(request())), 256, tier="standard", at=now)
    client = client_of(machine_for(emulator, tmp_path, budget_usd=1.2 * worst / prices.NANO))
    with client.store.ledger.connect() as connection:
        connection.execute("CREATE TRIGGER stuck BEFORE UPDATE ON reservations BEGIN SELECT RAISE(ABORT, 'stuck'); END")
    if fault:
        emulator.fail(fault)
    for _ in range(2):
        assert "stuck" in str(failure(lambda: client.answer(request())))
    assert len(emulator.log) == 1


def failure(work, seconds=10.0):
    """The exception of `work`; fails when it does not come in time, instead of waiting with it."""
    found = []

    def run():
        try:
            work()
        except Exception as error:
            found.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    assert patience.joined(worker, seconds)
    assert found
    return found[0]


def test_a_run_at_its_own_cap_does_not_wait_for_another_run(emulator, tmp_path):
    busy = open_ledger(machine_for(emulator, tmp_path), "busy")
    busy.reserve("k", model=FLASH, use="synth", tier="standard", worst=10**6)
    small = client_of(machine_for(emulator, tmp_path, budget_usd=0.00001), "small")
    refused = failure(lambda: small.answer(request()))
    assert isinstance(refused, BudgetError)
    assert "of the run's" in refused.what
    assert not emulator.log


def test_an_address_that_nothing_can_be_sent_to_costs_nothing(emulator, tmp_path):
    """The configuration refuses it first (see test_gemini_boundary); behind it the client takes it for no lost
    request."""
    machine = machine_for(emulator, tmp_path)
    for number, url in enumerate(("localhost:9", "ftp://127.0.0.1:9")):
        config = machine.gemini.model_copy(update={"base_url": url})
        client = Client(config, Store(open_ledger(machine, f"run {number}"), "rehearsal"))
        with pytest.raises(ConfigError, match=r"no request can be sent[\s\S]*base_url"):
            client.answer(request())
        assert client.store.ledger.spent().total == 0


def test_spending_tells_replies_without_usage_from_tries_that_were_lost(emulator, client):
    emulator.fail("no_usage")
    client.answer(request())
    emulator.fail("cut", times=2)
    client.answer(request("another"))
    found = spending(client.store.ledger.path)
    assert (found.sum.requests, found.sum.without_usage, found.sum.unanswered) == (2, 1, 2)
    text = "\n".join(found.lines())
    assert "1 replies named no usage" in text
    assert "2 tries broke off or timed out" in text


@pytest.mark.parametrize(
    ("body", "end", "text"),
    [
        ({}, "error", ""),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "blocked", ""),
        ({"candidates": [{"finishReason": "STOP"}]}, "error", ""),
        ({"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": " "}]}}]}, "error", ""),
        ({"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": "hm", "thought": True}]}}]}, "error",
            ""),
        ({"candidates": [{"content": {"parts": [{"text": "half a"}]}}]}, "error", ""),
        ({"candidates": [{"finishReason": "SPII", "content": {"parts": [{"text": "Jane"}]}}]}, "blocked", ""),
        ({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}, "error", ""),
        ({"candidates": [{"finishReason": "A_NEW_ONE", "content": {"parts": [{"text": "x"}]}}]}, "error", ""),
        ({"candidates": [{"finish_reason": "MAX_TOKENS", "content": {"parts": [{"text": "half a"}]}}]}, "length",
            "half a"),
        ({"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": "a"}, {"text": "b"}]}}]}, "stop",
            "ab"),
    ],
)  # fmt: skip
def test_every_way_a_reply_can_end(body, end, text):
    found = reply.read_reply(body)
    assert (found.end, found.text) == (end, text)
    assert found.usage is None
    assert bool(found.reason) == (end in ("blocked", "error"))


def test_calls_of_tools_are_an_answer():
    part = {"functionCall": {"name": "lookup", "args": {"name": "Eiffel"}}}
    found = reply.read_reply({"candidates": [{"finishReason": "STOP", "content": {"parts": [part]}}]})
    assert found.end == "stop"
    assert json.loads(found.text)["tool_calls"] == [{"function": {"name": "lookup", "arguments": {"name": "Eiffel"}}}]


def test_the_key_of_a_request_is_what_decides_its_answer():
    base = request()
    assert request(id="other", use="judge", privacy="paid", stream=True).key() == base.key()
    for change in ({"repeat": 1}, {"thinking": "low"}, {"max_output_tokens": 9}, {"schema": {}}, {"seed": 1}):
        assert request(**change).key() != base.key()
    assert Request.from_json(json.loads(json.dumps(base.to_json()))) == base


def test_a_rehearsal_fills_no_cap_of_the_real_ledger(tmp_path, emulator):
    real = MachineConfig(runs=str(tmp_path))
    unproven = MachineConfig(runs=str(tmp_path), gemini={"base_url": "http://127.0.0.1:1"})
    rehearsed = MachineConfig(runs=str(tmp_path), gemini={"base_url": emulator.url})
    elsewhere = MachineConfig(ledger=str(tmp_path / "spent.db"), gemini={"base_url": emulator.url})
    assert cache.store_path(real) == cache.store_path(unproven) == tmp_path / "gemini.sqlite"
    assert cache.store_path(rehearsed) == tmp_path / "gemini.rehearsal.sqlite"
    assert cache.store_path(elsewhere) == tmp_path / "spent.rehearsal.db"
