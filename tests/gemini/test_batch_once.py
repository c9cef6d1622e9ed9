"""Paid once: creates whose reply is lost or late, and runs that ask the same at the same time."""

from __future__ import annotations

import threading

import pytest

from gemma_ops.emulator.emulated_wire import Reaction
from gemma_ops.errors import ServiceError
from gemma_ops.gemini.batch import BatchDoor
from gemma_ops.wire.gemini_wire import Refusal
from tests.helpers.batch_jobs import answered, asking, client_of, questions, wait_for
from tests.helpers.emulated import machine_for


def test_a_reply_lost_while_creating_makes_no_second_job(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, timeout_seconds=1.0))
    emulator.fail("slow", on="batch", seconds=30.0)
    assert len(answered(client, questions(3))) == 3
    assert len(emulator.of("batch_create")) == 1
    assert len(emulator.of("batch_list")) == 1


@pytest.fixture
def held_create(emulator, monkeypatch):
    """The service works on the first create until this is set; until then the job is in no list."""
    go_on, first = threading.Event(), threading.Event()
    create = emulator._service._batches.create

    def slow(*given):
        if not first.is_set():
            first.set()
            go_on.wait(30)
        return create(*given)

    monkeypatch.setattr(emulator._service._batches, "create", slow)
    go_on.first = first
    yield go_on
    go_on.set()


def looked_in_vain(emulator, then):
    """Calls `then` when the list of jobs was looked at a few times."""
    thread = threading.Thread(target=lambda: (wait_for(lambda: len(emulator.of("batch_list")) >= 3), then()))
    thread.start()
    return thread


def test_a_create_that_is_still_worked_on_makes_no_second_job(emulator, tmp_path, held_create, monkeypatch):
    monkeypatch.setattr("gemma_ops.gemini.creating._LATEST_REHEARSED", 20.0)
    client = client_of(machine_for(emulator, tmp_path, timeout_seconds=1.0))
    watch = looked_in_vain(emulator, held_create.set)
    assert len(answered(client, questions(3))) == 3
    watch.join()
    assert len(emulator.of("batch_create")) == 1
    assert len(emulator.billed()) == client.store.ledger.spent().requests == 3


def test_killed_while_the_service_works_on_the_create(emulator, tmp_path, held_create, forks):
    """The list is empty when the next run looks, and nothing is given back for that."""
    machine = machine_for(emulator, tmp_path)
    process = forks.Process(target=asking, args=(machine, questions(3)))
    process.start()
    wait_for(held_create.first.is_set)
    process.kill()
    process.join()
    watch = looked_in_vain(emulator, held_create.set)
    client = client_of(machine)
    assert len(answered(client, questions(3))) == 3
    watch.join()
    assert len(emulator.of("batch_create")) == 1
    assert len(emulator.billed()) == client.store.ledger.spent().requests == 3


def test_a_create_that_is_never_heard_of_counts_in_full(emulator, tmp_path, held_create):
    """A second job is made, with reservations of its own."""
    client = client_of(machine_for(emulator, tmp_path, timeout_seconds=1.0, batch="always"))
    assert len(answered(client, questions(3))) == 3
    assert len(emulator.of("batch_create")) == 1  # the first is still worked on
    spent = client.store.ledger.spent()
    assert (spent.requests, spent.reserved) == (6, 0)
    assert len(emulator.billed()) == 3


def test_a_job_made_twice_is_cancelled_and_counted(emulator, tmp_path, monkeypatch):
    """The service said 503 and had made the job; its list showed it only later."""
    batches, calls = emulator._service._batches, []
    create, listed = batches.create, batches.list

    def failing(*given):
        calls.append("create")
        made = create(*given)
        if calls.count("create") == 1:
            raise Refusal(503, "The service is currently unavailable.")
        return made

    def late(call):
        calls.append("list")
        return listed(call) if calls.count("list") > 1 else Reaction(200, {})

    monkeypatch.setattr(batches, "create", failing)
    monkeypatch.setitem(emulator._service._ops, "batch_list", late)
    client = client_of(machine_for(emulator, tmp_path))
    assert len(answered(client, questions(3))) == 3
    assert len(emulator.of("batch_cancel")) == 1
    spent = client.store.ledger.spent()
    assert (spent.requests, spent.reserved) == (6, 0)
    assert len(answered(client_of(machine_for(emulator, tmp_path)), questions(3))) == 3
    assert client.store.ledger.spent() == spent


def test_two_runs_that_plan_at_once_pay_once(emulator, tmp_path, forks):
    """Between this run's look at the jobs and its plan, another run plans the same questions."""
    machine = machine_for(emulator, tmp_path)
    client = client_of(machine)
    batches, found = BatchDoor(client, note=lambda **_: None), {}
    look = batches.jobs.under_way

    def meanwhile():
        batches.jobs.under_way = look
        seen = look()
        emulator.pace.hold = True
        other.start()
        wait_for(lambda: emulator.of("batch_get"))
        emulator.pace.hold = False
        return seen

    other = forks.Process(target=asking, args=(machine, questions(3)))
    batches.jobs.under_way = meanwhile
    batches.answer(questions(3), lambda number, sent: found.__setitem__(number, sent.answer.text))
    other.join()
    assert found == {number: f"question {number}" for number in range(3)}
    assert len(emulator.of("batch_create")) == 1
    assert len(emulator.billed()) == client.store.ledger.spent().requests == 3


def test_a_batch_leaves_out_what_is_on_the_wire(emulator, tmp_path):
    machine = machine_for(emulator, tmp_path)
    emulator.fail("slow", on="generate", seconds=1.0)
    direct = threading.Thread(target=lambda: client_of(machine).answer(questions(1)[0]))
    direct.start()
    wait_for(lambda: emulator.of("generate"))
    found = answered(client_of(machine), questions(3))
    direct.join()
    assert [found[number].tier for number in range(3)] == ["standard", "batch", "batch"]
    assert len(emulator.billed()) == 3


def test_what_a_batch_has_is_not_sent_directly(emulator, tmp_path):
    machine = machine_for(emulator, tmp_path)
    client = client_of(machine)
    BatchDoor(client, note=lambda **_: client.leaving.set()).answer(questions(2), lambda number, sent: None)
    found = []
    direct = threading.Thread(target=lambda: found.append(client_of(machine).answer(questions(1)[0]).answer))
    direct.start()
    direct.join(0.5)
    assert not emulator.of("generate")
    assert len(answered(client_of(machine), questions(2))) == 2
    direct.join()
    assert [answer.tier for answer in found] == ["batch"]
    assert len(emulator.billed()) == 2


def test_what_a_run_that_is_gone_has_in_a_batch_is_left_to_the_next(emulator, tmp_path, forks):
    """Nobody collects the job while this run lives: waiting for it would be for ever."""
    emulator.pace.hold = True
    machine = machine_for(emulator, tmp_path)
    process = forks.Process(target=asking, args=(machine, questions(2)))
    process.start()
    wait_for(lambda: emulator.of("batch_get"))
    process.kill()
    process.join()
    with pytest.raises(ServiceError, match=r"paid twice[\s\S]*again"):
        client_of(machine).answer(questions(1)[0])
    assert not emulator.of("generate")
