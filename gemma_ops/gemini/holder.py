"""Which process holds a reservation, and whether it still lives.

A process number alone is no identity: numbers are reused, after a restart and in every container anew. So the moment of birth
is kept with it, and the machine's boot and process namespace: where those differ from ours, nothing can be said of a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

State = Literal["alive", "gone", "unknown"]


@dataclass(frozen=True)
class Holder:
    """One process of one machine."""

    place: str
    """Machine, boot and process namespace: within one place a number and a birth name one process."""
    pid: int
    born: str
    """When it started, in the system's own ticks."""

    @classmethod
    def me(cls) -> Holder:
        pid = os.getpid()
        return cls(_place(), pid, _born(pid) or "")

    @classmethod
    def of_text(cls, text: str) -> Holder:
        return cls(**json.loads(text))

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    def state(self) -> State:
        """`gone` only when it certainly is; a process of another machine or container is `unknown`."""
        if self.place != _place():
            return "unknown"
        return "alive" if self.born and _born(self.pid) == self.born else "gone"


@lru_cache(maxsize=1)
def _place() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # where there is no /proc, birth times alone tell processes apart
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """Start of a running process; None when there is none of that number, or only its unburied entry."""
    try:
        # The name in parentheses may hold anything; after it come state (field 3) and, at field 22, the start in clock ticks.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except ProcessLookupError:
        return None
    except OSError:
        return None if Path("/proc/self/stat").exists() else _born_by_ps(pid)
    return None if fields[0] in {"Z", "X"} else fields[19]


def _born_by_ps(pid: int) -> str | None:
    """The same without /proc, to the second."""
    try:
        found = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(found[1:]) if found and not found[0].startswith("Z") else None
