"""Batch jobs as the store knows them, so that a resumed run finds them again in whatever state they are.

    planned   reserved and written down under a mark of its own; whether it was created, the mark tells, by listing
    created   the service's name of the job is known
    done      every item was settled or released

A job is written down, with all its reservations, before anything is uploaded. Reservations of tier `batch` stay held
without a process, because a job needs none to run.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Self

from gemma_ops.gemini.cache import Asked, Store
from gemma_ops.runs.processes import Birth

ASKED = "asked"
"""State of a planned job whose create was sent and not answered."""
TWICE = "twice"
"""State of a created job whose create was sent more than once: the service may have made another."""
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS jobs (
  id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, model TEXT NOT NULL, mark TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'created', 'done')),
  name TEXT, upload TEXT, holder TEXT NOT NULL, planned_at REAL NOT NULL, told TEXT NOT NULL DEFAULT ''
)""",
    """
CREATE TABLE IF NOT EXISTS items (
  job INTEGER NOT NULL REFERENCES jobs, key TEXT NOT NULL, reservation INTEGER NOT NULL,
  use TEXT NOT NULL, privacy TEXT NOT NULL CHECK (privacy IN ('paid', 'any')), PRIMARY KEY (job, key)
)""",
)


@dataclass(frozen=True)
class BatchJob:
    """One job that is not done."""

    number: int
    model: str
    mark: str
    """Display name of the job and its file at the service."""
    name: str | None
    """Name of the job at the service; None when it is not known whether it was created."""
    planned_at: float
    """Time at which the job was planned, or its create last sent."""
    items: Mapping[str, tuple[int, Asked]]
    """Reservation and request of the unsettled items, by key."""
    told: str = ""
    """State of its creation: `ASKED`, `TWICE`, or nothing special."""

    def named(self, name: str, told: str) -> Self:
        """Return the job with the name that the service knows it by."""
        return replace(self, name=name, told=told)


class Jobs:
    """The jobs of one endpoint."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with store.ledger.connect() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)

    def under_way(self) -> set[str]:
        """Return keys of items that are not settled, in jobs that are not done."""
        with self.store.ledger.connect() as connection:
            rows = connection.execute(
                "SELECT i.key FROM items i JOIN jobs j ON j.id = i.job JOIN reservations r ON r.id = i.reservation "
                "WHERE j.state != 'done' AND j.endpoint = ? AND r.state = 'held'",
                (self.store.endpoint,),
            ).fetchall()
        return {key for (key,) in rows}

    def keeper(self, key: str) -> Birth | None:
        """Return who looks after the unfinished job that has this request; None when there is no such job."""
        with self.store.ledger.connect() as connection:
            numbers = [item.number for item in self.store.ledger.held(key) if item.tier == "batch"]
            for number in numbers:
                row = connection.execute(
                    "SELECT j.holder FROM items i JOIN jobs j ON j.id = i.job "
                    "WHERE i.key = ? AND i.reservation = ? AND j.state != 'done' AND j.endpoint = ?",
                    (key, number, self.store.endpoint),
                ).fetchone()
                if row:
                    return Birth.of_text(row[0])
        return None

    def plan(self, model: str, items: Mapping[str, tuple[int, Asked]]) -> BatchJob:
        """Write a job down, in the transaction that made its reservations."""
        mark, now = f"gemma-ops-{uuid.uuid4().hex}", time.time()
        with self.store.ledger.connect() as connection:
            number = connection.execute(
                "INSERT INTO jobs (endpoint, model, mark, holder, planned_at) VALUES (?, ?, ?, ?, ?)",
                (self.store.endpoint, model, mark, Birth.here().to_text(), now),
            ).lastrowid
            assert number is not None
            connection.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
                [(number, key, held, asked.use, asked.privacy) for key, (held, asked) in items.items()],
            )
        return BatchJob(number, model, mark, None, now, dict(items))

    def adopt(self, keys: AbstractSet[str]) -> list[BatchJob]:
        """Take over and return jobs with any of these keys that no other living process looks after."""
        mine = []
        with self.store.ledger.connect() as connection:
            rows = connection.execute(
                "SELECT id, model, mark, name, holder, planned_at, told FROM jobs "
                "WHERE endpoint = ? AND state != 'done' ORDER BY id",
                (self.store.endpoint,),
            ).fetchall()
            for number, model, mark, name, holder, planned_at, told in rows:
                items = self._items(number, model)
                if not keys & items.keys():
                    continue
                held_by = Birth.of_text(holder)
                if held_by != Birth.here() and held_by.state() == "alive":
                    continue
                connection.execute("UPDATE jobs SET holder = ? WHERE id = ?", (Birth.here().to_text(), number))
                mine.append(BatchJob(number, model, mark, name, planned_at, items, told))
        return mine

    def uploaded(self, job: BatchJob, file: str) -> None:
        """Record the name under which the items lie at the service."""
        with self.store.ledger.connect() as connection:
            connection.execute("UPDATE jobs SET upload = ? WHERE id = ?", (file, job.number))

    def uploads(self, job: BatchJob) -> list[str]:
        """Return the names of what was uploaded for the job, as far as they are known."""
        with self.store.ledger.connect() as connection:
            rows = connection.execute(
                "SELECT upload FROM jobs WHERE id = ? AND upload IS NOT NULL", (job.number,)
            ).fetchall()
        return [name for (name,) in rows]

    def asking(self, job: BatchJob, told: str) -> None:
        """Record that a create is about to be sent (`ASKED`), or that the last one made nothing."""
        with self.store.ledger.connect() as connection:
            connection.execute("UPDATE jobs SET planned_at = ?, told = ? WHERE id = ?", (time.time(), told, job.number))

    def created(self, job: BatchJob, name: str, told: str) -> None:
        """Record the name by which the service knows the job."""
        with self.store.ledger.connect() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'created', name = ?, told = ? WHERE id = ?", (name, told, job.number)
            )

    def count_twins(self, job: BatchJob, count: int) -> None:
        """Count what the service may bill for jobs that it made besides this one: the most it can be, whatever a cap
        says. Once."""
        ledger = self.store.ledger
        with ledger.connect() as connection:
            rows = connection.execute(
                "SELECT r.key, r.use, r.worst FROM items i JOIN reservations r ON r.id = i.reservation WHERE i.job = ?",
                (job.number,),
            ).fetchall()
            for key, use, worst in rows * count:
                held = ledger.reserve(key, model=job.model, use=use, tier="batch", worst=0)
                ledger.settle(held, worst, usage={"lost": "the service made the batch job twice"})
            connection.execute("UPDATE jobs SET told = '' WHERE id = ?", (job.number,))

    def done(self, job: BatchJob, told: str) -> None:
        """Record that nothing more will come of the job. `told`: how it ended."""
        with self.store.ledger.connect() as connection:
            connection.execute("UPDATE jobs SET state = 'done', told = ? WHERE id = ?", (told, job.number))

    def _items(self, number: int, model: str) -> dict[str, tuple[int, Asked]]:
        with self.store.ledger.connect() as connection:
            rows = connection.execute(
                "SELECT i.key, i.reservation, i.use, i.privacy FROM items i JOIN reservations r ON r.id = "
                "i.reservation WHERE i.job = ? AND r.state = 'held' ORDER BY i.reservation",
                (number,),
            ).fetchall()
        return {key: (held, Asked(key, model, use, privacy)) for key, held, use, privacy in rows}
