"""Where a thousand requests go, with the engine up, slow and dead and Gemini failing: whatever happens, nothing private
leaves, and everything is explained."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gemma_ops.errors import BoundaryError, BudgetError, DataError
from gemma_ops.gemini import prices
from gemma_ops.privacy import personal_data
from gemma_ops.routing.decision import decide_lane, request_class
from gemma_ops.routing.decision_log import DecisionLog, Outcome, RouteRecord, read_log
from gemma_ops.routing.gemini_lane import GeminiLane, carried_content, classed
from gemma_ops.routing.replay import replay_log
from gemma_ops.routing.reply_estimate import estimate_reply
from gemma_ops.routing.routing_evidence import EvidenceTable, SliceEvidence
from gemma_ops.routing.routing_policy import Detectors, RoutingPolicy, load_policy
from gemma_ops.routing.scan import scan
from gemma_ops.routing.signals import GeminiState, LocalState, Signals
from gemma_ops.targets.gemini_target import gemini_identity
from gemma_ops.verdicts import Routing
from gemma_ops.wire.ask import Ask
from tests.helpers import patience
from tests.helpers.emulated import machine_for
from tests.privacy.test_personal_data import FOUND

KEY = "-----BEGIN " + "PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"
PERSONAL = [*[(kind, text) for kind, text, _ in FOUND], ("PRIVATE_KEY", KEY)]
PICTURE = {"type": "media", "mime": "image/png", "data": "aGVsbG8="}
ENGINES = {
    "up": LocalState(True, 0, 0.0, 2048),
    "slow": LocalState(True, 40, 90.0, 2048),
    "dead": LocalState(False, 0, 0.0, 2048),
}
EVIDENCE = EvidenceTable(
    {("t", "lang", "de"): SliceEvidence("send", "worse in de"), ("t", "", ""): SliceEvidence("keep", "no worse")}
)


def requests(count, seed=7):
    """Labelled requests: a text with a mark of its own, what it declares, what it needs, and whether it is private."""
    draw, found = random.Random(seed), []
    for number in range(count):
        mark = f"plant{number:04d}x{draw.getrandbits(40):010x}"
        kind, personal = PERSONAL[number % len(PERSONAL)] if draw.random() < 0.35 else ("", "")
        declared = draw.choice([None, "local_only", "paid", "any", "any", "any"])
        long = draw.random() < 0.3
        text = f"{mark} {'tell me more of it. ' * (600 if long else 3)}{personal}"
        shown, tools = draw.random() < 0.15, draw.random() < 0.2
        hosted = ("search",) if draw.random() < 0.05 else ()
        slices = (("lang", draw.choice(["de", "en"])),) if draw.random() < 0.3 else ()
        private = declared in (None, "local_only") or bool(kind)
        found.append((mark, text, declared, shown, tools, hosted, slices, private, kind))
    return found


def signals_of(policy, lane, request, state):
    _, text, declared, shown, tools, hosted, slices, *_ = request
    seen = scan([text], policy.detectors)
    content = [{"type": "text", "text": text}, PICTURE] if shown else text
    sent = carried_content(
        Ask(messages=()), [{"role": "user", "content": content}],
        [{"type": "function", "function": {"name": "look_up"}}] if tools else [],
        policy.gemini, hosted=(), level=None, reply=64, number="r",
    )  # fmt: skip
    tokens, bound = len(text) // 4, prices.request_bound(sent.request)
    expected, most = estimate_reply(
        policy.gemini, tokens=tokens, reply=64, bound=bound, at=datetime.now(UTC), tier="standard"
    )
    signals = Signals(
        declared=declared, found=seen.kinds, scanned=seen.whole, tokens=tokens, reply=64, bound=bound,
        modalities=("text", "image") if shown else ("text",), functions=int(tools), hosted=hosted,
        task="t" if slices else "", slices=slices, local=ENGINES[state],
        gemini=replace(lane.state(), dollars=expected, most=most),
    )  # fmt: skip
    return signals, sent.request


@pytest.fixture
def policy():
    shipped = load_policy("default")
    classes = shipped.classes.model_copy(update={"paid": ("local", "gemini")})
    return shipped.model_copy(update={"classes": classes})


async def through(policy, lane, chosen, log):
    """Every request decided, and sent where Gemini is decided; where it fails, decided again without it."""
    gate, lanes = asyncio.Semaphore(8), Counter()

    async def one(number, request):
        state = ("up", "slow", "dead")[number % 3]
        signals, asked = signals_of(policy, lane, request, state)
        first = decided = decide_lane(policy, signals, EVIDENCE)
        failed = ()
        if decided.lane == "gemini":
            async with gate:
                sent = classed(asked, decided.privacy)
                messages = [message async for message in lane.answer(sent)]
            last = messages[-1]
            if last.error is not None or last.answer.end == "error":
                failed = ("gemini",)
                again = replace(signals, gemini=replace(signals.gemini, why_not="it failed just now"))
                decided = decide_lane(policy, again, EVIDENCE)
                assert decided.lane != "gemini"
        lanes[decided.lane, bool(failed)] += 1
        mark = gemini_identity(policy.gemini.model, policy.gemini.thinking)
        outcome = Outcome(decided.lane, 200, failed=failed, dollars=first.dollars if decided.lane == "gemini" else 0.0)
        log.add(RouteRecord("now", log.id_of(request), first, signals, policy.classes.of(first.privacy), mark, outcome))
        return request, first

    return lanes, await asyncio.gather(*(one(number, request) for number, request in enumerate(chosen)))


def test_of_a_thousand_requests_no_private_byte_reaches_gemini(emulator, tmp_path, policy):
    chosen = requests(1000)
    assert {kind for *_, kind in chosen if kind} == set(personal_data.KINDS)
    for fault in ("429", "500", "503", "cut", "bad_json", "no_candidates", "504"):
        emulator.fail(fault, times=None, share=0.08, seconds=0.01)
    lane, log = GeminiLane(machine_for(emulator, tmp_path, concurrency=8), policy), DecisionLog(tmp_path / "log.jsonl")
    try:
        lanes, decided = asyncio.run(through(policy, lane, chosen, log))
    finally:
        lane.close()
        log.close()
    arrived = json.dumps([entry.body for entry in emulator.log])
    leaked = [mark for mark, *_, private, _ in chosen if private and mark in arrived]
    assert leaked == []
    sent = [request for request, first in decided if first.lane == "gemini"]
    assert len(sent) > 100
    assert all(request[0] in arrived for request in sent)  # so that a log which sees nothing is not taken for proof
    assert lanes["local", True] + lanes["refuse", True] > 5
    assert all(len(first.reasons) > 1 and all(first.reasons) for _, first in decided)
    for (_, _, declared, *_, private, kind), first in decided:
        assert first.privacy == ("local_only" if private else declared)
        assert kind == "" or declared in (None, "local_only") or "found" in first.reasons[0]
    told = (tmp_path / "log.jsonl").read_text()
    assert len(told.splitlines()) == 1000
    assert not [mark for mark, *_ in chosen if mark in told]
    assert "tell me more" not in told


def test_a_replay_says_what_another_policy_costs_leaks_and_loses(emulator, tmp_path, policy):
    lane, log = GeminiLane(machine_for(emulator, tmp_path), policy), DecisionLog(tmp_path / "log.jsonl")
    try:
        asyncio.run(through(policy, lane, requests(120, seed=3), log))
    finally:
        lane.close()
        log.close()
    records = list(read_log(tmp_path / "log.jsonl"))
    same = replay_log(records, policy)
    assert (same.requests, same.leaked, same.withheld, same.lost, same.gained) == (120, [], [], [], [])
    assert same.dollars_after == pytest.approx(same.dollars_before)
    closed = policy.model_copy(
        update={"classes": policy.classes.model_copy(update={"paid": ("local",), "any": ("local",)})}
    )
    shut = replay_log(records, closed)
    assert (shut.after["gemini"], shut.dollars_after) == (0, 0.0)
    assert len(shut.withheld) == same.before["gemini"] > 0
    assert 0 < len(shut.lost) <= same.before["gemini"]
    blind = Detectors(raise_to="any")
    careless = replay_log(records, policy.model_copy(update={"detectors": blind}))
    assert len(careless.leaked) > 0  # what the detectors held back
    private = {record.id for record in records if record.decision.privacy == "local_only"}
    assert set(careless.leaked) <= private
    dear = policy.model_copy(update={"gemini": policy.gemini.model_copy(update={"model": "gemini-4-argon"})})
    assert replay_log(records, dear).dollars_after > same.dollars_after
    assert any("would be refused" in line for line in shut.lines())


def test_a_decision_takes_less_than_a_millisecond(emulator, tmp_path, policy):
    lane = GeminiLane(machine_for(emulator, tmp_path), policy)
    try:
        known = [signals_of(policy, lane, request, "slow")[0] for request in requests(300)]
    finally:
        lane.close()
    taken = []
    for signals in known * 4:
        began = time.thread_time_ns()
        decide_lane(policy, signals, EVIDENCE)
        taken.append(time.thread_time_ns() - began)
    assert sorted(taken)[int(0.99 * len(taken))] < 1_000_000


def test_a_class_is_only_ever_raised(policy):
    """Whatever is known of a request, its class is at least as strict as each thing that is known."""
    order = ["local_only", "paid", "any"]
    draw = random.Random(1)
    for _ in range(2000):
        signals = Signals(
            declared=draw.choice([None, *order]), floor=draw.choice(order), learned=draw.choice(order),
            found=draw.choice([(), ("EMAIL",), ("IP",)]), scanned=draw.random() < 0.8,
        )  # fmt: skip
        rules = policy.model_copy(update={"detectors": Detectors(kinds={"IP": "paid"})})
        found, why = request_class(rules, signals)
        bounds = [signals.declared or "local_only", signals.floor, signals.learned]
        bounds += ["local_only"] * (not signals.scanned or "EMAIL" in signals.found) + ["paid"] * (
            "IP" in signals.found
        )
        assert order.index(found) == min(map(order.index, bounds))
        assert why.startswith(f"class {found}: ")


def test_nothing_unknown_leads_out(policy):
    """No price, no door, no terms, no money: each holds a public request here, or refuses it."""
    open_state = GeminiState(sees=("paid", "any"), context=10**6, left=1.0, dollars=0.01, most=0.02)
    plain = Signals(declared="any", tokens=9000, reply=10, local=ENGINES["up"], gemini=open_state)
    assert decide_lane(policy, plain).lane == "gemini"
    for change in (
        {"most": None},
        {"why_not": "no key"},
        {"sees": ()},
        {"left": 0.01},
        {"most": 9.0},
        {"context": 50},
    ):
        shut = replace(plain, gemini=replace(open_state, **change))
        assert decide_lane(policy, shut).lane == "refuse"
        assert decide_lane(policy, replace(shut, tokens=90, local=ENGINES["slow"])).lane == "local"
    assert decide_lane(RoutingPolicy(), replace(plain, declared=None)).lane == "refuse"


def test_a_long_text_is_scanned_to_its_end_or_counts_as_private():
    rules = Detectors()
    text = "nothing here but words, " * 60_000
    clean = scan([text], rules)
    assert (clean.kinds, clean.whole) == ((), True)
    for place in (0, 49_140, 65_530, 700_000, len(text)):  # over the edges of windows too
        assert scan([text[:place] + " sam@example.org " + text[place:]], rules).kinds == ("EMAIL",)
    hasty = scan([text, "sam@example.org"], Detectors(seconds=1e-9))
    assert not hasty.whole
    assert request_class(RoutingPolicy(), Signals(declared="any", scanned=False))[0] == "local_only"


def sent_as(rules, content, hosted=(), **more):
    return carried_content(
        Ask(messages=(), **more), [{"role": "user", "content": content}], [], rules, hosted=hosted, level=None,
        reply=64, number="r",
    )  # fmt: skip


def test_the_door_refuses_by_itself_what_a_wrong_decision_would_send(emulator, tmp_path, policy):
    """Were the decision wrong, the boundary would still hold; nor does a tool without a bound pass it."""
    lane = GeminiLane(machine_for(emulator, tmp_path), policy)

    async def send(request):
        return [message async for message in lane.answer(request)]

    try:
        private = sent_as(policy.gemini, "hello").request
        assert private.privacy == "local_only"  # until somebody decides otherwise
        with pytest.raises(BoundaryError, match="local_only"):
            asyncio.run(send(private))
        for tool in ("search", "maps"):
            asked = classed(sent_as(policy.gemini, "news?", hosted=(tool,)).request, "any")
            with pytest.raises(BudgetError, match=tool):
                asyncio.run(send(asked))
        assert emulator.of("generate", "stream") == []
        asked = classed(sent_as(policy.gemini, "add 2 and 2", hosted=("code",), stop=("!",)).request, "any")
        assert asyncio.run(send(asked))[-1].answer.end == "stop"
    finally:
        lane.close()
    assert emulator.log[-1].body["generationConfig"]["stopSequences"] == ["!"]
    assert list(emulator.log[-1].body["tools"][0]) in (["codeExecution"], ["code_execution"])


def test_what_is_reserved_bounds_what_is_shown(policy):
    rules, pdf = policy.gemini, {"type": "media", "mime": "application/pdf", "data": "aGVsbG8="}
    words = prices.request_bound(sent_as(rules, "hello").request)
    assert words >= len("hello")
    assert prices.request_bound(sent_as(rules, [{"type": "text", "text": "hello"}, PICTURE]).request) >= words + 2240
    assert prices.request_bound(sent_as(rules, [pdf]).request) == 1_048_576
    assert prices.request_bound(sent_as(rules, "hello", hosted=("url",)).request) == 1_048_576


def test_what_gemini_ignores_or_can_not_be_asked_is_said(policy):
    found = sent_as(policy.gemini, "hello", temperature=0.3, thinking=False)
    assert [note for note in found.notes if "ignores temperature" in note]
    assert [note for note in found.notes if "lowest level, low" in note]
    for more, words in (
        ({"logprobs": 3}, "probabilities"),
        ({"count": 2}, "several"),
        ({"must_call": ("f",)}, "required"),
    ):
        assert words in sent_as(policy.gemini, "hello", **more).why_not


def test_a_log_is_cut_to_whole_lines_and_its_ids_need_its_key(tmp_path):
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path)
    first = log.id_of({"messages": "a"})
    record = RouteRecord(
        "now", first, decide_lane(RoutingPolicy(), Signals()), Signals(), ("local",), "x@low", Outcome("local", 200)
    )
    log.add(record)
    log.close()
    with path.open("a") as file:
        file.write('{"schema": "gemma-ops/rou')  # a kill in the middle of a line
    again = DecisionLog(path)
    assert again.id_of({"messages": "a"}) == first
    again.add(record)
    again.close()
    assert list(read_log(path)) == [record, record]
    assert DecisionLog(tmp_path / "other.jsonl").id_of({"messages": "a"}) != first
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"log\.jsonl:1"):
        list(read_log(path))


def test_several_servers_write_one_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.with_name("log.jsonl.key").touch()  # another was killed before it had written the key
    log = DecisionLog(path)
    assert len(bytes.fromhex(path.with_name("log.jsonl.key").read_text())) == 32
    record = RouteRecord(
        "now", "1", decide_lane(RoutingPolicy(), Signals()), Signals(), ("local",), "x@low", Outcome("local", 200)
    )
    line = json.dumps(record.to_json()) + "\n"
    opened = []
    other = threading.Thread(target=lambda: opened.append(DecisionLog(path)))
    with log._alone(), path.open("a") as file:
        file.write(line[:100])
        file.flush()
        other.start()  # it may not take what is being written for what a kill has left
        other.join(0.2)
        file.write(line[100:])
    assert patience.joined(other, 30)
    for one in (log, *opened):
        one.add(record)
        one.close()
    assert list(read_log(path)) == [record] * 3


def test_evidence_counts_for_the_format_and_the_gemini_it_is_about():
    def table(remote, local="q8_0"):
        line = {
            "reason": "shown", "n": 9, "clusters": 9, "local_only": 0, "difference": 0.0, "low": 0.0, "high": 0.0,
            "p": 0.0,
            "p_holm": 0.0, "n_needed": None,
        }  # fmt: skip
        lines = [
            line | {"slice": None, "value": None, "decision": "keep", "words": "no worse"},
            line | {"slice": "lang", "value": "de", "decision": "send", "words": "worse in de"},
        ]
        return {
            "task": "t", "metric": "m", "digest": "d", "local": {"name": local, "identity": "x", "place": "stays here"},
            "remote": {"name": "gemini", "identity": remote, "place": "sent"}, "local_only": "keep", "lines": lines,
            "slices": {"lang": {"field": "lang", "buckets": []}},
        }  # fmt: skip

    def of(*tables, rehearsal=False):
        routing = Routing.model_validate(
            {"schema": "gemma-ops/routing@1", "confidence": 0.95, "margin": 0.02, "tables": tables}
        )
        return EvidenceTable.of(routing, served="q8_0", rules=RoutingPolicy().gemini, rehearsal=rehearsal)

    found = of(table("gemini-3.8-flash@low"))
    assert found.about("t", [("lang", "de")]).decision == "send"
    assert found.about("t", [("lang", "fr")]).decision == "keep"
    assert found.about("other", []) is None
    assert found.known("t", [("lang", "de"), ("name", "whatever a client writes")]) == (("lang", "de"),)
    for strange in (table("gemini-3.8-flash@high"), table("gemini-4-argon@low"), table("gemini-3.8-flash@low", "q4_0")):
        assert of(strange).lines == {}
    played = table("gemini-3.8-flash@low (rehearsal)")
    assert of(played).lines == {}
    assert of(played, rehearsal=True).about("t", []).decision == "keep"
