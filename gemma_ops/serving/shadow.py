"""The shadow: the challenger is asked what the version that serves was asked, and both answers are kept.

Nobody waits for it: it is asked after the answer went out, and only where a slot of its own is free. The pairs hold
what people asked. They lie in a file that its owner alone can read, on this machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gemma_ops.config.serve import ChallengerConfig
from gemma_ops.errors import OpsError
from gemma_ops.serving.deployment import Deployment, Lease
from gemma_ops.serving.model import Said
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.wire.ask import Ask, RefusalError

PAIR_SCHEMA = "gemma-ops/pair@1"


class Shadow:
    """Copies requests to the challenger of a deployment, and keeps the pairs in a file."""

    def __init__(self, deployment: Deployment, path: Path) -> None:
        self._deployment, self.path = deployment, path
        self.counts = Counter({"copied": 0, "skipped": 0})
        """Number of requests that were `copied`, or `skipped` because the challenger had no slot free."""
        self._tasks: set[asyncio.Task[None]] = set()

    def copy(self, ask: Ask, said: Said, service: ModelService, seconds: float, failed: str) -> None:
        """Ask the challenger too, if it has time. `failed` says why the first didn't answer, empty where it did."""
        challenger = self._deployment.challenger
        if challenger is None or service is not self._deployment.current or ask.raw is not None:
            return
        if not (failed or said.end):
            return  # its client has gone
        slots = challenger.slots
        if slots.waiting or slots.running >= challenger.model.engine.slots or not challenger.model.engine.alive():
            self.counts["skipped"] += 1
            return
        self.counts["copied"] += 1
        first = _answer(service, said, seconds, failed)
        task = asyncio.create_task(self._ask(Lease(challenger), replace(ask, count=1, stream=False), first))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when no copy is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, lease: Lease, ask: Ask, first: dict[str, Any]) -> None:
        began, said, failed = time.monotonic(), Said(), ""
        try:
            said = await lease.service.reply(ask)
        except (RefusalError, OpsError) as error:
            failed = getattr(error, "code", "") or type(error).__name__
        finally:
            lease.end()
        second = _answer(lease.service, said, time.monotonic() - began, failed)
        asked = {
            "messages": _told_apart(ask), "tools": [dict(tool) for tool in ask.tools],
            "schema": ask.schema, "temperature": ask.temperature, "max_tokens": ask.max_tokens,
        }  # fmt: skip
        pair = {"schema": PAIR_SCHEMA, "at": round(time.time(), 3), "ask": asked, "first": first, "second": second}
        await asyncio.to_thread(append_private, self.path, json.dumps(pair, ensure_ascii=False))


def _told_apart(ask: Ask) -> Any:
    """Return what was asked, with the digest in place of each image or sound, so that a question is the same each
    time."""
    text = json.dumps([dict(message) for message in ask.messages])
    for mark, part in ask.shown.items():
        text = text.replace(mark, f"[{part['mime']} {hashlib.sha256(part['data'].encode()).hexdigest()}]")
    return json.loads(text)


def _answer(service: ModelService, said: Said, seconds: float, failed: str) -> dict[str, Any]:
    return {
        "version": service.facts.version, "format": service.facts.format, "text": said.text,
        "calls": [asdict(call) for call in said.calls], "end": said.end, "failed": failed, "seconds": round(seconds, 4),
        "tokens": said.tokens, "thought_tokens": said.thought_tokens,
    }  # fmt: skip


def pairs_file(name: str, settings: ChallengerConfig) -> Path:
    """Return the file in which a shadow of a model keeps its pairs."""
    return Path(settings.pairs).expanduser() / f"{name}.pairs.jsonl"


def append_private(path: Path, line: str) -> None:
    """Add a line to a file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        file.write(line + "\n")
