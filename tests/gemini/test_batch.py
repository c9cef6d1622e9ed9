"""Batch jobs: half the price, found again after a kill in any state, merged by key, told when they come to nothing."""

from __future__ import annotations

import json

import pytest

from gemma_ops.emulator import Emulator
from gemma_ops.errors import BudgetError, ConfigError, ServiceError
from gemma_ops.gemini import door, open_gemini
from gemma_ops.gemini.batch import BatchDoor
from gemma_ops.gemini.jobs import Jobs
from gemma_ops.gemini.request import Request
from gemma_ops.runs import journal
from tests.helpers.batch_jobs import FLASH, answered, asking, client_of, questions, wait_for
from tests.helpers.emulated import machine_for


def test_results_are_merged_by_key_at_half_the_price(emulator, tmp_path):
    """The emulator returns them in reverse; each question is answered with its own number."""
    client, notes = client_of(machine_for(emulator, tmp_path)), []
    found = answered(client, questions(7), notes)
    assert [found[number].text for number in range(7)] == [f"question {number}" for number in range(7)]
    assert {answer.tier for answer in found.values()} == {"batch"}
    usage = emulator.of("item")[0].usage
    full = usage["promptTokenCount"] * 0.75e-6 + (usage["totalTokenCount"] - usage["promptTokenCount"]) * 3.75e-6
    assert found[0].dollars == pytest.approx(full / 2)
    assert len(emulator.billed()) == client.store.ledger.spent().requests == 7
    assert [note["state"] for note in notes] == [
        "created", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED", "JOB_STATE_SUCCEEDED",
    ]  # fmt: skip
    assert len(emulator.of("file_delete")) == 1  # what was uploaded does not stay
    assert all(entry.body["store"] is False for entry in emulator.of("item"))


@pytest.mark.parametrize("when", ["upload", "batch", "poll", "download"])
def test_killed_in_any_state_a_job_is_found_again_and_paid_once(when, emulator, tmp_path, forks):
    """While the named operation hangs, the process is killed: before the job exists, before its name is known, before
    it ended, before its results were read."""
    machine = machine_for(emulator, tmp_path)
    emulator.fail("slow", on=when, seconds=30.0)  # longer than it takes to kill
    process = forks.Process(target=asking, args=(machine, questions(5)))
    process.start()
    ops = {"upload": "upload_start", "batch": "batch_create", "poll": "batch_get", "download": "file_download"}
    wait_for(lambda: emulator.of(ops[when]) or not process.is_alive())
    process.kill()
    process.join()
    emulator.heal()
    created = len(emulator.of("batch_create"))

    client = client_of(machine)
    held = client.store.ledger.spent()
    assert held.settled == 0
    assert held.reserved > 0
    assert held.lost == 0  # a job needs no process to go on
    found = answered(client, questions(5))
    assert [found[number].text for number in range(5)] == [f"question {number}" for number in range(5)]
    spent = client.store.ledger.spent()
    assert (spent.requests, spent.reserved, spent.lost) == (5, 0, 0)
    assert len(emulator.billed()) == 5
    assert len(emulator.of("batch_create")) == max(created, 1)
    assert not Jobs(client.store).under_way()


def rewritten(emulator, monkeypatch, change):
    """The emulator's file of results, its lines changed by `change(text of the answer, line)`."""
    write = emulator._service._files.write

    def changed(data, kind):
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            change(line["response"]["candidates"][0]["content"]["parts"][0]["text"], line)
        return write("".join(json.dumps(line) + "\n" for line in lines).encode(), kind)

    monkeypatch.setattr(emulator._service._files, "write", changed)


def test_an_unreadable_result_does_not_hold_up_the_others(emulator, tmp_path, monkeypatch):
    def spoil(text, line):
        response = line["response"]
        match text:
            case "question 0":
                response["candidates"] = [7]
            case "question 1":
                response["candidates"][0]["content"]["parts"] = [{"text": 7}]
            case "question 2":
                response["usageMetadata"] |= {"promptTokenCount": 10**30, "totalTokenCount": 10**30}
            case "question 3":
                line["key"] = [line["key"]]  # nobody's: as if there were none

    rewritten(emulator, monkeypatch, spoil)
    client = client_of(machine_for(emulator, tmp_path))
    found = answered(client, questions(6))
    assert {number: answer.end for number, answer in found.items()} == {
        0: "error", 1: "error", 2: "error", 4: "stop", 5: "stop",
    }  # fmt: skip
    assert all("can't be read" in found[number].reason and found[number].dollars for number in range(3))
    spent = client.store.ledger.spent()
    assert (spent.requests, spent.reserved) == (5, 0)
    assert not Jobs(client.store).under_way()


