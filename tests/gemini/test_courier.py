"""The process that sends: it outlives a killed run, nothing is paid twice, and its own death is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from gemma_ops.emulator import Emulator
from gemma_ops.emulator.rehearsal import rehearsed_reply
from gemma_ops.errors import BudgetError, ServiceError
from gemma_ops.gemini import open_gemini, prices
from gemma_ops.gemini.cache import Store, open_ledger
from gemma_ops.gemini.request import Request
from gemma_ops.runs import journal
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.patience import joined, until

FLASH = "gemini-3.8-flash"
PARENT = """
import json, sys
from gemma_ops.config import MachineConfig
from gemma_ops.gemini import open_gemini
from gemma_ops.emulator import Emulator
from gemma_ops.emulator.rehearsal import rehearsed_reply as rehearse
from gemma_ops.gemini.request import Request
machine, requests = json.load(sys.stdin)
gemini = open_gemini(MachineConfig.model_validate(machine), run="test")
gemini.ask([Request.from_json(body) for body in requests])
"""


def questions(count, **more):
    settings = {"model": FLASH, "max_output_tokens": 256, "use": "synth", "privacy": "any"} | more
    return [
        Request(messages=({"role": "user", "content": f"question {number}"},), id=f"q{number}", **settings)
        for number in range(count)
    ]


def in_time(work, seconds=20.0):
    """What `work` returns; fails when it does not come back, instead of waiting with it."""
    results = []
    worker = threading.Thread(target=lambda: results.append(work()), daemon=True)
    worker.start()
    assert joined(worker, seconds)
    return results[0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_is_on_the_wire_outlives_a_killed_run_and_is_paid_once(how, emulator, tmp_path):
    """Ctrl-C goes to the whole group, as a terminal sends it."""
    emulator.latency = 0.6
    machine = machine_for(emulator, tmp_path, concurrency=4)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parent.stdin.write(json.dumps([machine.model_dump(mode="json"), [each.to_json() for each in questions(12)]]))
    parent.stdin.close()
    until(lambda: len(emulator.log) >= 6, 30)  # the second four are on the wire
    os.killpg(parent.pid, how)
    parent.stderr.read()
    parent.wait()
    parent.stderr.close()

    emulator.latency = 0.0
    with open_gemini(machine, run="test") as gemini:  # while the old courier still finishes
        answers = gemini.ask(questions(12))
    assert [answer.text for answer in answers] == [f"question {number}" for number in range(12)]
    assert set(Counter(entry.digest for entry in emulator.billed()).values()) == {1}
    assert len(emulator.billed()) == 12
    spent = open_ledger(machine, "test").spent()
    assert (spent.requests, spent.reserved, spent.lost) == (12, 0, 0)
    assert sum(answer.dollars for answer in answers) == pytest.approx(spent.settled / prices.NANO)


@pytest.fixture
def held(monkeypatch):
    """A service that answers two questions and keeps the others waiting until `go_on` is set: (emulator, go_on,
    waiting)."""
    go_on, waiting, answered = threading.Event(), [], []

    def answer(body):
        if len(answered) < 2:
            answered.append(body)
        else:
            waiting.append(body)
            go_on.wait(60)
        return rehearsed_reply(body)

    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(answer) as emulator:
        yield emulator, go_on, waiting
        go_on.set()


def test_a_dead_courier_is_said_and_what_it_had_on_the_wire_counts(held, tmp_path):
    emulator, go_on, waiting = held
    machine = machine_for(emulator, tmp_path, concurrency=2)
    gemini = open_gemini(machine, run="test")

    arrived = []

    def kill():  # two have been told and two are on the wire, whatever pace this machine has
        until(lambda: len(arrived) == 2 and len(waiting) == 2, 60)
        gemini._pipe._process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ServiceError, match=r"died \(signal 9\)[\s\S]*run the same command again"):
        gemini.ask(questions(8), on_answer=lambda index, answer: arrived.append(index))
    killer.join()
    ledger = open_ledger(machine, "test")
    spent = ledger.spent()
    assert spent.requests == len(arrived) == 2
    assert spent.lost > 0

    go_on.set()
    assert {answer.end for answer in in_time(lambda: gemini.ask(questions(8)))} == {"stop"}  # by another courier
    gemini._pipe._process.kill()
    gemini._pipe._process.wait()  # between two calls nothing is on the wire, and nothing is to be said
    assert in_time(lambda: gemini.ask(questions(9)))[8].end == "stop"
    gemini.close()
    assert ledger.spent().lost == spent.lost  # nobody knows, so it stays counted
    assert ledger.spent().total >= spent.lost + 8


def test_answers_come_from_the_store_without_a_process(emulator, machine):
    with open_gemini(machine, run="one") as gemini:
        first = gemini.ask(questions(3))
    with open_gemini(machine, run="two") as gemini:
        seen = []
        assert gemini.ask(questions(3), on_answer=lambda *each: seen.append(each)) == first
        assert seen == list(enumerate(first))
        assert gemini._pipe is None
    assert len(emulator.billed()) == 3


def test_without_the_cache_it_is_asked_again(emulator, tmp_path):
    for _ in range(2):
        with open_gemini(machine_for(emulator, tmp_path, cache=False), run="one") as gemini:
            assert gemini.ask(questions(1)) == gemini.ask(questions(1))  # but not twice by one door
    assert len(emulator.billed()) == 2


def test_equal_requests_are_asked_once_and_repeats_apart(emulator, machine):
    one, two = questions(2)
    again = questions(1, repeat=1)[0]
    with open_gemini(machine, run="r") as gemini:
        answers = gemini.ask([one, two, one, again, one])
    assert [answer.text for answer in answers] == ["question 0", "question 1", *["question 0"] * 3]
    assert len(emulator.billed()) == 3


def test_a_run_stops_cleanly_at_its_cap_and_keeps_what_it_paid_for(emulator, tmp_path):
    machine = machine_for(emulator, tmp_path, budget_usd=0.003, concurrency=4)
    arrived = {}
    with open_gemini(machine, run="r") as gemini, pytest.raises(BudgetError, match="of the run's"):
        gemini.ask(questions(30), on_answer=arrived.__setitem__)
    spent = open_ledger(machine, "r").spent()
    assert 0 < len(arrived) == len(emulator.billed()) == spent.requests < 30
    assert spent.total == spent.settled <= 3_000_000
    store = Store(open_ledger(machine, "r"), "rehearsal")
    asked = questions(30)
    assert all(store.find(asked[index].key()) == answer for index, answer in arrived.items())


def test_the_journal_says_how_it_went_also_from_a_thread(emulator, machine, tmp_path):
    """The local row of a target that asks from a thread of its own still ends up in the step's log."""
    emulator.fail("503", times=2)
    emulator.fail("blocked_reply", times=1)
    with journal.writing(tmp_path, "evaluate") as log, open_gemini(machine, run="r") as gemini:
        worker = threading.Thread(target=gemini.ask, args=(questions(4),))
        worker.start()
        worker.join()
    record = json.loads(log.read_text().splitlines()[-1])
    assert record["ends"] == {"stop": 3, "blocked": 1}
    assert record["faults"] == {"failed": 2}
    assert (record["answers"], record["from_store"]) == (4, 0)
    assert record["settled_dollars"] > 0
