"""Batches: jobs of many requests at half the price, inline or from a file, with the states a real one goes through.

A job is pending when it is created and moves one state per poll: running, then succeeded. `polls` keeps it running
for longer, `seconds` until that much time has passed, `hold` until it is released. Its items are answered when it
succeeds, each under its own key.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.emulator.emulated_files import Files, files_page, stamp
from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.wire.gemini_wire import Refusal

_INLINE = 20 * 1024 * 1024
"""Largest inline job in bytes."""
_KIND = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_PENDING, _RUNNING, _SUCCEEDED = "BATCH_STATE_PENDING", "BATCH_STATE_RUNNING", "BATCH_STATE_SUCCEEDED"
_OPEN = frozenset({_PENDING, _RUNNING})

Item = dict[str, Any]
"""Item of a batch: {"key": …, "request": …, "metadata": …}"""
Answered = dict[str, Any]
"""Result of an item: {"response": …} or {"error": …}; empty for a result that is missing."""


@dataclass
class Pace:
    """The pace of batch jobs. May be changed while they run."""

    polls: int = 1
    """Polls that still find the job running."""
    seconds: float = 0.0
    """Shortest time from creation to the end."""
    hold: bool = False
    """Whether all jobs stand still."""


@dataclass
class EmulatedJob:
    """One batch."""

    name: str
    model: str
    about: dict[str, Any]
    items: list[Item]
    inline: bool
    fate: str
    """Fault of jobs that was ordered for it, or empty."""
    created: float
    state: str = _PENDING
    polls: int = 0
    late: bool = False
    output: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    busy: threading.Lock = field(default_factory=threading.Lock)


class EmulatedBatches:
    """All batch jobs. `answer(model, item)` answers one item."""

    def __init__(
        self, files: Files, new_id: Callable[[], str], answer: Callable[[str, Item], Answered], pace: Pace
    ) -> None:
        self._files = files
        self._new_id = new_id
        self._answer = answer
        self._pace = pace
        self._jobs: dict[str, EmulatedJob] = {}

    def create(self, call: EmulatedCall, model: str, fate: str) -> Reaction:
        batch = call.body.get("batch") or {}
        source = batch.get("inputConfig") or {}
        if source.get("fileName"):
            items = _lines(self._files.read(str(source["fileName"])))
        elif (source.get("requests") or {}).get("requests"):
            if len(call.raw) > _INLINE:
                raise Refusal(400, f"Request payload size exceeds the limit: {_INLINE} bytes.")
            items = [dict(item) for item in source["requests"]["requests"]]
        else:
            raise Refusal(400, "* BatchGenerateContentRequest.batch.input_config: a source is required")
        now = time.time()
        job = EmulatedJob(f"batches/{self._new_id()}", model, {}, items, "fileName" not in source, fate, now)
        job.about = {"@type": _KIND, "model": f"models/{model}", "displayName": batch.get("displayName") or job.name}
        job.about |= {"createTime": stamp(now), "updateTime": stamp(now), "name": job.name}
        if not job.inline:
            job.about["inputConfig"] = {"fileName": source["fileName"]}
        self._jobs[job.name] = job
        return Reaction(200, self._shown(job))

    def get(self, call: EmulatedCall) -> Reaction:
        job = self._find(call)
        with job.busy:  # a second poll waits while the first one answers the items
            self._move(job)
            return Reaction(200, self._shown(job))

    def list(self, call: EmulatedCall) -> Reaction:
        found = [self._shown(job) for job in reversed(list(self._jobs.values()))]
        return Reaction(200, files_page(call, "operations", found, 50))

    def cancel(self, call: EmulatedCall) -> Reaction:
        job = self._find(call)
        with job.busy:
            if job.state not in _OPEN:
                raise Refusal(400, f"Batch {job.name} has ended and can't be cancelled.")
            self._end(job, "BATCH_STATE_CANCELLED")
        return Reaction(200, {})

    def delete(self, call: EmulatedCall) -> Reaction:
        self._jobs.pop(self._find(call).name, None)
        return Reaction(200, {})

    def _find(self, call: EmulatedCall) -> EmulatedJob:
        job = self._jobs.get(f"batches/{call.name}")
        if job is None:
            raise Refusal(404, f"Requested entity was not found: batches/{call.name}.")
        return job

    def _move(self, job: EmulatedJob) -> None:
        """Move a job one step on, if it is time."""
        job.late = False
        if job.state not in _OPEN or self._pace.hold:
            return
        job.polls += 1
        if job.polls <= self._pace.polls or time.time() < job.created + self._pace.seconds:
            job.state = _RUNNING
        elif job.fate in ("batch_failed", "batch_expired"):
            self._end(job, "BATCH_STATE_" + job.fate.removeprefix("batch_").upper())
        else:
            job.output = self._run(job)
            job.late = job.fate == "output_late"
            self._end(job, _SUCCEEDED)

    def _end(self, job: EmulatedJob, state: str) -> None:
        job.state = state
        job.about |= {"endTime": stamp(time.time()), "updateTime": stamp(time.time())}

    def _run(self, job: EmulatedJob) -> dict[str, Any]:
        """Answer all items and put the results where the job's kind has them."""
        results = [(item, self._answer(job.model, item)) for item in job.items]
        good = sum(1 for _, result in results if "response" in result)
        job.counts = {"successfulRequestCount": good, "failedRequestCount": len(results) - good}
        if job.inline:
            shown = [
                result | ({"metadata": item["metadata"]} if "metadata" in item else {})
                for item, result in results
                if result
            ]
            return {"inlinedResponses": {"inlinedResponses": shown}}
        # Real results do not come in the order of the requests.
        lines = [
            json.dumps({"key": item.get("key")} | result, ensure_ascii=False)
            for item, result in reversed(results)
            if result
        ]
        return {"responsesFile": self._files.write(("\n".join(lines) + "\n").encode(), "application/json")}

    def _shown(self, job: EmulatedJob) -> dict[str, Any]:
        """Return the job as an operation."""
        stats = {"requestCount": len(job.items)} | (job.counts or {"pendingRequestCount": len(job.items)})
        about = job.about | {
            "state": job.state,
            "batchStats": {name: str(count) for name, count in stats.items() if count},
        }
        shown: dict[str, Any] = {"name": job.name, "metadata": about}
        if job.state in _OPEN:
            return shown
        shown["done"] = True
        if job.state == _SUCCEEDED and not job.late:
            shown["response"] = {"@type": _KIND + "Output", **(job.output or {})}
            about["output"] = job.output
        elif job.state != _SUCCEEDED:
            code, why = {
                "FAILED": (13, "The batch failed."),
                "EXPIRED": (4, "The batch expired."),
                "CANCELLED": (1, "The batch was cancelled."),
            }[job.state.rsplit("_", 1)[-1]]
            shown["error"] = {"code": code, "message": why}
        return shown


def _lines(data: bytes) -> list[Item]:
    """Return the items of an uploaded file: one JSON object per line with `key` and `request`."""
    items = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError:
            raise Refusal(400, f"The input file has no JSON at line {number}.") from None
        if not isinstance(item, dict) or not isinstance(item.get("request"), dict):
            raise Refusal(400, f"The input file has no request at line {number}.")
        items.append(item)
    if not items:
        raise Refusal(400, "The input file holds no requests.")
    return items
