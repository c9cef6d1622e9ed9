"""The ledger: a cap that holds under threads, processes and kills, and never forgets what may have been billed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemma_ops.errors import BudgetError, MachineError
from gemma_ops.gemini import prices
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.usage import Usage
from gemma_ops.runs.processes import Birth

CENT = prices.NANO // 100


def open_ledger(folder, *, run="run", run_cap: int | None = 10 * CENT, project_cap=None):
    ledger = SpendingLedger(folder / "gemini.sqlite", run=run, run_cap=run_cap, project_cap=project_cap)
    # What is shown here is what threads and processes may do; flushing to disk at each commit would only slow it down.
    ledger._connection.execute("PRAGMA synchronous = OFF")
    return ledger


def hold(ledger, worst, key="k", **fields):
    return ledger.reserve(
        key, **{"model": "gemini-3.8-flash", "use": "judge", "tier": "standard", "worst": worst} | fields
    )


def test_a_cap_of_ten_cents_holds_in_200_of_200_runs(tmp_path):
    """16 threads, random prompts, random thinking tokens. Each asks until it is refused."""
    at = datetime(2026, 11, 20, tzinfo=UTC)
    shares = []
    for seed in range(200):
        ledger = open_ledger(tmp_path, run=f"run {seed}")

        def work(thread, ledger=ledger, seed=seed):
            chance = random.Random(1000 * seed + thread)
            paid = 0
            while True:
                prompt, limit = chance.randrange(50, 4000), 2048
                tier = chance.choice(["standard", "flex", "batch"])
                worst = prices.worst("gemini-3.8-flash", prompt, limit, tier=tier, at=at)
                try:
                    number = hold(ledger, worst, tier=tier)
                except BudgetError:
                    return paid
                thoughts = chance.randrange(limit)
                used = Usage(prompt=prompt, output=chance.randrange(limit - thoughts + 1), thoughts=thoughts)
                cost = prices.request_price("gemini-3.8-flash", used, tier=tier, at=at)
                assert cost <= worst
                paid += ledger.settle(number, cost, usage=used.to_json())

        with ThreadPoolExecutor(16) as pool:
            paid = sum(pool.map(work, range(16)))
        spent = ledger.spent()
        assert spent.settled == paid <= 10 * CENT
        assert (spent.reserved, spent.lost) == (0, 0)
        shares.append(paid / (10 * CENT))
        ledger.close()
    assert min(shares) > 0.85  # the cap is used up, not shied away from


PROCESS = """
import sys
from pathlib import Path
from gemma_ops.errors import BudgetError
from gemma_ops.gemini.ledger import SpendingLedger as Ledger
ledger = Ledger(Path(sys.argv[1]), run=sys.argv[2], run_cap=100_000, project_cap=150_000)
ledger._connection.execute("PRAGMA synchronous = OFF")
print("ready", flush=True)
sys.stdin.readline()
count = 0
try:
    while True:
        number = ledger.reserve("k", model="m", use="synth", tier="standard", worst=1_000)
        ledger.settle(number, 700)
        count += 1
except BudgetError as error:
    print(count, error.what)
