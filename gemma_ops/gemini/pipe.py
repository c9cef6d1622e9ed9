"""The door's end of the pipe: it starts the courier, numbers requests, and turns its lines into answers.

The courier gets a session of its own and its own ends of all three pipes, so that it neither hears the terminal nor
holds it open. That it died is noticed and said: what it had on the wire counts as spent, what it had stored is there.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.config import MachineConfig
from gemma_ops.errors import ServiceError
from gemma_ops.gemini.courier import revive
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import rehearsal

_LEAVE = 2.0
"""Seconds to wait for the courier to leave; it leaves by itself when it has something to finish."""


@dataclass(frozen=True)
class PipeMessage:
    """One line of the courier about one request, or a note."""

    key: str = ""
    answer: Answer | None = None
    error: Exception | None = None
    faults: tuple[str, ...] = ()
    piece: str = ""
    """Visible text of a stream that goes on."""
    note: Mapping[str, Any] = field(default_factory=dict)


def _message(key: str, line: Mapping[str, Any]) -> PipeMessage:
    if "error" in line:
        return PipeMessage(key, error=revive(line["error"]))
    if "piece" in line:
        return PipeMessage(key, piece=line["piece"])
    return PipeMessage(key, answer=Answer(**line["answer"]), faults=tuple(line["faults"]))


class Pipe:
    """A courier process and the pipe to it."""

    def __init__(self, machine: MachineConfig, ledger: SpendingLedger, *, since: float, lasting: bool = False) -> None:
        """Start the courier; `lasting` is for a server, which puts requests with `put` at any time and hears of them
        with `heard`."""
        opening = {
            "gemini": machine.gemini.model_dump(mode="json"),
            "ledger": str(ledger.path.absolute()),
            "run": ledger.run,
            "caps": [ledger.run_cap, ledger.project_cap],
            "since": since,
            "rehearsal": rehearsal(machine.gemini),
            "lasting": lasting,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gemma_ops.gemini.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._last_words: collections.deque[str] = collections.deque(maxlen=40)
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read, self._listen)]
        for reader in self._readers:
            reader.start()
        self._count = 0
        self._putting = threading.Lock()
        self._ended = False
        self._write({"open": opening})

    @property
    def ended(self) -> bool:
        """True if nothing more will come: the courier died or never began, and the next request needs another one."""
        return self._ended or self._process.poll() is not None

    def ask(self, requests: Mapping[str, Request], batched: AbstractSet[str]) -> Iterator[PipeMessage]:
        """Hand over requests by key, and yield what comes of each, until each was answered or refused."""
        numbers: dict[int, str] = {}
        groups: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for key, request in requests.items():
            self._count += 1
            numbers[self._count] = key
            groups[key in batched].append({"n": self._count, "request": request.to_json()})
        for batch, items in groups.items():
            if items:
                self._write({"ask": items, "batch": batch})
        while numbers:
            line = self._lines.get()
            if line is None:
                self._ended = True
                raise self._died()
            if "note" in line:
                yield PipeMessage(note=line["note"])
            elif "broken" in line:
                self._ended = True
                raise revive(line["broken"])
            elif line["n"] in numbers:  # anything else is left from a call that was interrupted
                key = numbers.pop(line["n"])
                yield _message(key, line)

    def put(self, request: Request) -> int:
        """Hand over one request, from any thread, and return the number that `heard` reports it by."""
        with self._putting:
            self._count += 1
            number = self._count
            self._write({"ask": [{"n": number, "request": request.to_json()}], "batch": False})
        return number

    def heard(self) -> Iterator[tuple[int, PipeMessage]]:
        """Yield what comes of requests that were put, until the courier ends; the last number is 0, with why it
        ended."""
        while (line := self._lines.get()) is not None:
            if "broken" in line:
                self._ended = True
                yield 0, PipeMessage(error=revive(line["broken"]))
                return
            if "n" in line:
                yield line["n"], _message("", line)
        self._ended = True
        yield 0, PipeMessage(error=self._died())

    def close(self) -> None:
        """End the courier's input. Waits a moment for it, and leaves it alone with what it has to finish."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_LEAVE)
            for reader in self._readers:
                reader.join(_LEAVE)
            for stream in (self._process.stdout, self._process.stderr):
                if stream:
                    stream.close()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it died; the end of its output says so, after what it still had to say

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # half a line is all that a killed courier leaves
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last_words.append(line)

    def _died(self) -> ServiceError:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        for reader in self._readers:
            reader.join(_LEAVE)
        said = "".join(self._last_words).strip()
        return ServiceError(
            f"the process that talks to Gemini died ({how})" + (f":\n{said}" if said else ""),
            "run the same command again: answers that arrived are kept, and what was on the wire counts as spent",
        )
