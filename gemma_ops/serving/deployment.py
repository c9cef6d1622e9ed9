"""The services behind one front: the version that serves, a challenger next to it, and the counts of all that ever did.

A request takes a lease of the service that answers it. A version that takes over is there at once; the one before it
answers what it has taken, and only then ends.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gemma_ops.serving.serving_state import Label, ModelService, TrafficTally
from gemma_ops.serving.slots import QueueFullError

_LEEWAY = 30.0
"""Seconds beyond the longest reply after which a replaced service ends, whoever still holds it."""


@dataclass
class Lease:
    """One request's hold on the service that answers it."""

    service: ModelService
    _held: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.service.hold()

    def end(self) -> None:
        """Give the hold back; a second time does nothing."""
        if self._held:
            self._held = False
            self.service.release()


class Deployment:
    """The services behind one front. `share` of the requests, from 0 to 1, go to the challenger where there is one."""

    def __init__(self, service: ModelService, *, share: float = 0.0, draw: Callable[[], float] = random.random) -> None:
        self.tallies: dict[Label, TrafficTally] = {}
        """Counts since the start by version, including versions that have ended."""
        self.current = self._counted(service)
        self.challenger: ModelService | None = None
        self.share, self._draw = share, draw
        self.swaps = 0
        self.trouble: dict[str, str] = {}
        """Reasons why the version that an alias stands at doesn't serve, by alias."""
        self._retiring: dict[asyncio.Task[None], ModelService] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._waiting = 0

    @property
    def services(self) -> list[ModelService]:
        """Return all services that hold an engine: the one that serves first, those that end last."""
        beside = [self.challenger] if self.challenger else []
        return [self.current, *beside, *self._retiring.values()]

    async def lease(self) -> Lease:
        """Return a hold on the service that answers the next request. Raises QueueFullError where too many wait for one
        to be there."""
        if not self._open.is_set():
            if self._waiting >= self.current.slots.queue:
                raise QueueFullError(self._waiting, 2)
            self._waiting += 1
            try:
                await self._open.wait()
            finally:
                self._waiting -= 1
        if self.challenger and self.challenger.model.engine.alive() and self._draw() < self.share:
            return Lease(self.challenger)
        return Lease(self.current)

    def swap(self, service: ModelService) -> None:
        """Let another service take over. The one before it ends when it has answered what it took."""
        before, self.current = self.current, self._counted(service)
        self.swaps += 1
        self._retire(before)

    def challenge(self, service: ModelService | None) -> None:
        """Set the challenger next to the version that serves, or none. The one before it ends when it has answered."""
        before, self.challenger = self.challenger, self._counted(service) if service else None
        if before:
            self._retire(before)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let new requests wait for as long as the block lasts."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def stop(self) -> None:
        """Stop every engine, whatever it is doing."""
        for service in self.services:
            service.draining = True
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(service.model.engine.stop() for service in self.services))

    def _counted(self, service: ModelService) -> ModelService:
        """Return the service, which counts on where its version counted before."""
        service.tally = self.tallies.setdefault(service.facts.label, service.tally)
        return service

    def _retire(self, service: ModelService) -> None:
        async def end() -> None:
            await service.free(service.seconds + _LEEWAY)
            service.draining = True
            await service.model.engine.stop()

        task = asyncio.create_task(end())
        self._retiring[task] = service
        task.add_done_callback(lambda done: self._retiring.pop(done, None))
