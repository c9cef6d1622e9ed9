"""Life and death of processes: numbers that were given away again, other places, whole families, and bound children."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gemma_ops.registry import lock
from gemma_ops.runs import processes
from gemma_ops.runs.processes import Birth, start_bound_child, stop_tree
from gemma_ops.training.launch import watch
from tests.helpers.patience import until

PACKAGE = Path(__file__).parents[2] / "gemma_ops"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
FAMILY = """
import signal, subprocess, sys, time
from pathlib import Path
place, deaf, lasting = Path(sys.argv[1]), sys.argv[2] == "deaf", sys.argv[3] == "lasting"
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grown = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", grown if deaf else "print(flush=True)\\nimport time; time.sleep(300)"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
(place / "tmp").write_text(str(child.pid))
(place / "tmp").rename(place / "grandchild")
if lasting:
    time.sleep(300)
"""
"""A process that has a child: `deaf` to SIGTERM or not, `lasting` or leaving at once."""


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(folder, *manner):
    return [sys.executable, "-c", FAMILY, str(folder), *manner]


def grandchild(folder):
    until((folder / "grandchild").exists, 30)
    return int((folder / "grandchild").read_text())


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def dead_and_unburied(process):
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_number_that_was_given_away_again_is_not_life(child):
    found = Birth.of(child.pid)
    assert found is not None
    assert found.alive()
    assert found != Birth.here()
    assert Birth(found.place, child.pid, "12345").state() == "gone"
    assert Birth.of_record(child.pid).state() == "alive"  # a record without a birth: the number is all there is
    dead_and_unburied(child)
    assert found.state() == "gone" == Birth.of_record(child.pid).state()
    assert Birth.of(child.pid) is None
    child.wait()
    assert found.state() == "gone" == Birth.of_record(child.pid).state()


def test_of_another_place_nothing_is_said(child):
    me = Birth.here()
    for place in ("another machine", me.place.replace("pid:[", "pid:[9")):
        assert Birth(place, me.pid, me.born).state() == "unknown"
        assert not Birth(place, me.pid, me.born).alive()
        assert Birth(place, child.pid, "12345").state() == "unknown"


@linux
def test_records_are_those_that_were_always_kept():
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), Path("/proc/self/ns/pid").readlink()
    text = json.dumps({"place": f"{platform.node()} {boot} {space}", "pid": os.getpid(), "born": ticks})
    assert Birth.of_text(text) == Birth.here()
    assert Birth.here().to_text() == text
    with pytest.raises(ValueError):
        Birth.of_text("half a li")


@linux
def test_a_clock_that_is_set_meanwhile_changes_no_birth(monkeypatch):
    born, real = Birth.here().born, psutil.boot_time
    shifts = iter([1.0, 0.0])
    monkeypatch.setattr(psutil, "boot_time", lambda: real() - next(shifts, 0.0))
    assert Birth.here().born == born


def test_a_process_that_the_system_hides_is_unknown(child, monkeypatch):
    found = Birth.of(child.pid)

    def denied(pid):
        raise psutil.AccessDenied(pid)

    def absent(pid):
        raise psutil.NoSuchProcess(pid)

    def forbidden(pid, sign):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(psutil, "Process", denied)
        assert found.state() == "unknown"
        patch.setattr(psutil, "Process", absent)
        patch.setattr(os, "kill", forbidden)
        assert found.state() == "unknown"
    assert found.alive()


def test_a_lock_is_taken_over_from_whom_is_certainly_dead(child):
    found, now = Birth.of(child.pid), time.time()

    def record(**changes):
        held = {"id": "x", "host": platform.node(), "at": now, "place": found.place, "pid": found.pid}
        held = held | {"born": found.born} | changes
        return {key: value for key, value in held.items() if value is not None}

    old = {"place": None, "born": None}  # as locks were once written
    me = Birth.here()
    assert not lock._dead(record())
    assert not lock._dead(record(**old))
    assert lock._dead(record(at=now - lock.EXPIRY - 1))
    assert lock._dead(record(born="12345"))
    assert not lock._dead(record(host="elsewhere", born="12345"))
    assert not lock._dead(record(place="a container with our host's name", born="12345"))
    assert lock._dead(record(pid=me.pid, born=me.born))
    assert lock._dead(record(pid=me.pid, **old))
    child.kill()
    child.wait()
    assert lock._dead(record())
    assert lock._dead(record(**old))
    assert not lock._dead(record(place="a container with our host's name"))


def test_a_worker_knows_whether_its_starter_lives(child, monkeypatch):
    monkeypatch.delenv(watch._VARIABLE, raising=False)
    assert watch.starter_lives()
    for value, alive in (
        (watch.marked_environment()[watch._VARIABLE], True),
        (f"{os.getpid()}:12345", False),
        (f"{child.pid}:{Birth.of(child.pid).born}", True),
        (f"{child.pid}:", True),
    ):
        monkeypatch.setenv(watch._VARIABLE, value)
        assert watch.starter_lives() is alive
    dead_and_unburied(child)
    assert not watch.starter_lives()


@pytest.mark.parametrize(
    "manner", [("hearing", "lasting"), ("deaf", "lasting"), ("hearing", "passing"), ("deaf", "passing")]
)
def test_a_stopped_child_takes_its_descendants_along(manner, tmp_path):
    parent = subprocess.Popen(family(tmp_path, *manner), start_new_session=True)
    below = grandchild(tmp_path)
    if manner[1] == "passing":
        until(lambda: parent.poll() is not None, 30)
        assert lives(below)
    began = time.monotonic()
    stop_tree(parent, 20.0 if manner[0] == "hearing" else 0.3)
    assert time.monotonic() - began < 15
    assert not lives(below)
    ends = {"hearing": -signal.SIGTERM, "deaf": -signal.SIGKILL}
    assert parent.returncode == (ends[manner[0]] if manner[1] == "lasting" else 0)


def test_descendants_are_found_in_our_own_session_too(tmp_path, child):
    parent = subprocess.Popen(family(tmp_path, "deaf", "lasting"))
    below = grandchild(tmp_path)
    stop_tree(parent, 0.3)
    assert not lives(below)
    assert lives(child.pid)


def test_a_child_that_is_asked_may_end_in_its_own_way(tmp_path):
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), "
        "sys.exit(7)))\nprint(flush=True)\ntime.sleep(300)"
    )
    asked = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    asked.stdout.readline()
    stop_tree(asked, 20.0)
    asked.stdout.close()
    assert asked.returncode == 7


def test_whoever_has_the_number_of_a_buried_child_is_left_alone():
    stranger = subprocess.Popen(["sleep", "300"], start_new_session=True)
    buried = subprocess.Popen(["true"])
    buried.wait()
    buried.pid = stranger.pid
    stop_tree(buried, 0.1)
    assert stranger.poll() is None
    stop_tree(stranger, 5.0)
    assert stranger.returncode == -signal.SIGTERM


STARTER = """
import sys, threading
from gemma_ops.runs.processes import start_bound_child
thread = threading.Thread(target=lambda: print(start_bound_child(sys.argv[1:], grace=0.3).pid, flush=True))
thread.start()
thread.join()  # what was started from a thread outlives the thread
threading.Event().wait()
"""


@pytest.mark.parametrize("manner", ["hearing", "deaf"])
def test_a_bound_child_dies_with_a_parent_that_is_killed(manner, tmp_path):
    command = [sys.executable, "-c", STARTER, *family(tmp_path, manner, "lasting")]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    guard = int(starter.stdout.readline())
    below = grandchild(tmp_path)
    between = psutil.Process(below).ppid()
    time.sleep(3 * processes._GUARD_LOOK)
    assert all(map(lives, (guard, between, below)))
    starter.kill()
    starter.wait()
    starter.stdout.close()
    until(lambda: not any(map(lives, (guard, between, below))), 30)


@linux
def test_a_bound_child_dies_with_its_guard_too(tmp_path):
    guard = start_bound_child(family(tmp_path, "deaf", "lasting"), grace=0.3)
    below = grandchild(tmp_path)
    between = psutil.Process(below).ppid()
    assert between != guard.pid
    guard.kill()
    until(lambda: not lives(between), 30)
    stop_tree(guard, 0.1)  # finds what has lost its parents
    assert not lives(below)


BESIDE = """
import os, subprocess, sys
beside = subprocess.Popen(["sleep", "300"])
subprocess.run([sys.executable, "-P", sys.argv[1], str(os.getpid()), "0.1", "true"])
print(beside.poll())
beside.kill()
"""


def test_a_guard_that_leads_no_session_leaves_others_in_it_alone():
    command = [sys.executable, "-c", BESIDE, processes.__file__]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "None")


def test_a_bound_child_ends_as_its_command_does(tmp_path, capfd):
    def code(*command, **options):
        return start_bound_child(command, **options).wait(60)

    assert code("sh", "-c", "exit 3") == 3
    assert code("sh", "-c", "kill -9 $$") == 128 + 9
    assert code("no-such-command-anywhere") == 127
    assert "no-such-command-anywhere: No such file" in capfd.readouterr().err
    assert code("sh", "-c", "echo $PLACE; pwd", env={**os.environ, "PLACE": "there"}, cwd=tmp_path) == 0
    assert capfd.readouterr().out.split() == ["there", str(tmp_path)]
    ours, theirs = os.pipe()
    assert code(sys.executable, "-c", f"import os; os.write({theirs}, b'heard')", pass_fds=(theirs,)) == 0
    assert os.read(ours, 100) == b"heard"
    os.close(ours)
    os.close(theirs)
    guard = start_bound_child(family(tmp_path, "hearing", "lasting"))
    below = grandchild(tmp_path)
    stop_tree(guard, 20.0)
    assert guard.returncode == 128 + signal.SIGTERM
    assert not lives(below)


def test_nobody_else_finds_out_who_lives():
    own = re.compile(r"/proc/(\{|self/stat\b|sys/kernel/random)|os\.kill\([^)]*, 0\)|os\.killpg|pid_exists")
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "runs" / "processes.py"]
    assert len(files) > 300
    assert not [path for path in files if own.search(path.read_text(encoding="utf-8"))]
