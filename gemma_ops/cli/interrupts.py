"""The handling of Ctrl-C, which ends a command within two seconds, and says what it waited for.

What a run has made is on disk at every moment, so nothing is lost when the rest is cut short: requests under way, a
tracking server that doesn't answer, threads of libraries. A second Ctrl-C ends it at once. Where the signal was ignored
before (nohup, some CI), it stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from gemma_ops.cli.exits import INTERRUPTED

PATIENCE = 1.8
"""Seconds between the signal and the end, whatever still runs."""
_began: list[float] = []


def install_interrupts() -> None:
    """Take the signal over, where it means what it usually does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _began:
        os._exit(INTERRUPTED)
    _began.append(time.monotonic())
    threading.Thread(target=_end, name="interrupt", daemon=True).start()
    raise KeyboardInterrupt


def _end() -> None:
    time.sleep(PATIENCE)
    sys.stderr.write(
        f"error: interrupted; not waiting any longer for {waiting_for()}\n"
        "try: run the same command again: finished steps are kept and the interrupted one goes on\n"
    )
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def waiting_for() -> str:
    """Return what still runs, in words: threads by their names, and where the command itself stands in this package."""
    main = threading.main_thread()
    others = sorted({_plain(thread.name) for thread in threading.enumerate() if _counts(thread, main)})
    place = _place(sys._current_frames().get(main.ident or 0))
    return ", ".join([*others, *([place] if place else [])]) or "a library"


def _counts(thread: threading.Thread, main: threading.Thread) -> bool:
    return thread is not main and (not thread.daemon or thread.name == "mlflow-mirror")


def _plain(name: str) -> str:
    """Return `answers of openai:…_3` without the number that a pool gives its threads."""
    head, _, tail = name.rpartition("_")
    return head if head and tail.isdigit() else name


def _place(frame: Any) -> str:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith("gemma_ops.") and not name.startswith("gemma_ops.cli"):
            return f"{name.removeprefix('gemma_ops.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return ""
