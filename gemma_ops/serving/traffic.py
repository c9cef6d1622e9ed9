"""The server's traffic on its way to MLflow: handed to a process of its own, which no request waits for.

A trace costs MLflow some 20 ms of CPU. The server writes a line for it into a pipe; while more lines wait there than
the process can file, further ones are dropped and counted. Counts are filed every few seconds and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.registry.traffic_runs import TracedRequest
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.lanes import LaneTally

_MOST = 4_000_000
"""Most bytes that may wait for the process."""
_CONTENT = 256_000
"""Characters of a request and its reply beyond which they aren't kept."""
_PATIENCE = 30.0
"""Seconds that the process has for what still waits when the server ends."""
_CHILD = [sys.executable, "-P", "-m", "gemma_ops.serving.traffic_writer"]


class TrafficRecorder:
    """The server's end of the pipe. Everything happens in the server's loop."""

    def __init__(self, machine: MachineConfig, settings: ServeConfig, title: str, say: Callable[[str], None]) -> None:
        """Open the recorder; `title` is what is served, and `say` reports problems."""
        self._machine, self._settings, self._title, self._say = machine, settings, title, say
        self.counts = Counter({"sent": 0, "dropped": 0})
        """Number of traces that were handed over (`sent`), or `dropped`."""
        self._child: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def traces(self) -> bool:
        """True if requests are traced."""
        return self._settings.traces != "off"

    @property
    def content(self) -> bool:
        """True if what was asked and said is kept, where its class allows it."""
        return self._settings.traces == "full"

    async def start(self, counted: Callable[[], Mapping[str, float]]) -> None:
        """Start the process; `counted` gives the counts that are filed."""
        self._child = await asyncio.create_subprocess_exec(
            *_CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )  # of its own: Ctrl-C must not end it before what waits is filed
        self._send({"machine": self._machine.model_dump(mode="json"), "title": self._title})
        self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._count(counted))]

    def add(self, traced: TracedRequest) -> None:
        """Hand a request over, unless too much waits already."""
        if traced.asked is not None and len(json.dumps([traced.asked, traced.said], default=str)) > _CONTENT:
            traced = replace(traced, asked=None, said=None)
        self.counts["sent" if self._send({"trace": traced.to_json()}) else "dropped"] += 1

    async def close(self, counts: Mapping[str, float]) -> None:
        """File the last counts and what still waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._child is None:
            return
        self._send({"counts": dict(counts)})
        assert self._child.stdin
        self._child.stdin.close()
        try:
            told, _ = await asyncio.wait_for(self._child.communicate(), _PATIENCE)
            self._tell(told)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
            self._say("MLflow took too long: some of what was served isn't filed there")

    def _send(self, line: Mapping[str, Any]) -> bool:
        pipe = self._child.stdin if self._child else None
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() > _MOST:
            return False
        pipe.write(json.dumps(line, default=str).encode() + b"\n")
        return True

    async def _count(self, counted: Callable[[], Mapping[str, float]]) -> None:
        while self._settings.mirror:
            await asyncio.sleep(self._settings.mirror)
            self._send({"counts": dict(counted())})

    async def _hear(self) -> None:
        """Report what the process says."""
        assert self._child
        assert self._child.stdout
        while line := await self._child.stdout.readline():
            self._tell(line)
        self._say("the process that files traffic in MLflow has ended: later traffic isn't filed")

    def _tell(self, said: bytes) -> None:
        for line in said.splitlines():
            with contextlib.suppress(ValueError):
                self._say(str(json.loads(line)["problem"]))


def counted(deployment: Deployment, lanes: LaneTally | None) -> dict[str, float]:
    """Return the metrics of a server in MLflow: requests, errors, tokens and mean seconds by version; share and dollars
    by lane."""
    found: dict[str, float] = {}
    for (_, version, form), tally in deployment.tallies.items():
        name = "/".join(part for part in ("version", version, form) if part)
        good = tally.requests_whole
        found[f"{name}/requests"] = float(sum(tally.requests.values()))
        found[f"{name}/errors"] = float(sum(count for (_, status), count in tally.requests.items() if status >= 500))
        found[f"{name}/reply_tokens"] = float(tally.reply_tokens + tally.thought_tokens)
        if good:
            found[f"{name}/seconds_mean"] = tally.seconds_sum / good
    if lanes is None:
        return found
    for lane, share in lanes.shares().items():
        found[f"lane/{lane}/share"] = share
        found[f"lane/{lane}/requests"] = float(lanes.count(lane))
        found[f"lane/{lane}/dollars"] = lanes.dollars.get(lane, 0.0)
    return found
