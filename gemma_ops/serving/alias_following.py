"""Following of an alias: whatever version it stands at serves, once it has been pulled, compared and asked.

The new version starts next to the old where memory allows it, sings, and takes over; the old one answers what it has
taken and ends. Where both don't fit, the old one ends first and requests wait. A version that can't serve is told and
left alone until the alias moves again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import MachineError, OpsError
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.engines import memory_for
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.served_source import Source, memory_of
from gemma_ops.serving.serving_state import ModelService

Say = Callable[[str], None]
Opener = Callable[[Source, MachineConfig, ServeConfig], Awaitable[ModelService]]


class AliasFollower:
    """Follower that keeps one place of a deployment at the version where `name@alias` stands: the one that serves, or,
    with `challenges`, the one next to it."""

    def __init__(
        self,
        deployment: Deployment,
        asked: str,
        machine: MachineConfig,
        settings: ServeConfig,
        opened: Opener,
        say: Say,
        *,
        challenges: bool = False,
    ) -> None:
        self._deployment, self._machine, self._settings, self._opened = deployment, machine, settings, opened
        self.name, _, self.alias = asked.partition("@")
        self._asked, self._say, self._challenges = asked, say, challenges
        self._left: str | None = None
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """Look at the alias now."""
        self._nudged.set()

    async def follow(self) -> None:
        """Look at the alias every few seconds, for ever."""
        while True:
            await self.look()
            self._nudged.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), self._settings.follow or None)

    async def look(self) -> None:
        """Look at the alias once, and bring the version it stands at. What goes wrong is reported, and changes
        nothing."""
        deployment = self._deployment
        try:
            number = await asyncio.to_thread(_standing, self._machine, self.name, self.alias)
            if number is None and not self._challenges:
                self._tell(f"{self._asked} no longer exists: version {deployment.current.facts.version} keeps serving")
                return
            present = deployment.challenger if self._challenges else deployment.current
            if number == (present.facts.version if present else None):
                self._left = None
                deployment.trouble.pop(self.alias, None)
            elif number is None:
                deployment.challenge(None)
                self._say(
                    f"{self._asked} no longer exists: nothing is tried next to version "
                    f"{deployment.current.facts.version}"
                )
            elif number != self._left:
                await self._bring(number)
        except OpsError as error:
            self._tell(f"{self._asked} can't be followed: {error.what}")
        except Exception as error:  # a library's own, which must not end the following without a word
            self._tell(f"{self._asked} can't be followed: {type(error).__name__}: {error}")

    async def _bring(self, number: str) -> None:
        deployment, before = self._deployment, self._deployment.current
        try:
            source = await asyncio.to_thread(open_source, f"{self.name}/{number}", self._machine, self._settings)
            fits = _fits(source, self._machine, self._settings)
            if self._challenges:
                if not fits:
                    raise MachineError("this machine has no memory for it next to the version that serves", "")
                deployment.challenge(await self._open(source))
            elif fits:
                deployment.swap(await self._open(source))
            else:
                await self._exchange(source)
        except OpsError as error:
            self._left = number
            self._tell(
                f"version {number} of {self.name} can't serve: {error.what}; version {before.facts.version} keeps "
                f"serving"
            )
            return
        deployment.trouble.pop(self.alias, None)
        if self._challenges:
            self._say(f"version {number} is tried next to version {before.facts.version}")
        else:
            self._say(f"version {number} serves, instead of version {before.facts.version}")

    async def _open(self, source: Source) -> ModelService:
        return await self._opened(replace(source, asked=self._asked), self._machine, self._settings)

    async def _exchange(self, source: Source) -> None:
        """End the old one, then start the new one; requests wait in between. If the new one can't serve, the old one
        comes back."""
        deployment, before = self._deployment, self._deployment.current
        self._say(f"this machine holds one version at a time: requests wait until version {source.version} is there")
        async with deployment.held():
            await before.free(before.seconds)
            await before.model.engine.stop()
            try:
                deployment.swap(await self._open(source))
            except OpsError:
                await before.model.engine.start()
                raise

    def _tell(self, why: str) -> None:
        """Report a problem, once."""
        if self._deployment.trouble.get(self.alias) != why:
            self._deployment.trouble[self.alias] = why
            self._say(why)


def _standing(machine: MachineConfig, name: str, alias: str) -> str | None:
    """Return the version an alias was promoted to, None where it isn't set."""
    from gemma_ops.registry.moving import opened_registry, promoted_version

    with opened_registry(machine, name) as tracking:
        return promoted_version(tracking, name, alias)


def _fits(source: Source, machine: MachineConfig, settings: ServeConfig) -> bool:
    """True if a source fits into memory next to what runs already."""
    return memory_of(source, settings).total < memory_for(source, machine, settings)
