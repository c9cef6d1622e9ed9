"""Processes: which one a record names, whether it still lives, how children are stopped, and how they end with their
parent.

A process number alone is no identity: numbers are reused, after a restart and in every container anew. So the moment of
birth is kept with it, and the machine's boot and process namespace: where those differ from ours, nothing can be said
of a process.

Nothing of the package is imported here: the file also runs by itself, as the guard of a child (`start_bound_child`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil

State = Literal["alive", "gone", "unknown"]

_LOOK = 0.05
"""Seconds between two looks at processes that are to end."""
_GUARD_LOOK = 0.2
"""Seconds between two looks at processes that are to end."""
_DEAD = 5.0
"""Seconds within which a killed process is expected to be gone."""
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG (prctl(2))."""
_NOT_FOUND = 127
"""Exit code for a command that can't be started, as shells have it."""


@dataclass(frozen=True)
class Birth:
    """One process of one machine."""

    place: str
    """Machine, boot and process namespace: within one place a process id and a start time name one process."""
    pid: int
    born: str
    """Start of the process in the system's own ticks; empty where it was not recorded, and the process id alone has to
    do."""

    @classmethod
    def here(cls) -> Birth:
        """Return the record of this process."""
        pid = os.getpid()
        return cls(_place(), pid, _born(pid) or "")

    @classmethod
    def of(cls, pid: int) -> Birth | None:
        """Return the record of a process of this machine; None where no process has that id, or only a zombie.

        Raises PermissionError for one that the system hides from us.
        """
        born = _born(pid)
        return None if born is None else cls(_place(), pid, born)

    @classmethod
    def of_record(cls, pid: int, born: str = "") -> Birth:
        """Return the process of this machine that a record names by its id and perhaps its start."""
        return cls(_place(), pid, born)

    @classmethod
    def of_text(cls, text: str) -> Birth:
        """Parse what `to_text` wrote. Raises ValueError for other text, KeyError where a field is missing."""
        found = json.loads(text)
        return cls(found["place"], int(found["pid"]), found["born"])

    def to_text(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    def state(self) -> State:
        """Return `gone` only when the process certainly is; one of another machine or container is `unknown`, and so is
        one that the system hides."""
        if self.place != _place():
            return "unknown"
        try:
            born = _born(self.pid)
        except PermissionError:
            return "unknown"
        return "alive" if born is not None and born == (self.born or born) else "gone"

    def alive(self) -> bool:
        """True if the process certainly lives."""
        return self.state() == "alive"


def stop_tree(child: subprocess.Popen[Any], grace: float) -> None:
    """Ask a child and its descendants to end, and kill whatever still lives after `grace` seconds.

    With it go its descendants and, where it was started in a session of its own, everybody in that session: also those
    whose parents are gone. Afterwards its exit code is known.
    """
    _stop(child, grace, session=child.pid)


def start_bound_child(command: Sequence[str], *, grace: float = 10.0, **options: Any) -> subprocess.Popen[Any]:
    """Start a command that ends with this process, however this process ends; `options` are those of `Popen`.

    A small guard in a session of its own stands between: the number is the guard's, SIGTERM is passed on, the exit code
    is the command's (128 + n after signal n, 127 where it can't be started). When this process is gone, or the guard is
    asked to end, the command and its descendants have `grace` seconds and are then killed. On Linux the kernel kills
    the command should the guard itself be killed.
    """
    return subprocess.Popen(bound_command(command, grace=grace), **{**options, "start_new_session": True})


def bound_command(command: Sequence[str], *, grace: float = 10.0) -> list[str]:
    """Return the command line of that guard, for callers that start it themselves, in a session of its own."""
    return [sys.executable, "-P", __file__, str(os.getpid()), str(grace), *command]


def _stop(child: subprocess.Popen[Any], grace: float, *, session: int) -> None:
    until = time.monotonic() + grace
    known, asked = _family(child, session), set[psutil.Process]()
    if child.poll() is None:
        child.terminate()
    while True:
        ended = child.poll() is not None
        known |= _family(child, session)
        left = {each for each in known if _lives(each)}
        if ended and not left:
            return
        if time.monotonic() >= until:
            break
        if ended:  # nobody else is going to ask them
            for each in left - asked:
                with contextlib.suppress(psutil.Error):
                    each.terminate()
            asked |= left
        time.sleep(_LOOK)
    until = time.monotonic() + _DEAD
    while left and time.monotonic() < until:
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
        child.poll()
        time.sleep(_LOOK)
        known |= _family(child, session)
        left = {each for each in known if _lives(each)}
    if child.poll() is None:
        child.kill()
    child.wait()


def _family(child: subprocess.Popen[Any], session: int) -> set[psutil.Process]:
    """Return a living child with its descendants, and the members of its session. This process is never among them."""
    found: set[psutil.Process] = set()
    if child.poll() is None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            found |= {process, *process.children(recursive=True)}
    members = [pid for pid in psutil.pids() if _session(pid) == session and pid != os.getpid()]
    if child.poll() is not None and child.pid in members:
        members = []  # somebody new has the number: whom the child leaves behind keep it from being given away
    for pid in members:
        with contextlib.suppress(psutil.Error):
            found.add(psutil.Process(pid))
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


@lru_cache(maxsize=1)
def _place() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # where there is no /proc, birth times alone tell processes apart
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """Return the start of a running process, on Linux in clock ticks since boot, else to the second as `ps -o lstart`
    says it.

    None when there is none of that number, or only its unburied entry. Raises PermissionError for one that is hidden.
    """
    try:
        while True:
            before = psutil.boot_time()
            process = psutil.Process(pid)
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return None
            started = process.create_time()
            if psutil.boot_time() == before:  # else the clock was set meanwhile: ticks since boot don't follow it
                break
    except psutil.AccessDenied as error:
        raise PermissionError(f"process {pid} is hidden") from error
    except psutil.NoSuchProcess:
        # psutil answers all but this: /proc may hide what there is (proc(5), hidepid), and then psutil.pid_exists looks
        # into /proc too and says no. A signal can't be hidden from: it is refused, with PermissionError.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
        return None
    if psutil.LINUX:
        return str(round((started - before) * os.sysconf("SC_CLK_TCK")))
    at = time.localtime(started)
    return f"{time.strftime('%a %b', at)} {at.tm_mday} {time.strftime('%H:%M:%S %Y', at)}"


def _guard(parent: int, grace: float, command: Sequence[str]) -> int:
    """Run a command until it, or the process `parent`, ends; return its exit code as shells say it."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None

    def follow_into_death() -> None:
        prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)

    try:
        child = subprocess.Popen(command, close_fds=False, preexec_fn=follow_into_death)  # noqa: PLW1509 - one thread
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND
    while child.poll() is None and not asked.is_set() and os.getppid() == parent:
        asked.wait(_GUARD_LOOK)
    _stop(child, grace, session=os.getpid())  # nobody's, should this process lead none
    return 128 - child.returncode if child.returncode < 0 else child.returncode


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))


def free_memory() -> int:
    """Return the bytes that a further process may take now: free on the machine, or less by this process's control
    group."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # Pages of files are counted as used, and given back when they are needed.
    return max(0, min(free, int(limit) - int(used) + int(stat.get("file", 0)))) if limit.isdigit() else free
