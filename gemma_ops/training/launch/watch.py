"""The watch that ends processes with whoever started them: no worker trains on after its run was killed.

A process that starts others puts its number and birth into the environment (`marked`); each of them looks every second
whether it still lives (`watch`). A handler would not do: nobody is told of a SIGKILL.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from gemma_ops.runs.processes import Birth

_VARIABLE = "GEMMA_OPS_STARTED_BY"
_EVERY = 1.0
"""Seconds between two looks."""


def marked_environment() -> dict[str, str]:
    """Return the environment variable by which children know this process."""
    me = Birth.here()
    return {_VARIABLE: f"{me.pid}:{me.born}"}


def starter_lives() -> bool:
    """True if the process that started this one still lives; also where none is known."""
    pid, _, born = os.environ.get(_VARIABLE, "").partition(":")
    return not pid or Birth.of_record(int(pid), born).state() != "gone"


def watch(then: Callable[[], None] = lambda: os._exit(0)) -> None:
    """Call `then` on a thread when the starter or the direct parent is gone. Leaving with 0 starts no replacement."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent and starter_lives():
            time.sleep(_EVERY)
        then()

    threading.Thread(target=look, name="starter-watch", daemon=True).start()
