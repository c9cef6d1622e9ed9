"""The door to Gemini for a server: many requests at once, each reported as it comes, under a cap of dollars a day.

The same boundary, ledger and courier as the door of a run (`door`), with three differences. What the ledger calls the
run is a day (UTC), so a cap holds for the day across restarts and kills. What ends one request ends no other. Answers
are not kept: a client that asks again is answered again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from gemma_ops.config import MachineConfig
from gemma_ops.errors import BudgetError
from gemma_ops.gemini import boundary, prices, request_wire
from gemma_ops.gemini.cache import store_path
from gemma_ops.gemini.door import check_door
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.pipe import Pipe, PipeMessage
from gemma_ops.gemini.request import Request

Listener = Callable[[PipeMessage], None]
"""Callback for every piece of text, and last for the answer or the error, in a thread of the door's own."""
_LOOK_AGAIN = 0.25
"""Seconds for which the money that is left is cached."""


def run_of_day(moment: datetime) -> str:
    """Return the ledger's name for the day of a moment."""
    return f"serve {moment.astimezone(UTC):%Y-%m-%d}"


class LiveGemini:
    """Gemini as a server's clients ask it. Safe to use from any thread."""

    def __init__(self, machine: MachineConfig, *, dollars_per_day: float) -> None:
        """Open the door; the smaller of `dollars_per_day` and `machine.gemini.budget_usd` is the cap of a day.

        Raises what keeps the door shut (see `door.check_door`), and BudgetError without `machine.gemini.budget_usd`.
        """
        check_door(machine.gemini)
        if machine.gemini.budget_usd is None:
            raise BudgetError(
                "requests to Gemini cost money, and there is no budget",
                "set machine.gemini.budget_usd to the most that this server may spend a day",
            )
        self._machine = machine
        self._cap = prices.nanodollars(min(dollars_per_day, machine.gemini.budget_usd))
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._path = store_path(machine)
        self._book = self._ledger()
        self._left = (0.0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Request, hear: Listener) -> None:
        """Send a request; `hear` receives what comes of it. Raises BoundaryError, BudgetError, ConfigError or
        DataError, and then nothing was sent."""
        request_wire.check_request(request)
        boundary.check_boundary([request], self._machine.gemini)
        with self._lock:
            self._today().put(request, hear)

    def left(self) -> float:
        """Return the dollars that may still be reserved today, known to a quarter of a second."""
        with self._lock:
            if time.monotonic() - self._left[0] > _LOOK_AGAIN:
                self._left = (time.monotonic(), self._of_today().left())
            return self._left[1] / prices.NANO

    def close(self) -> None:
        """Let the courier go; it finishes what is on the wire by itself."""
        with self._lock:
            if self._session is not None:
                self._session.pipe.close()
                self._session = None
            self._book.close()

    def _of_today(self) -> SpendingLedger:
        """Return the ledger of this day. That of the day before goes once its courier has left."""
        if self._book.run != run_of_day(datetime.now(UTC)):
            before, session = self._book, self._session
            self._book, self._session = self._ledger(), None

            def end() -> None:
                if session is not None:
                    session.pipe.close()
                before.close()

            threading.Thread(target=end, name="a day's end", daemon=True).start()
        return self._book

    def _today(self) -> _Session:
        """Return the session of this day, begun anew where its courier has ended."""
        ledger = self._of_today()
        if self._session is None or self._session.pipe.ended:
            if self._session is not None:
                self._session.pipe.close()
            self._session = _Session(self._machine, ledger)
        return self._session

    def _ledger(self) -> SpendingLedger:
        project = self._machine.gemini.project_budget_usd
        return SpendingLedger(
            self._path,
            run=run_of_day(datetime.now(UTC)),
            run_cap=self._cap,
            project_cap=None if project is None else prices.nanodollars(project),
        )


class _Session:
    """One courier, and who waits for its answers."""

    def __init__(self, machine: MachineConfig, ledger: SpendingLedger) -> None:
        self.pipe = Pipe(machine, ledger, since=time.time(), lasting=True)
        self._lock = threading.Lock()
        self._waiting: dict[int, Listener] = {}
        self._over: PipeMessage | None = None
        threading.Thread(target=self._listen, name="answers of Gemini", daemon=True).start()

    def put(self, request: Request, hear: Listener) -> None:
        with self._lock:
            if self._over is None:
                self._waiting[self.pipe.put(request)] = hear
                return
        hear(self._over)

    def _listen(self) -> None:
        for number, message in self.pipe.heard():
            with self._lock:
                if not number:
                    self._over, listeners, self._waiting = message, list(self._waiting.values()), {}
                elif message.piece:
                    listeners = [self._waiting[number]]
                else:
                    listeners = [self._waiting.pop(number)]
            for hear in listeners:
                hear(message)