"""


def test_caps_hold_across_processes_that_make_the_file_together(tmp_path):
    path = tmp_path / "deep" / "gemini.sqlite"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for run in ("a", "a", "b", "b")
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    said = [worker.communicate()[0] for worker in workers]
    done = sum(int(text.split()[0]) for text in said)
    per_run = {run: SpendingLedger(path, run=run, run_cap=0, project_cap=None).spent() for run in "ab"}
    total = SpendingLedger(path, run="a", run_cap=0, project_cap=None).spent(project=True)
    assert total.settled == 700 * done == per_run["a"].settled + per_run["b"].settled
    assert max(spent.settled for spent in per_run.values()) <= 100_000
    # Full: another request of 1,000 does not fit below the project's cap.
    assert 150_000 - 1_000 < total.settled <= 150_000
    assert any("project" in text for text in said)


DIES = """
import os, signal, sys
from pathlib import Path
from gemma_ops.gemini.ledger import SpendingLedger as Ledger
ledger = Ledger(Path(sys.argv[1]), run="run", run_cap=10**8, project_cap=None)
ledger.settle(ledger.reserve("one", model="m", use="synth", tier="standard", worst=5_000), 4_000)
ledger.reserve("two", model="m", use="synth", tier="standard", worst=60_000)
ledger.reserve("job", model="m", use="synth", tier="batch", worst=7_000)
with ledger.connect() as store:
    store.execute("INSERT INTO reservations (key, run, use, model, tier, worst, holder, reserved_at) "
                  "VALUES ('half','run','synth','m','standard',9,'',0)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_held_counts_in_full_until_it_is_settled(tmp_path):
    path = tmp_path / "gemini.sqlite"
    assert subprocess.run([sys.executable, "-c", DIES, str(path)]).returncode == -signal.SIGKILL
    ledger = open_ledger(tmp_path, run_cap=100_000)
    spent = ledger.spent()
    assert (spent.settled, spent.reserved, spent.lost) == (
        4_000,
        7_000,
        60_000,
    )  # a batch job goes on without its process
    with pytest.raises(BudgetError, match="of the run's"):
        hold(ledger, 30_000)
    (found,) = ledger.held("two")
    assert (found.worst, found.holder.state()) == (60_000, "gone")
    ledger.settle(found.number, 10_000)  # whoever finds the answer settles it
    assert ledger.spent().lost == 0
    assert ledger.spent().total == 21_000
    hold(ledger, 30_000)


def test_another_process_with_the_same_number_is_not_taken_for_the_holder(tmp_path):
    me = Birth.here()
    assert me.state() == "alive"
    assert Birth(me.place, me.pid, "12345").state() == "gone"  # same number, born at another time
    assert Birth("another machine", me.pid, me.born).state() == "unknown"
    child = subprocess.Popen(["sleep", "60"])
    born = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    alive = Birth(me.place, child.pid, born)
    assert alive.state() == "alive"
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    assert alive.state() == "gone"
    child.wait()
    assert alive.state() == "gone"

    ledger = open_ledger(tmp_path)
    number = hold(ledger, 1_000)
    assert ledger.spent().reserved == 1_000
    with ledger.connect() as store:
        impostor = json.loads(me.to_text()) | {"born": "12345"}
        store.execute("UPDATE reservations SET holder = ? WHERE id = ?", (json.dumps(impostor), number))
    assert ledger.spent().lost == 1_000


def test_without_a_budget_nothing_that_costs_money_is_reserved(tmp_path):
    ledger = open_ledger(tmp_path, run_cap=None, project_cap=10 * CENT)
    with pytest.raises(BudgetError, match="has no budget") as caught:
        hold(ledger, 1)
    assert "budget_usd" in caught.value.fix
    assert ledger.left() == 0
    ledger.settle(hold(ledger, 0, model="gemma-4-31b-it"), 0)  # free of charge
    assert ledger.spent().requests == 1


def test_exactly_the_cap_may_be_spent_and_no_nanodollar_more(tmp_path):
    ledger = open_ledger(tmp_path, run_cap=1_000)
    first = hold(ledger, 600)
    with pytest.raises(BudgetError):
        hold(ledger, 401)
    ledger.release(first, "429 before it was read")
    hold(ledger, 1_000)
    assert ledger.left() == 0
    with pytest.raises(BudgetError):
        hold(ledger, 1)


def test_waiting_makes_sense_only_for_what_may_come_free_under_the_cap_that_refused(tmp_path):
    ledger = open_ledger(tmp_path, run_cap=1_000, project_cap=3_000)
    other = open_ledger(tmp_path, run="other", run_cap=3_000, project_cap=3_000)
    on_the_wire = hold(other, 1_500)
    assert not ledger.may_fit(1_001)  # alone too much for the run
    ledger.settle(hold(ledger, 400), 400)
    assert not ledger.may_fit(601)  # what the other run holds is no room under this run's cap
    mine = hold(ledger, 600)
    assert ledger.may_fit(600)
    assert not ledger.may_fit(601)
    ledger.release(mine, "429")
    hold(ledger, 600, tier="batch")
    assert not ledger.may_fit(600)  # a batch job takes up to a day
    late = open_ledger(tmp_path, run="late", run_cap=3_000, project_cap=3_000)
    assert late.may_fit(2_000)  # once the project's cap has back what the other run holds
    assert not late.may_fit(2_001)
    other.settle(on_the_wire, 1_500)
    assert not late.may_fit(501)
    assert open_ledger(tmp_path, run="poor", run_cap=None).may_fit(0)
    assert not open_ledger(tmp_path, run="poor", run_cap=None).may_fit(1)


def test_more_than_was_reserved_is_recorded_and_counted(tmp_path):
    ledger = open_ledger(tmp_path, run_cap=1_000)
    ledger.settle(hold(ledger, 600), 900)
    assert ledger.spent().settled == 900
    with pytest.raises(BudgetError):
        hold(ledger, 101)
    hold(ledger, 100)


def test_a_bill_of_unknown_size_counts_the_worst(tmp_path):
    ledger = open_ledger(tmp_path)
    assert ledger.settle(hold(ledger, 600), None) == 600
    assert ledger.spent().settled == 600


def test_a_reservation_is_closed_once(tmp_path):
    ledger = open_ledger(tmp_path)
    number = hold(ledger, 600)
    ledger.settle(number, 5)
    for again in (lambda: ledger.settle(number, 5), lambda: ledger.release(number, "why")):
        with pytest.raises(ValueError, match="not held"):
            again()
    assert ledger.spent().settled == 5


def test_an_answer_and_its_settlement_are_one_transaction(tmp_path):
    ledger = open_ledger(tmp_path)
    number = hold(ledger, 600)
    with ledger.connect() as store:
        store.execute("CREATE TABLE answers (key TEXT)")

    def interrupted():
        with ledger.connect() as store:
            store.execute("INSERT INTO answers VALUES ('k')")
            ledger.settle(number, 5, connection=store)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    spent = ledger.spent()
    assert (spent.settled, spent.reserved) == (0, 600)
    with ledger.connect() as store:
        assert store.execute("SELECT COUNT(*) FROM answers").fetchone() == (0,)
        store.execute("INSERT INTO answers VALUES ('k')")
        ledger.settle(number, 5, connection=store)
    assert ledger.spent().settled == 5


def test_sums_are_those_of_the_rows_and_rows_stay(tmp_path):
    ledger = open_ledger(tmp_path)
    chance = random.Random(7)
    for _ in range(50):
        number = hold(ledger, chance.randrange(1000))
        chance.choice([lambda n: ledger.settle(n, 3), lambda n: ledger.release(n, "no"), lambda n: None])(number)
    with ledger.connect() as store:
        kept = store.execute("SELECT amount FROM committed WHERE run = 'run'").fetchone()
        assert kept == store.execute("SELECT SUM(amount) FROM reservations").fetchone()
    with pytest.raises(sqlite3.IntegrityError, match="keeps its rows"), ledger.connect() as store:
        store.execute("DELETE FROM reservations")


def test_a_forked_process_opens_the_file_anew(tmp_path):
    ledger = open_ledger(tmp_path)
    hold(ledger, 10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            hold(ledger, 20)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    spent = ledger.spent()
    assert (spent.reserved, spent.lost) == (10, 20)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("this is a text, and rather longer than the header of a database would be" * 20)
    with pytest.raises(MachineError, match="can't hold the ledger"):
        SpendingLedger(path, run="run", run_cap=0, project_cap=None)
    newer = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(MachineError, match="newer"):
        SpendingLedger(newer, run="run", run_cap=0, project_cap=None)


def test_commits_are_flushed_to_disk(tmp_path):
    """A power cut must not let the ledger forget what was sent."""
    ledger = SpendingLedger(tmp_path / "gemini.sqlite", run="run", run_cap=0, project_cap=None)
    assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
