"""What may not leave does not leave: every refusal comes before the first byte is sent."""

from __future__ import annotations

import json
import random

import pytest

from gemma_ops.config import GeminiConfig, loading
from gemma_ops.errors import BoundaryError, BudgetError, ConfigError
from gemma_ops.gemini import boundary, notice, open_gemini, service_access
from gemma_ops.gemini.cache import Asked, Served, Store, open_ledger
from gemma_ops.gemini.client import Client
from gemma_ops.gemini.courier import Courier
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import connect_gemini, endpoint, rehearsal
from gemma_ops.runs import journal
from tests.helpers.emulated import KEY, machine_for

FLASH = "gemini-3.8-flash"
HOSTED = "gemma-4-31b-it"


def request(text="Hello", **more):
    settings = {"model": FLASH, "max_output_tokens": 64, "use": "synth", "privacy": "any"}
    return Request(messages=({"role": "user", "content": text},), **(settings | more))


def config(**more):
    settings = {"accept_terms": notice.TERMS, "tier": "paid", "budget_usd": 1.0, "base_url": "http://127.0.0.1:1"}
    return GeminiConfig(**(settings | more))


def test_local_rows_never_leave_whatever_is_declared():
    rows = [request(f"row {number}", id=f"r{number}") for number in range(5)]
    rows[2:4] = [request("secret", id=name, privacy="local_only") for name in ("mine", "also-mine")]
    for settings in ({}, {"tier": "unpaid"}, {"enterprise": True}):
        with pytest.raises(
            BoundaryError, match=r"2 of 5 rows are of class local_only.*the first is mine; nothing was sent"
        ):
            boundary.check_boundary(rows, config(**settings))


def test_a_request_is_local_unless_it_says_otherwise():
    with pytest.raises(BoundaryError, match="local_only"):
        boundary.check_boundary([Request(FLASH, ({"role": "user", "content": "x"},), 8, "judge")], config())


@pytest.mark.parametrize(
    ("settings", "model", "allowed"),
    [
        ({"tier": "unpaid"}, FLASH, False),
        ({"tier": "paid"}, FLASH, True),
        ({"tier": "unpaid", "enterprise": True}, FLASH, True),
        ({"tier": "paid"}, HOSTED, False),  # offered under unpaid terms only, whatever the project pays for
    ],
)
def test_paid_rows_need_paid_terms(settings, model, allowed):
    rows = [request(privacy="paid", model=model)]
    if allowed:
        boundary.check_boundary(rows, config(**settings))
    else:
        with pytest.raises(BoundaryError, match="of class paid"):
            boundary.check_boundary(rows, config(**settings))


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"tier": "unpaid"}, "only paid services"),
        ({"tier": "paid"}, None),
        ({"enterprise": True}, "'global' is not in Europe"),
        ({"enterprise": True, "location": "us-central1"}, "not in Europe"),
        ({"enterprise": True, "location": "eu"}, None),
        ({"enterprise": True, "location": "europe-west6"}, None),
    ],
)
def test_in_europe_only_paid_services_and_european_locations(settings, refusal):
    place = config(region="eea_uk_ch", **settings)
    if refusal is None:
        boundary.check_boundary([request()], place)
    else:
        with pytest.raises(BoundaryError, match=refusal):
            boundary.check_boundary([request()], place)


@pytest.mark.parametrize(
    "tool", [{"google_search": {}}, {"googleMaps": {}}, {"url_context": {}}, {"type": "file_search"}]
)
def test_what_the_service_looks_up_is_not_trained_on_and_has_no_price(tool):
    name = tool.get("type") or next(iter(tool))
    with pytest.raises(BoundaryError, match=f"train on what {name} finds"):
        boundary.check_boundary([request(tools=(tool,))], config())
    with pytest.raises(BudgetError, match=name):
        boundary.check_boundary([request(tools=(tool,), use="evaluate")], config())
    function = {"type": "function", "function": {"name": "lookup", "parameters": {}}}
    boundary.check_boundary([request(tools=(function,))], config())


@pytest.mark.parametrize("accepted", [None, "2025-01-01"])
def test_terms_are_shown_with_the_refusal_and_accepted_by_their_date(accepted):
    with pytest.raises(BoundaryError) as refused:
        boundary.check_boundary([request()], config(accept_terms=accepted))
    for word in ("compete", "Unpaid tier", "Switzerland", "55 days", "store=false", notice.SOURCE, notice.AS_OF):
        assert word in refused.value.what
    assert refused.value.fix.endswith(f"machine.gemini.accept_terms={notice.TERMS}")


