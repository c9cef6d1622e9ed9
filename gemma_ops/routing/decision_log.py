"""The log of decisions: a JSON line per request, with its reasons and outcome, and none of the request's words.

A line is written when its request ended, and forced to the disk by a thread of its own, so that no request waits for
a disk. A half-written last line, left by a kill, is cut off. Several servers may write one log. Requests are told apart
by a keyed digest: with the key, which lies next to the log, equal requests are found again; without it nobody can try
texts against it.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from gemma_ops.errors import DataError, MachineError
from gemma_ops.privacy.classes import class_of
from gemma_ops.routing.decision import LaneDecision
from gemma_ops.routing.routing_policy import Lane, Place
from gemma_ops.routing.signals import Signals

SCHEMA = "gemma-ops/route@1"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a request."""

    lane: Lane
    """Lane in which it was answered in the end; `refuse` where it was not."""
    status: int
    """HTTP status."""
    model: str = ""
    end: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    thought_tokens: int = 0
    dollars: float | None = None
    """US dollars that it cost; None where that isn't known."""
    seconds: float = 0.0
    failed: tuple[Place, ...] = ()
    """Lanes that were tried before and failed."""


@dataclass(frozen=True)
class RouteRecord:
    """One line of the log."""

    at: str
    """Time of the request: UTC, ISO 8601."""
    id: str
    """Keyed digest of the request, in hex."""
    decision: LaneDecision
    """First decision, made before anything was tried."""
    signals: Signals
    allowed: tuple[Place, ...]
    """Lanes that the policy allows its class."""
    asked: str
    """Gemini model and thinking level that it would be sent to."""
    outcome: Outcome
    key: str = ""
    """Name of the API key that it was sent with."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {
            "schema": SCHEMA, "at": self.at, "id": self.id, **self.decision.to_json(), "allowed": list(self.allowed),
            "asked": self.asked, "signals": self.signals.to_json(), "outcome": asdict(self.outcome),
            "key": self.key,
        }  # fmt: skip

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if body["schema"] != SCHEMA:
            raise ValueError(f"its schema is {body['schema']!r}")
        decision = LaneDecision(
            body["lane"], class_of(body["privacy"]), tuple(body["reasons"]), body["policy"], body["dollars"],
            body["again"], body["evidence"],
        )  # fmt: skip
        outcome = Outcome(**{**body["outcome"], "failed": tuple(body["outcome"]["failed"])})
        return cls(
            body["at"], body["id"], decision, Signals.from_json(body["signals"]), tuple(body["allowed"]), body["asked"],
            outcome, str(body.get("key", "")),
        )  # fmt: skip


class DecisionLog:
    """The log in one file. Safe to use from any thread; `close` returns when all of it is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open the log; raises MachineError where the file or its key can't be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._locked = _open_key(path)
            with self._alone():
                self._key = _made_key(self._locked)
                _cut_half_a_line(path)
            self._file = path.open("a", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise MachineError(
                f"the log of decisions {path} can't be written: {getattr(error, 'strerror', '') or error}",
                "give another place: serve.routing_log",
            ) from error
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="log of decisions", daemon=True)
        self._writer.start()

    def id_of(self, request: Any) -> str:
        """Return the keyed digest of a request's JSON: 32 hex digits."""
        text = json.dumps(request, ensure_ascii=False, sort_keys=True, default=str)
        return hmac.new(self._key, text.encode(errors="replace"), "sha256").hexdigest()[:32]

    def add(self, record: RouteRecord) -> None:
        """Queue a line to be written soon."""
        self._lines.put(json.dumps(record.to_json(), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self._writer.join()
        self._file.close()
        self._locked.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold a lock on the log for the length of the block: other servers may write it too."""
        fcntl.flock(self._locked, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._locked, fcntl.LOCK_UN)

    def _write(self) -> None:
        """Write all waiting lines together, so that they share the cost of one flush to the disk."""
        line = self._lines.get()
        while line is not None:
            lines = [line]
            while not self._lines.empty() and (line := self._lines.get()) is not None:
                lines.append(line)
            with self._alone():
                self._file.writelines(lines)
                self._file.flush()
            os.fsync(self._file.fileno())
            if line is not None:
                line = self._lines.get()


def read_log(path: Path) -> Iterator[RouteRecord]:
    """Yield the records of a log, in order. Raises DataError for a file that is none, naming the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith("\n"):
                    break
                try:
                    yield RouteRecord.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise DataError(
                        f"{path}:{number}: no record of a decision: {error}",
                        "give a log that `serve.routing_log` names",
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}", "correct the path") from error


def _open_key(path: Path) -> TextIO:
    """Open the file next to a log that holds the key of its digests, and lock it for writing; only its owner can read
    it."""
    made = os.open(path.with_name(path.name + ".key"), os.O_RDWR | os.O_CREAT, 0o600)
    return os.fdopen(made, "r+", encoding="ascii")


def _made_key(file: TextIO) -> bytes:
    """Return the key, made where there is none yet, or a server was killed before it had written it."""
    found = file.read().strip()
    if not found:
        found = secrets.token_hex(32)
        file.write(found)
        file.flush()
    return bytes.fromhex(found)


def _cut_half_a_line(path: Path) -> None:
    if not path.is_file() or not (size := path.stat().st_size):
        return
    with path.open("rb") as file:
        file.seek(max(0, size - 1_000_000))
        tail = file.read()
    if not tail.endswith(b"\n"):
        os.truncate(path, size - len(tail) + tail.rfind(b"\n") + 1)
