"""The step's log: one JSON line per record, in `logs/<step>.<attempt>.jsonl` of the run folder.

A step calls `record(...)` without knowing who reads it. Timings belong here and never in an artifact, so that two runs
of the same settings have the same digest. Listeners (the MLflow mirror) receive every record as it is written. Where a
step's work is done by other processes, the one that speaks for them sends its records with `sending`, and the step
records them again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_current: ContextVar[Callable[[Record], None] | None] = ContextVar("journal", default=None)
_path: ContextVar[Path | None] = ContextVar("journal_path", default=None)


def record(**fields: Any) -> None:
    """Append one record to the log of the running step; outside a step it goes nowhere."""
    write = _current.get()
    if write is not None:
        write(fields)


def log_path() -> Path | None:
    """Return the log of the running step; None outside a step."""
    return _path.get()


@contextmanager
def sending(write: Callable[[Record], None]) -> Iterator[None]:
    """Give every record to `write` instead of a log for the length of a with-block."""
    token = _current.set(write)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def writing(folder: Path, step: str, on_record: Callable[[str, Record], None] | None = None) -> Iterator[Path]:
    """Open the next attempt's log of `step` under `folder` for the length of a with-block."""
    folder.mkdir(parents=True, exist_ok=True)
    attempt = 1 + len(list(folder.glob(f"{step}.*.jsonl")))
    path = folder / f"{step}.{attempt}.jsonl"
    with path.open("a", encoding="utf-8", buffering=1) as file:

        def write(fields: Record) -> None:
            file.write(json.dumps({"time": round(time.time(), 3), **fields}, default=str) + "\n")
            if on_record:
                on_record(step, fields)

        place = _path.set(path)
        try:
            with sending(write):
                yield path
        finally:
            _path.reset(place)