def test_personal_data_is_reported_refused_or_left_alone(tmp_path):
    rows = [request("nothing here"), request("write to jane@example.org or max@example.org", id="r2")]
    with journal.writing(tmp_path, "synthesize") as log:
        assert boundary.check_boundary(rows, config(pii="report", tier="unpaid")) == {"EMAIL": 2}
    record = json.loads(log.read_text())
    assert (record["rows"], record["of"], record["found"]) == (1, 2, {"EMAIL": 2})
    assert record["forbidden_by_terms"] is True
    assert "jane" not in log.read_text()
    with pytest.raises(BoundaryError, match=r"1 of 2 rows.*2 EMAIL.*the first is r2"):
        boundary.check_boundary(rows, config(pii="refuse"))
    assert not boundary.check_boundary(rows, config(pii="off"))


@pytest.mark.parametrize("place", ["content", "arguments", "schema", "tool", "part"])
def test_personal_data_is_looked_for_in_everything_that_would_be_sent(place):
    mail = "jane@example.org"
    messages = {
        "content": ({"role": "system", "content": mail}, {"role": "user", "content": "x"}),
        "arguments": ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"to": mail}}}]},),
        "part": ({"role": "user", "content": [{"type": "text", "text": mail}]},),
    }.get(place, ({"role": "user", "content": "x"},))
    schema = {"description": mail} if place == "schema" else None
    tools = ({"function": {"name": "f", "description": mail}},) if place == "tool" else ()
    asked = Request(FLASH, messages, 8, "judge", privacy="any", schema=schema, tools=tools)
    assert boundary.check_boundary([asked], config()) == {"EMAIL": 1}


def test_nothing_is_sent_unless_all_may_be(emulator, machine):
    """The local row is the last of two hundred; the door refuses before it starts a process."""
    rows = [request(f"row {number}") for number in range(199)] + [request("secret", privacy="local_only")]
    random.Random(0).shuffle(rows)
    with open_gemini(machine, run="test") as gemini:
        with pytest.raises(BoundaryError, match="1 of 200"):
            gemini.ask(rows)
        assert gemini._pipe is None
    assert not emulator.log


def test_the_courier_checks_by_itself(emulator, machine):
    """What reaches it past the door is refused all the same, one by one and in a batch."""
    said = []
    opening = {"gemini": machine.gemini.model_dump(mode="json"), "ledger": f"{machine.runs}/g.sqlite", "run": "r"}
    courier = Courier({**opening, "caps": [10**9, None], "since": 0.0, "rehearsal": True}, said.append)
    secret = request("secret", privacy="local_only").to_json()
    courier.take({"ask": [{"n": 1, "request": secret}], "batch": False})
    courier.take({"ask": [{"n": 2, "request": secret}, {"n": 3, "request": request().to_json()}], "batch": True})
    for thread in courier._batches:
        thread.join()
    courier.leave()
    assert sorted(line["n"] for line in said if line["error"]["kind"] == "BoundaryError") == [1, 2, 3]
    assert not emulator.log


def test_the_store_has_no_place_for_a_local_row(emulator, machine):
    store = Store(open_ledger(machine, "r"), "rehearsal")
    sent = Client(machine.gemini, store).answer(request())
    number = store.ledger.reserve("k", model=FLASH, use="synth", tier="standard", worst=5)
    local = Asked("k", FLASH, "synth", "local_only")
    with pytest.raises(BoundaryError):
        store.settle(number, local, Served(sent.answer, {}, 1))
    assert store.find("k") is None
    assert store.ledger.held("k")  # not paid for either: both or neither


def test_offline_opens_only_to_this_machine(monkeypatch, tmp_path, emulator):
    monkeypatch.setenv("GEMMA_OPS_OFFLINE", "1")
    outside = machine_for(emulator, tmp_path, base_url=None)
    with pytest.raises(BoundaryError, match="offline"):
        open_gemini(outside, run="r")
    with pytest.raises(BoundaryError, match="offline"):
        boundary.check_boundary([request()], outside.gemini)
    with open_gemini(machine_for(emulator, tmp_path), run="r"):
        pass


def test_no_key_is_said_first(monkeypatch, tmp_path, emulator):
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(ConfigError, match=r"no key[\s\S]*export GEMINI_API_KEY"):
        open_gemini(machine_for(emulator, tmp_path, accept_terms=None), run="r")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["schlüssel", "abc\x00def", "abc\u200bdef"])
