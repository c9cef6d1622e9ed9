"""The served model and its counts so far: the state that both protocols, health and metrics share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from gemma_ops.config import Privacy
from gemma_ops.serving.engine import EngineGoneError, Sampling
from gemma_ops.serving.model import RenderedPrompt, Said, ServedModel
from gemma_ops.serving.slots import RequestSlots
from gemma_ops.serving.token_reader import Piece
from gemma_ops.verdicts import Routing
from gemma_ops.wire.ask import Ask, RefusalError

LATENCY_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the latency buckets, in seconds."""


_TRIES = 3
"""Times that a reply is asked for that doesn't begin, because the engine dies."""
_PATIENCE = 30.0
"""Seconds that a request waits for an engine that is being started again."""
_LOOK = 0.05

Label = tuple[str, str, str]
"""Label of counts: model, version and format."""


@dataclass(frozen=True)
class ServedFacts:
    """What is served and why it may be, for people and clients."""

    source: str
    """Source as it was asked for: `support-nano@champion`."""
    model: str
    """The name that clients ask for."""
    version: str = ""
    """Version of the registry; empty for a run or a file."""
    format: str = ""
    engine: str = ""
    verdict: str = ""
    """Verdict, `pass`, `fail`, `inconclusive` or `ungated`; empty where none is known."""
    gates: tuple[str, ...] = ()
    """Outcomes of the verdict's gates, a sentence each."""
    canary: str = ""
    """Finding of the canary, a sentence."""
    digest: str = ""
    """SHA-256 of the file that is loaded, in hex."""
    learned: Privacy = "local_only"
    """Privacy class of its answers: that of the rows that it learned from, unless a person has released them
    further."""
    evidence: Routing | None = None
    """Evidence of its evaluation per slice, against services."""
    drafter: str = ""
    """Whether a drafter says tokens ahead, and why; empty where there is none to decide about."""

    @property
    def label(self) -> Label:
        return self.model, self.version, self.format


@dataclass
class TrafficTally:
    """Counts since the start."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Number of requests by protocol and status."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reply_tokens: int = 0
    thought_tokens: int = 0
    seconds: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    """Number of requests by latency: up to each of the bounds, and beyond."""
    seconds_sum: float = 0.0
    first_sum: float = 0.0

    @property
    def requests_whole(self) -> int:
        """Return how many requests were answered."""
        return sum(self.seconds)

    def add(self, protocol: str, status: int, said: Said | None, seconds: float) -> None:
        self.requests[protocol, status] += 1
        if said is None:
            return
        self.prompt_tokens += said.prompt_tokens
        self.cached_tokens += said.cached_tokens
        self.reply_tokens += said.tokens
        self.thought_tokens += said.thought_tokens
        self.seconds_sum += seconds
        self.seconds[
            next((place for place, bound in enumerate(LATENCY_BOUNDS) if seconds <= bound), len(LATENCY_BOUNDS))
        ] += 1


class ModelService:
    """A served model behind its queue."""

    def __init__(self, model: ServedModel, facts: ServedFacts, *, queue: int, seconds: float = 600.0) -> None:
        """Open the service; `queue` requests may wait, and one reply may take `seconds` at most."""
        self.model, self.facts, self.seconds = model, facts, seconds
        self.slots = RequestSlots(model.engine.slots, queue)
        self.tally = TrafficTally()
        self.began = time.time()
        self.draining = False
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        """Keep the engine until `release`: a request has chosen this service."""
        self._held += 1
        self._free.clear()

    def release(self) -> None:
        """End what `hold` began."""
        self._held -= 1
        if not self._held:
            self._free.set()

    async def free(self, seconds: float) -> None:
        """Return when no request holds this service, or after so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._free.wait(), seconds)

    def check(self) -> None:
        """Raise RefusalError while nothing is answered at once."""
        self._check_open()
        if not self.model.engine.alive():
            raise RefusalError("the engine is starting: send the request again", status=503, code="starting")

    def _check_open(self) -> None:
        if self.draining:
            raise RefusalError("the server is about to end: send the request to another", status=503, code="draining")

    async def _pieces(
        self, ask: Ask, prompt: RenderedPrompt, sampling: Sampling, begun: list[int], said: Said
    ) -> AsyncGenerator[Piece]:
        """Yield the pieces of a reply. A reply that had not begun when the engine died is asked for again once the
        engine is back."""
        for left in reversed(range(_TRIES)):
            await self._engine_back()
            shown = False
            try:
                async with aclosing(self.model.answer(prompt, sampling, said, ask.stop, begun)) as pieces:
                    async for piece in pieces:
                        shown = True
                        yield piece
            except EngineGoneError:
                if shown or not left:
                    raise
                await asyncio.sleep(_LOOK)
            else:
                return

    async def _engine_back(self) -> None:
        """Wait for an engine that is being started again, for a while."""
        until = time.monotonic() + _PATIENCE
        while not self.model.engine.alive():
            if time.monotonic() > until:
                self.check()
            await asyncio.sleep(_LOOK)

    @asynccontextmanager
    async def replying(self, ask: Ask, said: Said) -> AsyncIterator[AsyncIterator[Piece]]:
        """Give the pieces of one reply, in a slot of its own. Raises RefusalError, QueueFullError among them, before
        any piece."""
        self._check_open()
        prompt = self.model.prompt(ask)
        begun, sampling = self.model.begun(ask), self.model.sampling(ask, prompt)
        async with self.slots.taken(), aclosing(self._pieces(ask, prompt, sampling, begun, said)) as pieces:
            try:
                async with asyncio.timeout(self.seconds):
                    yield pieces
            except TimeoutError:
                raise RefusalError(f"no whole reply in {self.seconds:g} s", status=504, code="timeout") from None

    async def reply(self, ask: Ask) -> Said:
        """Return one whole reply."""
        said = Said()
        async with self.replying(ask, said) as pieces:
            async for _ in pieces:
                pass
        return said

    async def replies(self, ask: Ask) -> tuple[list[Said], Said]:
        """Return all the replies that are asked for, and their usage together: the prompt counts once. With a seed each
        has its own, counted from the one that was given."""
        seeds = [None if ask.seed is None else ask.seed + number for number in range(ask.count)]
        found = await asyncio.gather(*(self.reply(replace(ask, seed=seed)) for seed in seeds))
        first = found[0]
        total = Said(
            first.text, first.thought, first.calls, first.end, prompt_tokens=first.prompt_tokens,
            cached_tokens=first.cached_tokens,
            tokens=sum(said.tokens for said in found), thought_tokens=sum(said.thought_tokens for said in found),
        )  # fmt: skip
        return found, total
