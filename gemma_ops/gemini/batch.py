"""Requests as batch jobs of the Developer API: half the price, an answer within a day, and safe to kill in any state.

A job is reserved and written down first, then uploaded, created under a mark of its own (`creating`), and polled.
Whoever takes the run up again finds it by its name, or by its mark in the service's list, and goes on from there.
Results are merged by key; items that failed inside a job that succeeded are tried again. A job that failed, expired or
was cancelled is reported.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.errors import BudgetError, OpsError
from gemma_ops.gemini import prices, reply, request_wire
from gemma_ops.gemini.cache import Asked
from gemma_ops.gemini.client import Client, Sent, billed_answer
from gemma_ops.gemini.creating import Creator
from gemma_ops.gemini.job_following import ENDINGS, WITH_RESULTS, Gone, JobFollower
from gemma_ops.gemini.jobs import BatchJob, Jobs
from gemma_ops.gemini.request import Request

_MOST = 5_000
"""Most items in one job."""
_KEPT = 48 * 3600
"""Seconds for which the service keeps results."""
_ROUNDS = 3
"""Times that an item which fails inside a job is put into another."""
_UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
"""Exceptions that a malformed batch result raises when parsed, priced or stored."""


class BatchDoor:
    """Answers requests through jobs. `note(**fields)` hears how the jobs go."""

    def __init__(self, client: Client, note: Callable[..., None]) -> None:
        self.client, self.note = client, note
        self.store = client.store
        self.jobs = Jobs(client.store)
        self.service = JobFollower(client, note)
        self.creator = Creator(client, self.jobs, self.service, note)
        self._rounds: Counter[str] = Counter()

    def answer(self, numbered: Mapping[int, Request], on_answer: Callable[[int, Sent], None]) -> None:
        """Answer what can be answered by batch. With `batch: auto`, items that fail inside a job are left to the
        caller.

        Raises BudgetError when nothing more fits under the cap, ServiceError for a job that came to nothing; what
        arrived is kept either way. Returns early when nobody waits any more: the jobs go on, and are found again.
        """
        places = {request.key(): number for number, request in numbered.items()}

        def arrived(key: str, answer: Answer) -> None:
            tries = self._rounds[key]
            on_answer(places.pop(key), Sent(answer, tries, ["failed"] * max(tries - 1, 0)))

        while places and not self.client.leaving.is_set():
            for key in list(places):
                if found := self.store.find(key, since=self.client.since):
                    arrived(key, found)
            jobs = self.jobs.adopt(places.keys())
            open_keys = self.jobs.under_way()
            fresh = {key: numbered[number] for key, number in places.items() if key not in open_keys}
            given_up = [key for key in fresh if self._rounds[key] >= self._limit]
            if self.client.config.batch == "always":
                for key in given_up:
                    arrived(key, Answer("", "error", 0, 0, 0.0, reason=f"failed in {_ROUNDS} batch jobs", tier="batch"))
            elif given_up and len(given_up) == len(places):
                return  # the caller sends them one by one
            jobs += self._planned({key: request for key, request in fresh.items() if key not in given_up}, bool(jobs))
            if not jobs and places:
                self.service.pause()  # another process looks after them, or has them on the wire
            self._all(jobs, arrived)

    @property
    def _limit(self) -> int:
        """Return the rounds per item: with `never`, only jobs that are under way already are collected."""
        return {"always": _ROUNDS, "auto": 1, "never": 0}[self.client.config.batch]

    def _planned(self, fresh: dict[str, Request], more: bool) -> list[BatchJob]:
        """Return jobs for as many requests as the cap has room for; the rest waits until these are settled."""
        made: list[BatchJob] = []
        models = sorted({request.model for request in fresh.values()})
        for model in models:
            todo = [(key, request) for key, request in fresh.items() if request.model == model]
            for start in range(0, len(todo), _MOST):
                job, refused = self._plan(model, dict(todo[start : start + _MOST]))
                if job:
                    made.append(job)
                if refused:
                    if not made and not more:
                        raise self.client.stop(refused)
                    return self._created(made, fresh)
        return self._created(made, fresh)

    def _created(self, planned: Iterable[BatchJob], requests: Mapping[str, Request]) -> list[BatchJob]:
        """Return the jobs that the service is known to have."""
        made = []
        for job in planned:
            if known := self.creator.create(job, requests):
                made.append(known)
            else:
                self._rounds.update(job.items.keys())
        return made

    def _plan(self, model: str, items: dict[str, Request]) -> tuple[BatchJob | None, BudgetError | None]:
        """Reserve the cost and write the job down, both or neither. What another process has answered, asked or planned
        in the meantime is left out: looking and reserving are one, so two runs can't both pay."""
        now = datetime.now(UTC)
        worst = {
            key: prices.worst(
                model, prices.prompt_bound(request_wire.body(request)), request.max_output_tokens, tier="batch", at=now
            )
            for key, request in items.items()
        }
        reservations: dict[str, int] = {}
        refused = None
        with self.store.ledger.connect():
            planned = self.jobs.under_way()
            for key, request in items.items():
                if key in planned or self.store.on_its_way(key) or self.store.find(key, since=self.client.since):
                    continue
                try:
                    reservations[key] = self.store.ledger.reserve(
                        key, model=model, use=request.use, tier="batch", worst=worst[key]
                    )
                except BudgetError as error:
                    refused = error
                    break
            kept = {key: (number, Asked.of(items[key])) for key, number in reservations.items()}
            return (self.jobs.plan(model, kept) if kept else None), refused

    def _all(self, jobs: list[BatchJob], arrived: Callable[[str, Answer], None]) -> None:
        """Wait for every job and take its results in. The first that came to nothing is raised when all are in."""
        trouble: OpsError | None = None
        for job in jobs:
            try:
                for key, answer in self._collected(job):
                    arrived(key, answer)
            except OpsError as error:
                trouble = trouble or error
        if trouble:
            raise trouble

    def _collected(self, job: BatchJob) -> Iterator[tuple[str, Answer]]:
        """Yield the results of a job, each settled and kept before it is yielded. Nothing when nobody waits any
        more."""
        if job.name is None:
            known = self.creator.found(job)
            if known is None:
                return
            job = known
        try:
            found = self.service.ended(job)
            if found is None:
                return
            state = found.state.name
            results = self.service.results(job, found)
            self.creator.settle_twins(job)
        except Gone as error:
            given_up = time.time() - job.planned_at > _KEPT
            if given_up:
                with self.store.ledger.connect():
                    for reservation, _ in job.items.values():
                        self.store.ledger.settle(reservation, None, usage={"lost": "the batch job is gone"})
                    self.jobs.done(job, "gone")
            raise self.service.gone(job, str(error), given_up=given_up) from error
        now = datetime.now(UTC)
        for key, (reservation, _) in job.items.items():
            result = results.get(key)
            self._rounds[key] += 1
            if result is not None:
                yield key, self._settled(job, key, result, now)
            elif state == "JOB_STATE_CANCELLED":
                self.store.ledger.settle(reservation, None, usage={"lost": "the batch job was cancelled"})
            else:
                self.store.ledger.release(
                    reservation, f"no result in a batch job that {ENDINGS.get(state, 'succeeded')}"
                )
        self.jobs.done(job, state)
        self.note(job=job.name, state=state, items=len(job.items), answered=len(results))
        self.service.tidy(job, self.jobs.uploads(job))
        if state not in WITH_RESULTS:
            raise self.service.told(job, found, state)

    def _settled(self, job: BatchJob, key: str, response: dict[str, Any], now: datetime) -> Answer:
        """Settle and keep one result, and return its answer. One that can't be read counts in full and is an error; the
        others don't suffer."""
        reservation, asked = job.items[key]
        try:
            return self.store.settle(reservation, asked, self._billed(job, response, now))
        except _UNREADABLE as error:
            why = f"the result can't be read ({type(error).__name__}: {error})"[:200]
            cost = self.store.ledger.settle(reservation, None, usage={"lost": why})
            return Answer("", "error", 0, 0, 0.0, reason=why, dollars=cost / prices.NANO, tier="batch")

    def _billed(self, job: BatchJob, response: dict[str, Any], now: datetime) -> Any:
        """Return one result with its bill, at the higher price of the two days between which it was computed."""
        seconds = time.time() - job.planned_at
        moments = (datetime.fromtimestamp(job.planned_at, UTC), now)
        read = reply.read_reply(response)
        bills = [billed_answer(job.model, read, tier="batch", seconds=seconds, first=None, at=at) for at in moments]
        return max(bills, key=lambda found: (found.cost is None, found.cost or 0))
