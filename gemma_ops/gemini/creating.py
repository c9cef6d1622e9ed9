"""Creation of a batch job exactly once, over a network that loses replies.

A create whose reply is lost may have made the job, and a create that the service still works on is in no list yet. So
an empty list proves nothing for a while: it is looked at again until the create is older than any that is still worked
on. If the job does not appear then, its reservations count in full and its requests are reserved anew.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from gemma_ops.errors import OpsError
from gemma_ops.gemini import request_wire, retry
from gemma_ops.gemini.client import Client
from gemma_ops.gemini.job_following import JobFollower
from gemma_ops.gemini.jobs import ASKED, TWICE, BatchJob, Jobs
from gemma_ops.gemini.request import Request

_LATEST, _LATEST_REHEARSED = 60.0, 0.2
"""Seconds that the service may work on a create beyond twice `timeout_seconds`."""
_LOOK, _LOOK_REHEARSED = 5.0, 0.05
"""Seconds between two looks at the list."""


class Unanswered(Exception):  # noqa: N818 - says what happened
    """The reply to a create was lost: there may be a job, and one may still appear."""


class Creator:
    """Makes jobs, and finds those that an earlier process may have made. `note(**fields)` hears of it."""

    def __init__(self, client: Client, jobs: Jobs, service: JobFollower, note: Callable[..., None]) -> None:
        self.client, self.jobs, self.service, self.note = client, jobs, service, note

    def create(self, job: BatchJob, requests: Mapping[str, Request]) -> BatchJob | None:
        """Upload the items and create the job. None when it is not known whether there is one: then it counts in full,
        or stays as it is for the next run when nobody waits any more."""
        lines = (json.dumps({"key": key, "request": request_wire.body(requests[key])}) for key in job.items)
        data = ("\n".join(lines) + "\n").encode()
        genai = self.client.genai
        try:
            file = self.service.attempt(
                lambda: genai.files.upload(
                    file=io.BytesIO(data), config={"display_name": job.mark, "mime_type": "application/jsonl"}
                ),
                job,
            )
        except OpsError as error:
            self._give_back(job, error.what)  # nothing was created
            raise

        self.jobs.uploaded(job, file.name or "")
        tries = 0

        def make() -> Any:
            nonlocal tries
            if tries and (found := self.listed(job)):
                return found[0]  # the try before this one did it, whatever it said
            tries += 1
            self.jobs.asking(job, ASKED)
            try:
                return genai.batches.create(model=job.model, src=file.name or "", config={"display_name": job.mark})
            except Exception as error:
                fault = retry.fault_of(error)
                if fault and fault.kind == "lost":
                    raise Unanswered(fault.reason) from error
                self.jobs.asking(job, "")
                raise

        # A refusal leaves the job planned: the next run looks into the list before it gives anything back.
        try:
            name = self.service.attempt(make, job).name
        except Unanswered:
            return self._awaited(job, time.time() + self._patience / 2, twice=tries > 1)
        return self._created(job, name, twice=tries > 1)

    def found(self, job: BatchJob) -> BatchJob | None:
        """Return the job as the service knows it, planned by a process that did not learn its name. None when there is
        none."""
        if job.told == ASKED:
            return self._awaited(job, min(job.planned_at, time.time()) + self._patience, twice=True)
        if not self.jobs.uploads(job):
            self._give_back(job, "never created")
            return None
        found = self.service.attempt(lambda: self.listed(job), job)
        if not found:
            self._give_back(job, "never created")
            self.service.tidy(job, self.jobs.uploads(job))
            return None
        return self._created(job, found[0].name, twice=True)

    def listed(self, job: BatchJob) -> list[Any]:
        """Return all jobs with this mark in the service's list."""
        return [found for found in self.client.genai.batches.list() if found.display_name == job.mark]

    def settle_twins(self, job: BatchJob) -> None:
        """Cancel, and count in full, further jobs that the service made after it reported a create as failed."""
        if job.told != TWICE:
            return
        others = [found for found in self.service.attempt(lambda: self.listed(job), job) if found.name != job.name]
        for other in others:
            try:
                self.client.genai.batches.cancel(name=other.name)
            except Exception as error:  # it has ended: too late to save anything
                if retry.fault_of(error) is None:
                    raise
            self.note(job=other.name, state="made twice", items=len(job.items))
        self.jobs.count_twins(job, len(others))

    @property
    def _patience(self) -> float:
        """Return the seconds after which the service no longer works on a create that shows no job."""
        latest = _LATEST_REHEARSED if self.client.rehearsal else _LATEST
        return 2 * (self.client.config.timeout_seconds + latest)

    def _awaited(self, job: BatchJob, until: float, *, twice: bool) -> BatchJob | None:
        """Return the job as soon as the list shows it. If it never does, it counts in full."""
        leaving = self.client.leaving
        while not leaving.is_set():
            found = self.service.attempt(lambda: self.listed(job), job)
            if found:
                return self._created(job, found[0].name, twice=twice or len(found) > 1)
            if time.time() >= until:
                self._lost(job)
                return None
            leaving.wait(_LOOK_REHEARSED if self.client.rehearsal else _LOOK)
        return None

    def _created(self, job: BatchJob, name: str, *, twice: bool) -> BatchJob:
        told = TWICE if twice else ""
        self.jobs.created(job, name, told)
        self.note(job=name, state="created", items=len(job.items))
        return job.named(name, told)

    def _lost(self, job: BatchJob) -> None:
        """Handle a job of which nobody knows whether it will appear; without its upload it can't do much."""
        ledger = self.jobs.store.ledger
        with ledger.connect():
            for reservation, _ in job.items.values():
                ledger.settle(reservation, None, usage={"lost": "no reply to the create of a batch job"})
            self.jobs.done(job, "lost")
        self.note(job=job.mark, state="lost", items=len(job.items))
        self.service.tidy(job, self.jobs.uploads(job))

    def _give_back(self, job: BatchJob, why: str) -> None:
        """Release the reservations of a job that does not exist, so that nothing of it can be billed."""
        ledger = self.jobs.store.ledger
        with ledger.connect():
            for reservation, _ in job.items.values():
                ledger.release(reservation, f"batch job {why}")
            self.jobs.done(job, why)
