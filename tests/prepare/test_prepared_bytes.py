"""The bytes of a prepared folder: of every layout what they were before rows went through processes, with one process
and with many."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time

import pytest

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.errors import DataError, MachineError
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare import prepare, row_workers
from gemma_ops.prepare.row_workers import RowWorkers
from tests.helpers import patience
from tests.helpers.prepared_rows import LAYOUTS, raw_lines, task_questions
from tests.helpers.task_files import task_yaml

ROWS = 240
BEFORE = {
    "messages": "03a7e3c902a009e5",
    "sharegpt": "3ca7a469d8172e6f",
    "alpaca": "66d50bcb70eaf824",
    "prompt_completion": "5b5bbd0d75048e90",
    "gemini": "fa324fb10d11910d",
    "preference": "ffe3312f9cbc9291",
    "judged": "2a06936f908678fa",
    "text": "5a2b36d2a3ec33ad",
    "columns": "7ba662cd4eca2b8f",
}
"""Digests of what the step wrote when it went through the rows one at a time, by layout."""


def prepared(folder, layout, workers, **settings):
    """Prepare the rows of a layout beside a task, and return a digest of all that is written, and the metrics."""
    folder.mkdir()
    source, task, out = folder / f"{layout}.jsonl", folder / "exam", folder / "out"
    source.write_text("".join(line + "\n" for line in raw_lines(layout, ROWS)), encoding="utf-8")
    task.mkdir()
    (task / "task.yaml").write_text(task_yaml("{path: data.jsonl}", "exam"))
    asked = [json.dumps({"prompt": text, "reference": "x"}) + "\n" for text in task_questions(layout, 20)]
    (task / "data.jsonl").write_text("".join(asked))
    out.mkdir()
    config = DataConfig(path=str(source), max_bad_share=0.5, **({"overlap": "report"} | LAYOUTS[layout] | settings))
    metrics = prepare(out, config, MachineConfig(workers=workers), source=source, model=WEIGHTS, tasks=(task,))
    digest = hashlib.sha256()
    for file in sorted(out.rglob("*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16], metrics


@pytest.fixture
def in_pieces(monkeypatch):
    """Chunks of 16 rows, of which other processes take all but the first."""
    monkeypatch.setattr("gemma_ops.prepare.stored_rows.AT_ONCE", 16)
    monkeypatch.setattr("gemma_ops.prepare.first_pass.AT_ONCE", 16)
    monkeypatch.setattr(row_workers, "_HERE", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_what_they_were(layout, tmp_path):
    assert prepared(tmp_path / "a", layout, 1)[0] == BEFORE[layout]


@pytest.mark.parametrize("layout", ["messages", "preference", "text"])
def test_bytes_are_the_same_with_many_processes(layout, tmp_path, in_pieces):
    assert prepared(tmp_path / "a", layout, 2)[0] == BEFORE[layout]


def test_exact_duplicates_may_be_kept(tmp_path):
    _, metrics = prepared(tmp_path / "a", "alpaca", 1, exact_duplicates="keep")
    assert metrics["exact_duplicates"] == 0
    assert metrics["train_rows"] + metrics["valid_rows"] == ROWS - 2


def refusing(limit):
    """Make a handler that refuses numbers from a limit on."""

    def handle(number):
        if number >= limit:
            raise DataError(f"{number} is too large", "take a smaller one")
        return number, os.getpid()

    return handle


def broken():
    return lambda number: {}[number]


def test_a_defect_in_another_process_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(row_workers, "_HERE", 0)
    with RowWorkers(2) as workers, pytest.raises(KeyError) as error:
        list(workers.each(broken, (), range(3)))
    assert "return lambda number: {}[number]" in error.value.__notes__[0]


def slow(_):
    time.sleep(600)


def sleeper():
    return slow


def test_other_processes_return_in_order_and_raise_what_went_wrong():
    with RowWorkers(2) as workers:
        made = workers.each(refusing, (40,), range(100))
        found = [next(made) for _ in range(40)]
        assert [number for number, _ in found] == list(range(40))
        assert {pid for _, pid in found[:4]} == {os.getpid()}
        assert os.getpid() not in {pid for _, pid in found[4:]}
        with pytest.raises(DataError, match="40 is too large") as error:
            next(made)
        assert error.value.fix == "take a smaller one"


def test_one_worker_is_this_process():
    with RowWorkers(1) as workers:
        assert {pid for _, pid in workers.each(refusing, (40,), range(30))} == {os.getpid()}
    assert not workers._children


def test_a_process_that_dies_ends_the_step_with_a_way_out(monkeypatch):
    monkeypatch.setattr(row_workers, "_HERE", 0)
    with RowWorkers(2) as workers:
        thread = threading.Thread(target=lambda: kill_first(workers))
        thread.start()
        with pytest.raises(MachineError, match="exit code -9") as error:
            list(workers.each(sleeper, (), range(3)))
        thread.join()
    assert "machine.workers=1" in error.value.fix


def kill_first(workers):
    patience.until(lambda: workers._children, 60)
    os.kill(workers._children[0].process.pid, signal.SIGKILL)
