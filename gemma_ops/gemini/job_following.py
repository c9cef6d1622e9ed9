"""A batch job at the service: polled until it ends, its results read, its upload deleted. Calls are tried again as any
request is, and what the service says of a job that came to nothing is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from gemma_ops.errors import ServiceError
from gemma_ops.gemini import retry
from gemma_ops.gemini.client import Client
from gemma_ops.gemini.jobs import BatchJob

Result = TypeVar("Result")
ENDINGS = {"JOB_STATE_FAILED": "failed", "JOB_STATE_EXPIRED": "expired", "JOB_STATE_CANCELLED": "was cancelled"}
"""States in which a job came to nothing."""
WITH_RESULTS = {"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"}
_POLL, _POLL_REHEARSED = 30.0, 0.05
"""Seconds between two looks at a job."""
_LATE = 20
"""Times that a job which has succeeded and shows no results yet is looked at."""


class Gone(Exception):  # noqa: N818 - says what happened
    """The service does not know the job, or its results, for this key."""


class JobFollower:
    """Follower of jobs at the service. `note(**fields)` hears how they go."""

    def __init__(self, client: Client, note: Callable[..., None]) -> None:
        self.client, self.note = client, note

    def ended(self, job: BatchJob) -> Any:
        """Return the job when it has ended and shows its results; None when nobody waits any more."""
        late, before = 0, ""
        while not self.client.leaving.is_set():
            found = self.attempt(lambda: self.client.genai.batches.get(name=job.name or ""), job)
            state = found.state.name if found.state else ""
            if state != before:
                self.note(job=job.name, state=state, items=len(job.items))
                before = state
            if state in ENDINGS:
                return found
            if state in WITH_RESULTS:
                if found.dest and found.dest.file_name:
                    return found
                late += 1
                if late > _LATE:
                    fix = "run the same command again later: the job is found again"
                    raise ServiceError(f"batch job {job.name} has succeeded and shows no results", fix)
            self.pause()
        return None

    def results(self, job: BatchJob, found: Any) -> dict[str, dict[str, Any]]:
        """Return responses by key. A line that is no JSON, or holds an error, is no response."""
        if not (found.dest and found.dest.file_name):
            return {}
        data = self.attempt(lambda: self.client.genai.files.download(file=found.dest.file_name), job)
        results = {}
        for line in data.split(b"\n"):
            try:
                body = json.loads(line)
            except ValueError:
                continue
            if not isinstance(body, dict) or not isinstance(body.get("response"), dict):
                continue
            if isinstance(body.get("key"), str) and body["key"] in job.items:
                results[body["key"]] = body["response"]
        return results

    def attempt(self, call: Callable[[], Result], job: BatchJob) -> Result:
        """Call the service, with retries; raises ServiceError or ConfigError when it won't answer."""
        config = self.client.config
        for attempt in range(1, config.attempts + 1):
            try:
                return call()
            except Exception as error:
                fault = retry.fault_of(error)
                if fault is None:
                    raise
                if fault.missing and job.name:
                    raise Gone(fault.reason) from error
                if fault.stop:
                    raise fault.stop from error
                if fault.kind == "refused" or attempt == config.attempts or self.client.leaving.is_set():
                    fix = "run the same command again: the job is found again and nothing is paid twice"
                    where = job.name or job.mark
                    raise ServiceError(f"batch job {where}: {fault.reason}", fix) from error
                self.client.leaving.wait(retry.backoff(attempt, fault.wait, rehearsal=self.client.rehearsal))
        raise AssertionError("unreachable")

    def tidy(self, job: BatchJob, uploads: list[str]) -> None:
        """Delete the upload: its results are here, and prompts need not lie there for two days more."""
        for file in uploads:
            try:
                self.client.genai.files.delete(name=file)
            except Exception as error:
                if retry.fault_of(error) is None:
                    raise
                self.note(job=job.name, left_behind=file, why=str(error)[:200])

    def told(self, job: BatchJob, found: Any, state: str) -> ServiceError:
        """Return the error for a job that came to nothing."""
        said = f": {found.error.message}" if found.error and found.error.message else ""
        counted = "; it counts in full, because what of it was billed is not known" if "CANCELLED" in state else ""
        return ServiceError(
            f"batch job {job.name} {ENDINGS[state]}{said}{counted}",
            "run the same command again for a new job, or with --set machine.gemini.batch=never to send one by one",
        )

    def gone(self, job: BatchJob, why: str, *, given_up: bool) -> ServiceError:
        """Return the error for a job that no longer exists, or not for this key."""
        if given_up:
            what = "and results are kept for two days only; all of it counts in full"
            return ServiceError(
                f"batch job {job.name} is gone, {what}: {why}", "run the same command again for a new job"
            )
        return ServiceError(
            f"batch job {job.name}, which this ledger has paid for, is not there for this key: {why}",
            "use the key of the project that made it; two days after it was made, it is abandoned and a new one "
            "is made",
        )

    def pause(self) -> None:
        """Wait until the next look, or until nobody waits any more."""
        self.client.leaving.wait(_POLL_REHEARSED if self.client.rehearsal else _POLL)
