"""Replicas of an engine that answer as one: a request goes to the one with the least to do, and what had not begun in
one that dies goes on to another."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from gemma_ops.serving.engine import Engine, EngineGoneError, Sampling, ShownMedia, Tokens

_LOOK = 0.02
"""Seconds between two looks for a free slot, where a dead replica has left fewer than requests were let in for."""


@dataclass(frozen=True)
class ReplicaState:
    """Counts of one replica since the start, and its present load."""

    requests: int
    """Number of requests that were begun in it, including those it died under."""
    running: int
    restarts: int
    alive: bool


@dataclass
class _Replica:
    engine: Engine
    requests: int = 0
    running: int = 0
    prompts: deque[list[int]] = field(default_factory=deque)
    """Prompts that its slots took last, which its KV cache may still hold."""

    def prefix(self, prompt: list[int]) -> int:
        """Return the tokens from a prompt's beginning that it need not read again."""
        return max((common_prefix(prompt, held) for held in self.prompts), default=0)


class Replicas:
    """Engines of the same file behind one interface; each starts itself again when it dies, while the others answer.

    `slots` are those of all together, `context` that of each.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self.name = f"{len(engines)} x {first.name}"
        self.slots, self.context = sum(engine.slots for engine in engines), first.context
        self.senses = first.senses
        self.engines = tuple(engines)
        self._replicas = [_Replica(engine, prompts=deque(maxlen=engine.slots)) for engine in engines]

    @property
    def restarts(self) -> int:
        """Return the restarts of all replicas together."""
        return sum(engine.restarts for engine in self.engines)

    def states(self) -> tuple[ReplicaState, ...]:
        """Return the state of each replica, in the order of their numbers."""
        return tuple(
            ReplicaState(one.requests, one.running, one.engine.restarts, one.engine.alive()) for one in self._replicas
        )

    async def start(self) -> None:
        """Load the weights in every replica; where one can't, none stays. Raises ModelError as the engine does."""
        found = await asyncio.gather(*(engine.start() for engine in self.engines), return_exceptions=True)
        wrong = next((each for each in found if each is not None), None)
        if wrong is not None:
            await self.stop()
            raise wrong

    async def stop(self) -> None:
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def alive(self) -> bool:
        return any(engine.alive() for engine in self.engines)

    async def complete(
        self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None
    ) -> AsyncGenerator[Tokens]:
        """Yield tokens as they come, of one replica: of another where one died before the first. Raises EngineGoneError
        where none is left, or one died later, and EngineRefusedError."""
        died: list[_Replica] = []
        while True:
            replica = await self._free(prompt, died)
            replica.requests += 1
            replica.running += 1
            replica.prompts.append(prompt)
            begun = False
            try:
                answer = cast("AsyncGenerator[Tokens]", replica.engine.complete(prompt, sampling, shown))
                async with aclosing(answer) as tokens:
                    async for found in tokens:
                        begun = True
                        yield found
            except EngineGoneError:
                replica.prompts.clear()
                if begun:
                    raise
                died.append(replica)
            else:
                return
            finally:
                replica.running -= 1

    async def _free(self, prompt: list[int], died: list[_Replica]) -> _Replica:
        """Return the replica that takes a prompt: the least busy, of those the one that knows most of it, of those the
        one asked least. Raises EngineGoneError where all are dead, or died under this very request."""
        while True:
            there = [one for one in self._replicas if one.engine.alive() and one not in died]
            if not there:
                raise EngineGoneError(f"no replica of {self.name} is there", "send it again: they are being restarted")
            least = min(one.running for one in there)
            idle = [one for one in there if one.running == least and least < one.engine.slots]
            if len(idle) == 1:
                return idle[0]
            if idle:
                return max(idle, key=lambda one: (one.prefix(prompt), -one.requests))
            await asyncio.sleep(_LOOK)


def several(count: int, threads: int | None, made: Callable[[int | None], Engine]) -> Engine:
    """Return one engine, or `count` that answer as one. `made` takes CPU threads: these, all of the machine's where
    None, are shared out."""
    if count == 1:
        return made(threads)
    share = max(1, (threads or os.cpu_count() or 1) // count)
    return Replicas([made(share) for _ in range(count)])


def each_engine(engine: Engine) -> tuple[Engine, ...]:
    """Return the engines that answer: the replicas, or the one that there is."""
    return engine.engines if isinstance(engine, Replicas) else (engine,)


def common_prefix(one: list[int], other: list[int]) -> int:
    """Return how many tokens two prompts begin with together."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