def test_a_key_that_can_not_be_sent_is_refused_before_money_is_held(key, monkeypatch, tmp_path, emulator):
    monkeypatch.setattr(service_access, "_key", lambda: key)  # no environment holds a zero
    with pytest.raises(ConfigError, match=r"a character that no key has[\s\S]*GEMINI_API_KEY") as refused:
        open_gemini(machine_for(emulator, tmp_path), run="r")
    assert key not in str(refused.value)


def test_a_key_may_end_with_a_new_line(monkeypatch, tmp_path, emulator):
    monkeypatch.setenv("GEMINI_API_KEY", f"{KEY}\r\n")
    assert connect_gemini(machine_for(emulator, tmp_path).gemini)._api_client.api_key == KEY


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9", "localhost:9", "ftp://127.0.0.1:9", "http://", "http:/x", "http://h:port", "http://[::1",
        "http://a b"]
)  # fmt: skip
def test_an_address_nothing_can_be_sent_to_is_refused(url):
    with pytest.raises(ConfigError, match=r"machine\.gemini\.base_url"):
        loading.read_run_config(["banking77"], [f"machine.gemini.base_url={url}"])


def test_no_budget_nothing_sent(emulator, tmp_path):
    gemini = open_gemini(machine_for(emulator, tmp_path, budget_usd=None), run="r")
    with pytest.raises(BudgetError, match=r"no budget[\s\S]*budget_usd"):
        gemini.ask([request()])
    assert not emulator.log


def test_a_rehearsal_is_what_an_emulator_proves_to_be(emulator):
    """An address of this machine alone proves nothing: who listens there may pass requests on to the service itself."""
    port = emulator.url.rpartition(":")[2]
    for url in (emulator.url, f"http://localhost:{port}"):
        assert rehearsal(config(base_url=url))
        assert endpoint(config(base_url=url)) == "rehearsal"
    assert not emulator.log  # the handshake is no request
    for url in (None, "http://127.0.0.1:1", "http://10.0.0.1", emulator.url.replace("http:", "https:")):
        assert not rehearsal(config(base_url=url))
    assert endpoint(config(base_url="http://127.0.0.1:1")) == "http://127.0.0.1:1"
    assert {endpoint(config(base_url=None)), endpoint(config(base_url=None, enterprise=True))} == {
        "developer",
        "enterprise",
    }


def test_what_an_emulator_said_is_no_answer_of_gemini(emulator, machine):
    ledger = open_ledger(machine, "r")
    Client(machine.gemini, Store(ledger, "rehearsal")).answer(request())
    assert Store(ledger, "rehearsal").find(request().key())
    assert Store(ledger, "developer").find(request().key()) is None


def test_the_environment_moves_nothing_but_the_key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://elsewhere.example.org")
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://elsewhere.example.org")
    monkeypatch.setenv("GOOGLE_GENAI_USE_ENTERPRISE", "true")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "beta")
    cloud = connect_gemini(config(base_url=None, enterprise=True))._api_client
    assert cloud.vertexai
    assert "elsewhere" not in cloud._http_options.base_url
    client = connect_gemini(config(base_url=None, timeout_seconds=2.5))
    options = client._api_client._http_options
    assert options.base_url.rstrip("/") == "https://generativelanguage.googleapis.com"
    assert (options.api_version, options.timeout, options.retry_options.attempts) == ("v1", 2500, 1)
    assert not client._api_client.vertexai


def test_the_enterprise_api_has_no_store_field(emulator, tmp_path):
    """The library refuses `store` there; a key alone is enough for it."""
    machine = machine_for(emulator, tmp_path, enterprise=True)
    answer = Client(machine.gemini, Store(open_ledger(machine, "r"), "rehearsal")).answer(request()).answer
    assert answer.end == "stop"
    assert "publishers/google" in emulator.log[0].path
    assert "store" not in emulator.log[0].body


def test_manifests_say_under_which_terms(emulator):
    assert notice.record_notice(config(service_tier="flex", region="eea_uk_ch", base_url=emulator.url)) == {
        "terms": notice.TERMS,
        "terms_source": notice.SOURCE,
        "tier": "paid",
        "region": "eea_uk_ch",
        "location": None,
        "store": False,
        "service_tier": "flex",
        "batch": "auto",
        "rehearsal": True,
        "not_for": notice.NOT_FOR,
    }