def test_half_a_character_is_replaced(emulator, tmp_path, monkeypatch):
    def halve(text, line):
        line["response"]["candidates"][0]["content"]["parts"] = [{"text": "a \ud83d b"}, {"text": " \ud83d\ude00"}]

    rewritten(emulator, monkeypatch, halve)
    client = client_of(machine_for(emulator, tmp_path))
    assert answered(client, questions(1))[0].text == "a \ufffd b \U0001f600"
    assert client.store.find(questions(1)[0].key()).text == "a \ufffd b \U0001f600"


def test_items_that_fail_inside_a_job_go_into_another(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, batch="always"))
    emulator.fail("item_503", times=2)
    emulator.fail("item_missing", times=1)
    found = answered(client, questions(6))
    assert {answer.end for answer in found.values()} == {"stop"}
    assert len(emulator.of("batch_create")) == 2
    assert client.store.ledger.spent().requests == 6


def test_items_that_always_fail_end_in_error(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path, batch="always"))
    emulator.fail("item_503", times=None, match="question 1")
    found = answered(client, questions(2))
    assert (found[0].end, found[1].end, found[1].text) == ("stop", "error", "")
    assert "3 batch jobs" in found[1].reason
    assert client.store.ledger.spent().requests == 1


def test_what_auto_leaves_over_is_sent_one_by_one(emulator, tmp_path, monkeypatch):
    """Through the door: 200 questions make a batch; the one that fails inside is answered directly."""
    monkeypatch.setattr(door, "MANY", 6)
    emulator.fail("item_503", times=1)
    with (
        journal.writing(tmp_path, "synthesize") as log,
        open_gemini(machine_for(emulator, tmp_path), run="r") as gemini,
    ):
        answers = gemini.ask(list(questions(6).values()))
    assert [answer.text for answer in answers] == [f"question {number}" for number in range(6)]
    assert sorted(answer.tier for answer in answers) == ["batch"] * 5 + ["standard"]
    assert '"event": "gemini.batch"' in log.read_text()


@pytest.mark.parametrize(
    ("settings", "many", "more"),
    [
        ({}, 6, {"stream": True}),  # somebody waits for the first token
        ({}, 7, {}),
        ({"batch": "never"}, 6, {}),
        ({"tier": "unpaid"}, 6, {}),  # the batch API has no free tier
        ({"enterprise": True}, 6, {}),
    ],
)
def test_auto_takes_no_batch(settings, many, more, emulator, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "MANY", many)
    gemini = open_gemini(machine_for(emulator, tmp_path, **settings), run="r")
    left = {request.key(): request for request in questions(6, **more).values()}
    assert gemini._batched(left) == set()


def test_always_and_enterprise_contradict(emulator, tmp_path):
    with pytest.raises(ConfigError, match="Developer API"):
        open_gemini(machine_for(emulator, tmp_path, enterprise=True, batch="always"), run="r")


def test_a_job_under_way_is_collected_whatever_the_setting_says(emulator, tmp_path, forks):
    """Its items are paid for: asking one by one now would pay them twice."""
    emulator.pace.hold = True
    process = forks.Process(target=asking, args=(machine_for(emulator, tmp_path), questions(3)))
    process.start()
    wait_for(lambda: emulator.of("batch_get"))
    process.kill()
    process.join()
    emulator.pace.hold = False
    with open_gemini(machine_for(emulator, tmp_path, batch="never"), run="other") as gemini:
        answers = gemini.ask(list(questions(4).values()))
    assert [answer.text for answer in answers] == [f"question {number}" for number in range(4)]
    assert sorted(answer.tier for answer in answers) == ["batch", "batch", "batch", "standard"]
    assert len(emulator.billed()) == 4


@pytest.mark.parametrize("fault", ["batch_failed", "batch_expired"])
def test_a_job_that_came_to_nothing_is_told_and_made_anew(fault, emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path))
    emulator.fail(fault)
    word = fault.removeprefix("batch_")
    with pytest.raises(ServiceError, match=rf"batch job batches/\S+ {word}[\s\S]*new job"):
        answered(client, questions(3))
    assert client.store.ledger.spent().total == 0
    assert len(answered(client, questions(3))) == 3
    assert len(emulator.of("batch_create")) == 2


