"""The door to Gemini: what a run holds. It checks, looks into the store, and has a courier send the rest.

Everything about a call of `ask` is decided before anything of it is sent: the boundary for all requests, then what is
in the store already, then which way each of the rest goes. The courier is a process of its own (see `courier`), started
with the first request that has to be sent.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Self

from gemma_ops.answer import Answer
from gemma_ops.config import GeminiConfig, MachineConfig
from gemma_ops.errors import BudgetError, ConfigError
from gemma_ops.gemini import boundary, notice, request_wire
from gemma_ops.gemini.cache import Store, open_ledger
from gemma_ops.gemini.jobs import Jobs
from gemma_ops.gemini.models import is_expected, model_facts, routed_to, stale
from gemma_ops.gemini.pipe import Pipe
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import check_credentials, check_offline, endpoint
from gemma_ops.runs import journal

MANY = 200
"""Requests from which `batch: auto` takes the batch API: half the price, an answer within a day."""

OnAnswer = Callable[[int, Answer], None]


def open_door(machine: MachineConfig, *, run: str) -> Gemini:
    """Open the door for one run. Raises ConfigError without a key, BoundaryError when offline, without accepted terms,
    or where the region does not allow it. Nothing is sent and no process is started.
    """
    config = machine.gemini
    check_door(config)
    if config.enterprise and config.batch == "always":
        raise ConfigError(
            "batches go through the Developer API, and machine.gemini.enterprise is set",
            "set machine.gemini.batch=auto, or machine.gemini.enterprise=false",
        )
    return Gemini(machine, run=run)


def check_door(config: GeminiConfig) -> None:
    """Raise what keeps this door shut whatever is asked: offline, no key, the region, terms that nobody accepted."""
    check_offline(config)
    check_credentials(config)
    boundary.check_region(config)
    notice.check_accepted(config)


class Gemini:
    """Gemini as a run asks it. One call of `ask` at a time; a second thread waits."""

    def __init__(self, machine: MachineConfig, *, run: str) -> None:
        self.machine, self.config = machine, machine.gemini
        self._ledger = open_ledger(machine, run)
        self._store = Store(self._ledger, endpoint(self.config))
        self._jobs = Jobs(self._store)
        self._since = 0.0 if self.config.cache else time.time()
        self._pipe: Pipe | None = None
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._journal = contextvars.copy_context()  # so that what a thread asks still lands in the step's log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, requests: Sequence[Request], *, on_answer: OnAnswer | None = None) -> list[Answer]:
        """Answer all requests, in order; equal ones are asked once. `on_answer` hears of each by its index as it comes.

        A failure of one request is an answer that ended in `error`. Raises BoundaryError, ConfigError or DataError
        before anything is sent; BudgetError or ServiceError when nothing more can be sent: what arrived by then is in
        the store.
        """
        with self._lock:
            self._check(requests)
            places: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                places.setdefault(request.key(), []).append(index)
            answers: dict[int, Answer] = {}

            def arrived(key: str, answer: Answer) -> None:
                for index in places[key]:
                    answers[index] = answer
                    if on_answer:
                        on_answer(index, answer)

            left: dict[str, Request] = {}
            for key, at in places.items():
                found = self._store.find(key, since=self._since)
                if found:
                    arrived(key, found)
                else:
                    left[key] = requests[at[0]]
            kept = len(answers)
            tally: Counter[str] = Counter()
            try:
                if left:
                    self._send(left, arrived, tally)
            finally:
                self._record(requests, answers, kept, tally)
            return [answers[index] for index in range(len(requests))]

    def close(self) -> None:
        """Let the courier go. It finishes what is on the wire, if anything, by itself."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._ledger.close()

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request_wire.check_request(request)
        self._journal.run(boundary.check_boundary, requests, self.config)
        costly = [request.model for request in requests if model_facts(request.model).paid_tier]
        self._journal.run(self._tell, sorted(set(costly)))
        if costly and self.config.budget_usd is None:
            raise BudgetError(
                f"{len(costly)} requests to {costly[0]} cost money, and this run has no budget; nothing was sent",
                "set machine.gemini.budget_usd to the most that this run may spend",
            )

    def _tell(self, models: Sequence[str]) -> None:
        """Report, once a model, what a person should know before money is spent: facts that are old, a model that is
        retired."""
        today = datetime.now(UTC).date()
        for model in (model for model in models if model not in self._told):
            self._told.add(model)
            if days := stale(model, today):
                journal.record(message=f"prices and limits of {model} were looked up {days} days ago: check them, and "
                               "override them with machine.gemini.models")  # fmt: skip
            if other := routed_to(model, today):
                journal.record(
                    message=f"{model} is retired: {other} answers for it, at its own price, and can't decide a gate"
                )

    def _send(self, left: dict[str, Request], arrived: Callable[[str, Answer], None], tally: Counter[str]) -> None:
        """Send the requests that are not in the store. Raises the first refusal when everything else has come in."""
        check_credentials(self.config)
        if self._pipe is not None and self._pipe.ended:
            self._pipe.close()
            self._pipe = None
        if self._pipe is None:
            self._pipe = Pipe(self.machine, self._ledger, since=self._since)
        batched = self._batched(left)
        refusal: Exception | None = None
        for message in self._pipe.ask(left, batched):
            if message.note:
                self._journal.run(journal.record, event="gemini.batch", **message.note)
            elif message.error:
                refusal = refusal or message.error
            elif message.answer:
                tally.update(message.faults)
                arrived(message.key, message.answer)
        if refusal:
            raise refusal

    def _batched(self, left: dict[str, Request]) -> set[str]:
        """Return the keys that go by batch: those in a job that is under way already, and those that the settings
        say."""
        under_way = self._jobs.under_way() & left.keys()
        rest = {key: request for key, request in left.items() if key not in under_way}
        if self.config.batch == "never" or self.config.enterprise:
            return under_way
        if self.config.batch == "auto":
            paid = self.config.tier == "paid"  # the batch API has no free tier
            rest = {key: request for key, request in rest.items() if paid and _can_wait(request)}
            if len(rest) < MANY:
                return under_way
        return under_way | rest.keys()

    def _record(self, asked: Sequence[Request], answers: Mapping[int, Answer], kept: int, tally: Counter[str]) -> None:
        """Write the journal's lines: how everything ended, what was sent again and why, what this run has spent, and
        which other models answered than those that were asked."""
        spent = self._ledger.spent()
        ends = Counter(answer.end for answer in answers.values())
        others = Counter(
            f"{asked[index].model}: {answer.model} answered"
            for index, answer in answers.items()
            if not is_expected(asked[index].model, answer.model)
        )
        for words, count in others.items():
            self._journal.run(
                journal.record, event="gemini.model", message=f"{words} {count:,} of {len(answers):,} requests; it "
                                                              f"can't decide a gate"
            )  # fmt: skip
        self._journal.run(
            journal.record, event="gemini", answers=len(answers), from_store=kept, ends=dict(ends), faults=dict(tally),
            settled_dollars=spent.settled / 1e9, lost_dollars=spent.lost / 1e9,
        )  # fmt: skip


def _can_wait(request: Request) -> bool:
    return not request.stream and "batch" in model_facts(request.model).tiers
