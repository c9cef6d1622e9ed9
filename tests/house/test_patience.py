"""The suite's own clock: a starved process is given its time, a hanging one is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.helpers import patience

SPIN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\nprint('done')"


def test_a_process_that_sleeps_too_long_is_ended_with_its_children(tmp_path):
    child = (
        f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); "
        f"time.sleep(60)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        patience.run(
            [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"],
            seconds=2,
        )
    patience.until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), 30)


def test_a_process_that_computes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        patience.run([sys.executable, "-c", SPIN.format(seconds=60)], seconds=1)


def test_a_starved_process_is_given_its_time():
    """Beside three busy loops on the same core it needs some four times as long by the wall as the time it is given."""
    core = min(os.sched_getaffinity(0))
    pin = f"import os; os.sched_setaffinity(0, [{core}])\n"
    others = [subprocess.Popen([sys.executable, "-c", pin + "while True: pass"]) for _ in range(3)]
    began = time.monotonic()
    try:
        done = patience.run([sys.executable, "-c", pin + SPIN.format(seconds=1)], seconds=1.8)
    finally:
        for each in others:
            each.kill()
            each.wait()
    assert done.stdout == "done\n"
    assert time.monotonic() - began > 2.2


def test_what_a_run_prints_and_returns_is_kept():
    done = patience.run(
        [sys.executable, "-c", "import sys; print(1); print(2, file=sys.stderr); sys.exit(3)"], seconds=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "2\n", 3)


def test_conditions_and_threads_have_deadlines():
    assert patience.until(lambda: "x", 1) == "x"
    with pytest.raises(TimeoutError, match=r"did not happen in 0\.2 s"):
        patience.until(lambda: False, 0.2)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, daemon=True)
    thread.start()
    assert not patience.joined(thread, 0.2)
    go_on.set()
    assert patience.joined(thread, 60)