def test_a_cancelled_job_counts_in_full(emulator, tmp_path):
    """Somebody cancelled it elsewhere; whether the service billed a part is not known, so all of it counts."""
    client = client_of(machine_for(emulator, tmp_path))
    emulator.pace.polls = 1_000
    notes = []

    def cancel(fields):
        notes.append(fields)
        if fields["state"] == "JOB_STATE_RUNNING":
            client.genai.batches.cancel(name=fields["job"])

    with pytest.raises(ServiceError, match=r"was cancelled.*counts in full"):
        BatchDoor(client, note=lambda **fields: cancel(fields)).answer(questions(3), lambda number, sent: None)
    spent = client.store.ledger.spent()
    assert spent.settled == spent.total > 0


def test_a_batch_takes_what_the_cap_has_room_for(emulator, tmp_path):
    """The rest follows when the first job turned out cheaper than its worst, until nothing more fits."""
    emulator.pace.polls = 0
    client = client_of(machine_for(emulator, tmp_path, budget_usd=0.004))
    asked = questions(40)
    found = {}
    with pytest.raises(BudgetError):
        BatchDoor(client, note=lambda **_: None).answer(asked, found.__setitem__)
    spent = client.store.ledger.spent()
    assert len(emulator.of("batch_create")) > 1
    assert 0 < len(found) == spent.requests == len(emulator.billed()) < 40
    assert spent.total == spent.settled <= 4_000_000


def test_leaving_does_not_wait_for_the_job(emulator, tmp_path):
    client = client_of(machine_for(emulator, tmp_path))

    def leave(**fields):
        client.leaving.set()

    found = []
    BatchDoor(client, note=leave).answer(questions(2), lambda number, sent: found.append(sent))
    assert not found
    assert len(Jobs(client.store).under_way()) == 2


@pytest.mark.parametrize("lost", ["job", "results"])
def test_a_job_that_is_gone_is_not_made_anew_before_its_time(lost, emulator, tmp_path, monkeypatch):
    """Another key would not see it either; making it anew at once would pay it twice."""
    machine = machine_for(emulator, tmp_path)
    client = client_of(machine)
    BatchDoor(client, note=lambda **_: client.leaving.set()).answer(questions(2), lambda number, sent: None)
    client = client_of(machine)
    if lost == "job":
        client.genai.batches.delete(name=client.genai.batches.list()[0].name)
    else:
        monkeypatch.setattr(client.genai.files, "download", lambda file: client.genai.files.get(name="files/unknown"))
    with pytest.raises(ServiceError, match="not there for this key"):
        answered(client, questions(2))
    assert client.store.ledger.spent().reserved > 0

    monkeypatch.setattr("gemma_ops.gemini.batch._KEPT", 0)
    with pytest.raises(ServiceError, match=r"is gone[\s\S]*counts in full[\s\S]*new job"):
        answered(client, questions(2))
    spent = client.store.ledger.spent()
    assert (spent.reserved, spent.requests) == (0, 2)
    assert len(answered(client_of(machine), questions(2))) == 2


def test_a_killed_job_is_not_made_anew_by_one_who_wants_no_batch(emulator, tmp_path, forks):
    """The upload never ended, so there is no job: with `never` the questions go one by one."""
    emulator.fail("slow", on="upload", seconds=30.0)
    process = forks.Process(target=asking, args=(machine_for(emulator, tmp_path), questions(2)))
    process.start()
    wait_for(lambda: emulator.of("upload_start"))
    process.kill()
    process.join()
    emulator.heal()
    client = client_of(machine_for(emulator, tmp_path, batch="never"))
    assert answered(client, questions(2)) == {}
    assert not emulator.of("batch_create")
    assert client.store.ledger.spent().total == 0


def test_lines_are_what_a_newline_ends(tmp_path, monkeypatch):
    """U+2028 and its like stand inside a text, and end no line of a file of JSON lines."""
    monkeypatch.setenv("GEMINI_API_KEY", "any")
    text = "one\u2028two\x85three\u2029four"
    with Emulator(lambda body: body.text[::-1]) as emulator:
        client = client_of(machine_for(emulator, tmp_path))
        asked = {0: Request(FLASH, ({"role": "user", "content": text},), 256, "synth", privacy="any")}
        assert answered(client, asked)[0].text == text[::-1]
        assert len(emulator.of("batch_create")) == 1
