"""The lock that allows one promotion at a time per model.

MLflow has no compare-and-set. On one machine a file lock decides. Between machines that share a server, the holder puts
its name into a tag of the model and reads it back; the tag of a holder that died is taken over at once on its own
machine and after `EXPIRY` elsewhere. Two machines that write the tag within the same moment both read the later one
back, so one of them gives way; the ledger's chain catches what slips through.
"""

from __future__ import annotations

import fcntl
import json
import platform
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_ops.errors import BusyError
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import lock_name
from gemma_ops.runs.processes import Birth

TAG = "gemma_ops.lock"
EXPIRY = 120.0  # seconds; the checks that read gigabytes are made before the lock is taken
WAIT = 5.0  # seconds to wait for another process of this machine
_SETTLE = 0.2  # seconds between writing the tag and reading it back


@contextmanager
def held(tracking: Tracking, name: str) -> Iterator[None]:
    """Hold the lock on the model for the length of the block. Raises BusyError naming who holds it."""
    folder = tracking.place.folder
    shared = Path(tempfile.gettempdir()) / lock_name(tracking.place.uri, name)
    path = folder / "ledger" / f".{name}.lock" if folder else shared
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _wait(file, name)
        if folder:
            yield
            return
        mine = _claim(tracking, name)
        try:
            yield
        finally:
            _release(tracking, name, mine)


def _wait(file: Any, name: str) -> None:
    until = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise BusyError(f"{name} is being promoted by another process", "wait for it and try again") from None
            time.sleep(0.1)
        else:
            return


def _claim(tracking: Tracking, name: str) -> str:
    holder = _holder(tracking, name)
    if holder and not _dead(holder):
        raise BusyError(
            f"{name} is being promoted by process {holder['pid']} on {holder['host']}",
            f"wait for it; a lock nobody releases expires after {EXPIRY:.0f} s",
        )
    mine = {"id": uuid.uuid4().hex, "host": platform.node(), "at": round(time.time()), **asdict(Birth.here())}
    tracking.client.set_registered_model_tag(name, TAG, json.dumps(mine))
    time.sleep(_SETTLE)
    found = _holder(tracking, name)
    if found is None or found["id"] != mine["id"]:
        raise BusyError(f"{name} was taken by another promotion at the same moment", "try again")
    return str(mine["id"])


def _release(tracking: Tracking, name: str, mine: str) -> None:
    holder = _holder(tracking, name)
    if holder and holder["id"] == mine:
        tracking.client.delete_registered_model_tag(name, TAG)


def _holder(tracking: Tracking, name: str) -> dict[str, Any] | None:
    text = tracking.client.get_registered_model(name).tags.get(TAG)
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _dead(holder: dict[str, Any]) -> bool:
    """True if the holder is a process of this machine that has ended, or has held the lock for too long."""
    if time.time() - float(holder["at"]) > EXPIRY:
        return True
    if holder["host"] != platform.node():
        return False
    me, pid = Birth.here(), int(holder["pid"])
    # Locks once were taken without a place and a start.
    found = Birth(holder["place"], pid, holder["born"]) if "place" in holder else Birth.of_record(pid)
    if (found.place, found.pid) == (me.place, me.pid):  # this process waits for the lock, so it doesn't hold it
        return True
    return found.state() == "gone"
