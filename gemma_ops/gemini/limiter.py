"""The number of requests under way at once: fewer when the service reports too many, more while it does not.

Additive increase, multiplicative decrease, as networks do it: every round of answers allows one more, a 429 halves.
Limits of the service are not published per model and change by project, so they are found, not configured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Limiter:
    """Semaphore that lets at most `limit` requests pass at once, and none while the service asked for silence."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = float(most)
        self._under_way = 0
        self._silent_until = 0.0
        self._lowered_at = float("-inf")
        self._ended = False
        self._changed = threading.Condition()
        self._clock = clock

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Wait for a place, and yield the moment at which the request started."""
        with self._changed:
            while (wait := self._wait()) is None or wait > 0:
                self._changed.wait(wait)
            self._under_way += 1
            started = self._clock()
        try:
            yield started
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def served(self) -> None:
        """Record that a request was answered."""
        with self._changed:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._changed.notify_all()

    def too_many(self, started: float, wait: float | None) -> None:
        """Record that a request which began at `started` was turned away; nothing starts for `wait` seconds.

        Requests that began before the last lowering say nothing new: they met the crowd that caused it.
        """
        with self._changed:
            now = self._clock()
            if started > self._lowered_at:
                self.limit = max(1.0, self.limit / 2)
                self._lowered_at = now
            if wait:
                self._silent_until = max(self._silent_until, now + wait)
            self._changed.notify_all()

    def silence(self) -> float:
        """Return the seconds for which the service asked not to be called."""
        return max(0.0, self._silent_until - self._clock())

    def end(self) -> None:
        """Let every waiting request pass: nothing will be sent any more, and each is told so."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self) -> float | None:
        """Return the seconds until the next look makes sense: 0 for now, None until something changes."""
        if self._ended:
            return 0.0
        silence = self._silent_until - self._clock()
        if silence > 0:
            return silence
        return 0.0 if self._under_way < int(self.limit) else None
