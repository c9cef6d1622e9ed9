"""Engines in a child process: started with the server, watched, started again when they die, ended with it.

What an engine adds is how its child is started, and how it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError
from gemma_ops.family.media import Senses

GONE = "send the request again: it is being restarted"
"""Advice for an engine that is not there."""
PATIENCE = 600.0
"""Seconds that loading may take."""
_SHORT = 10.0
"""Seconds below which a child that ended counts as failed, and is started again later each time."""


class ChildEngine:
    """Base of engines in a child process that answers on a socket file, in a private folder.

    A subclass says in `_spawn` how it is started; `_socket` is the file to answer on, another one each time.
    """

    def __init__(self, name: str, *, slots: int, context: int) -> None:
        self.name, self.slots, self.context = name, slots, context
        self.restarts = 0
        self.senses: Senses | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Return the process id of the child, None where there is none."""
        return self._child.pid if self._child else None

    def alive(self) -> bool:
        return self._ready.is_set()

    async def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-ops-")
        # It is removed when this process ends, and not when one does that was forked from it.
        os.register_at_fork(after_in_child=self._folder._finalizer.detach)  # type: ignore[attr-defined]
        try:
            await self._spawn()
            self._ready.set()
        except BaseException:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
        self._ready.clear()
        if self._child:
            if self._child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._end(self._child)
            await self._child.wait()
            # Its pipes are closed now, while there is a loop: left to the garbage, they complain that it has gone.
            self._child._transport.close()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        if self._folder:
            self._folder.cleanup()

    @property
    def _socket(self) -> str:
        """Return a new socket name each time: the file of a server that was killed stays, and the next could not bind
        there."""
        assert self._folder
        return str(Path(self._folder.name) / f"{self.restarts}.sock")

    async def _spawn(self) -> None:
        """Start the child as `_child`, and return when it answers. Raises ModelError for weights that it refuses."""
        raise NotImplementedError

    def _end(self, child: asyncio.subprocess.Process) -> None:
        """Make the child end, with those that it started: it holds nothing that could be lost."""
        child.kill()

    async def _spawn_told(self, command: Sequence[str], settings: dict[str, Any], what: str) -> None:
        """Start a child that reads its settings as a JSON line, says `{"ready"…}` or `{"error": …}` in one, and ends
        with its input. `what` names it and its weights."""
        self._child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )  # of its own: Ctrl-C must not end it before what it is answering
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps(settings).encode() + b"\n")
        said = b""
        try:
            async with asyncio.timeout(PATIENCE):
                while line := await self._child.stdout.readline():
                    said = line
                    if line.startswith((b'{"ready"', b'{"error"')):
                        break
            body = json.loads(said) if said.startswith(b"{") else {}
        except (TimeoutError, ValueError):  # it says nothing, half a line, or no end of one
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self._child.kill()
            body = {}
        if "ready" not in body:
            raise ModelError(
                f"{what}: {body.get('error') or 'it ended without a message'}",
                "export it again; `gemma-ops doctor` shows the versions",
            )

    async def _watch(self) -> None:
        """Start the child again whenever it ends, later each time that it ends at once."""
        pause = 0.0
        while True:
            assert self._child
            began = time.monotonic()
            await self._child.wait()
            self._ready.clear()
            pause = min(max(1.0, 2 * pause), 30.0) if time.monotonic() - began < _SHORT else 0.0
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                await self._spawn()
                self._ready.set()
            except (ModelError, OSError):
                continue
