"""The bounded queue before an engine: so many requests are answered at once, so many wait, and more are told to come
back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gemma_ops.wire.ask import RefusalError


class QueueFullError(RefusalError):
    """The queue is full: every place is taken. `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        words = f"{waiting} requests wait already: send it again in {retry_after} s"
        super().__init__(words, status=429, code="busy", retry_after=retry_after)


class RequestSlots:
    """Semaphore of `slots` requests at once and `queue` more that wait, first come, first served."""

    def __init__(self, slots: int, queue: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self.queue = queue
        self._seconds = 1.0
        self.waiting = self.running = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[float]:
        """Hold a slot for as long as the block lasts, and give the seconds that it was waited for. Raises
        QueueFullError."""
        if self._free.locked() and self.waiting >= self.queue:
            raise QueueFullError(self.waiting, max(1, round(self._seconds * (self.waiting + 1) / max(self.running, 1))))
        began = time.monotonic()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        started = time.monotonic()
        self.running += 1
        try:
            yield started - began
        finally:
            self.running -= 1
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
            self._free.release()

    def expected_wait(self) -> float:
        """Return the seconds that one more request would wait, by how long the last ones took."""
        return self._seconds * (self.waiting + 1) / max(self.running, 1) if self._free.locked() else 0.0
