"""The request log: every request that reached the service, its outcome, and whether it would be billed.

Kept in memory and, where a file is named, as one JSON line per entry, written before the reply goes out: a client that
is killed right after its answer arrived finds the request in the log.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemma_ops.runs import digest


@dataclass(frozen=True)
class LogEntry:
    """One request, or one item of a batch (method `ITEM`)."""

    number: int
    time: float
    """Time of the request, in seconds since 1970."""
    method: str
    path: str
    op: str
    model: str
    key: str
    """Caller's key of a batch item; for anything else the digest."""
    digest: str
    """Digest of model and body: the same for the same question, however it arrives."""
    body: Any
    """Body as it was sent."""
    status: int
    fault: str
    """Name of the scripted fault that struck, or empty."""
    tier: str
    """Billing tier: `standard`, `flex`, `priority` or `batch`."""
    usage: dict[str, int] = field(default_factory=dict)
    """`usageMetadata` as the service counted it, also where the reply lacked it."""
    billed: bool = False
    response_id: str = ""


def digest_of(model: str, body: Any) -> str:
    """Return 32 hex digits that stand for a question to a model."""
    return digest.of_json([model, body])[:32]


class Log:
    """Log entries in the order in which they were decided."""

    def __init__(self, file: Path | None) -> None:
        self.entries: list[LogEntry] = []
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._file = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a", encoding="utf-8")

    def nth(self, key: str) -> int:
        """Return how many times this question was put before, and count this time."""
        with self._lock:
            self._seen[key] += 1
            return self._seen[key] - 1

    def add(self, **values: Any) -> None:
        with self._lock:
            entry = LogEntry(number=len(self.entries) + 1, **values)
            self.entries.append(entry)
            if self._file is not None and not self._file.closed:
                self._file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
