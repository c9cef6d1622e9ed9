"""Deadlines that a busy machine can't shorten: they count the time that work had, not the time that went by.

A process that computes is charged the processor time it got, one that sleeps (waiting for a reply that never comes,
say) the time it slept, and one that is ready to run and isn't let run nothing. On an idle machine that is the clock on
the wall; on one shared with others a test takes longer, and still ends when what it waits for hangs. Linux only;
elsewhere the wall's clock.

`run` and `finish` for a process and its children, `until` for a condition, `joined` for a thread of this process.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_TICK = os.sysconf("SC_CLK_TCK")
_EVERY = 0.05


class Stopwatch:
    """Seconds that a process and its descendants had since this was made: `had()`, to be asked a few times a second."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getpid()
        self._had, self._at = 0.0, time.monotonic()
        self._computed, _ = self._look()

    def had(self) -> float:
        now = time.monotonic()
        passed, self._at = now - self._at, now
        before = self._computed
        self._computed, ready = self._look()
        self._had += min(passed, max(self._computed - before, 0.0)) if ready else passed
        return self._had

    def _look(self) -> tuple[float, bool]:
        """Processor seconds so far, and whether a thread other than the one that looks is ready to run or waits for a
        disk."""
        try:
            pids = [self._pid, *(child.pid for child in psutil.Process(self._pid).children(recursive=True))]
        except psutil.NoSuchProcess:
            pids = [self._pid]
        seconds, ready, me = 0.0, False, threading.get_native_id()
        for pid in pids:
            try:
                fields = _fields(Path(f"/proc/{pid}/stat"))
                seconds += sum(map(int, fields[11:15])) / _TICK  # its own and those of children that have ended
                threads = [each for each in Path(f"/proc/{pid}/task").iterdir() if int(each.name) != me]
                ready = ready or any(_fields(each / "stat")[0] in "RD" for each in threads)
            except (OSError, IndexError):
                continue  # it has ended meanwhile
        return seconds, ready


def _fields(path: Path) -> list[str]:
    """proc(5)'s fields from the third, the state, on: the second is a name that may hold anything."""
    return path.read_text(errors="replace").rpartition(")")[2].split()


def until(condition: Callable[[], Any], seconds: float, *, of: int | None = None, every: float = 0.01) -> Any:
    """What `condition()` is when it is true; TimeoutError when it is not after `seconds` of process `of` (this one)."""
    watch, looked = Stopwatch(of), time.monotonic()
    while not (found := condition()):
        if time.monotonic() - looked > _EVERY:
            looked = time.monotonic()
            if watch.had() > seconds:
                raise TimeoutError(f"it did not happen in {seconds:g} s")
        time.sleep(every)
    return found


def joined(thread: threading.Thread, seconds: float) -> bool:
    """Whether the thread ended before this process had `seconds`."""
    watch = Stopwatch()
    while thread.is_alive() and watch.had() < seconds:
        thread.join(_EVERY)
    return not thread.is_alive()


def finish(process: subprocess.Popen[Any], seconds: float) -> tuple[Any, Any]:
    """`communicate()`; a process that had `seconds` is killed, its children with it, and subprocess.TimeoutExpired
    raised."""
    watch = Stopwatch(process.pid)
    while True:
        try:
            return process.communicate(timeout=_EVERY)
        except subprocess.TimeoutExpired:
            if watch.had() > seconds:
                _kill(process)
                out, err = process.communicate()
                raise subprocess.TimeoutExpired(process.args, seconds, out, err) from None


def run(command: Any, *, seconds: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run(command, capture_output=True, text=True, **options)` with the deadline of `finish`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, **options) as process:
        try:
            out, err = finish(process, seconds)
        except BaseException:
            _kill(process)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _kill(process: subprocess.Popen[Any]) -> None:
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
