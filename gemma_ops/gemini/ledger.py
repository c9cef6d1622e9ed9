"""The ledger of what may be spent and what was: a hard cap that holds across threads, processes and kills.

Before a request leaves, the most it can cost is reserved; after the reply, the reservation is settled at what it did
cost. A cap is checked and the reservation written in one transaction, so two requests can't both take the last cents. A
process that dies between the two leaves its reservation behind, and that counts in full: nobody knows whether the
service billed it.

    held      on the wire, or left by a process that is gone (`lost`); counts its worst
    settled   answered; counts its cost
    released  refused by the service without a bill; counts nothing

The file is a store that answers share, so that "the answer is here" and "it is paid" are one transaction (`connect`).
Money is in integer nanodollars. The ledger's own rows hold digests of requests, never their texts.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import BudgetError
from gemma_ops.gemini.ledgerfile import explained_sqlite, open_file
from gemma_ops.gemini.prices import dollars
from gemma_ops.runs.processes import Birth


@dataclass(frozen=True)
class Spent:
    """Amounts in nanodollars."""

    settled: int
    reserved: int
    """Amount held by requests on the wire, by batch jobs, and by processes of other machines."""
    lost: int
    """Amount held by processes of this machine that are gone: it may or may not have been billed, so it counts."""
    requests: int
    """Number of settled reservations: requests that were answered, and tries that may or may not have been billed."""

    @property
    def total(self) -> int:
        return self.settled + self.reserved + self.lost


@dataclass(frozen=True)
class Reservation:
    """One request whose cost is held."""

    number: int
    run: str
    tier: str
    worst: int
    holder: Birth
    at: float


class SpendingLedger:
    """The ledger in one file, for one run. Share it between threads; each process opens its own."""

    def __init__(self, path: Path, *, run: str, run_cap: int | None, project_cap: int | None) -> None:
        """Open the ledger; caps are in nanodollars. Without `run_cap` nothing that costs money may be reserved; without
        `project_cap` only the run's cap counts. Raises MachineError where the file can't be such a store."""
        self.path, self.run, self.run_cap, self.project_cap = path, run, run_cap, project_cap
        self._lock = threading.RLock()
        self._depth = 0
        self._open()

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Open the store in a transaction that no other writer shares: all of the block happens, or none of it.

        Within it the ledger's own methods join the transaction. Raises BusyError when another process holds it for
        long.
        """
        with self._lock:
            if os.getpid() != self._me.pid:
                self._open()  # a connection must not be carried across a fork
            connection = self._connection
            if self._depth:
                yield connection
                return
            with explained_sqlite(self.path):
                connection.execute("BEGIN IMMEDIATE")
                self._depth = 1
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                finally:
                    self._depth = 0

    def reserve(self, key: str, *, model: str, use: str, tier: str, worst: int, at: float | None = None) -> int:
        """Hold the most this request can cost, and return the reservation's number.

        Raises BudgetError, leaving everything as it was, if what is spent and held would pass a cap with it.
        """
        with self.connect() as connection:
            if worst:
                self._check(connection, model, worst)
            cursor = connection.execute(
                "INSERT INTO reservations (key, run, use, model, tier, worst, holder, reserved_at) VALUES (?, ?, ?, ?, "
                "?, ?, ?, ?)",
                (key, self.run, use, model, tier, worst, self._me.to_text(), time.time() if at is None else at),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def settle(
        self, number: int, cost: int | None, *, usage: Mapping[str, Any] | None = None, model_version: str = "",
        response_id: str = "", connection: sqlite3.Connection | None = None,
    ) -> int:  # fmt: skip
        """Write down what a held request did cost, by whichever process learns it, and return that.

        None means the service billed it and did not say how much: its worst counts. More than was reserved should not
        happen, because `worst` is an upper bound; if it does, it is recorded and counted, and the caps go by it.
        """
        with self._joined(connection) as store:
            cost = self._held(store, number) if cost is None else cost
            self._close(
                store, number, "settled", cost=cost, usage=None if usage is None else json.dumps(dict(usage)),
                model_version=model_version, response_id=response_id,
            )  # fmt: skip
            return cost

    def release(self, number: int, why: str, *, connection: sqlite3.Connection | None = None) -> None:
        """Release what was held for a request that the service refused without billing it."""
        with self._joined(connection) as store:
            self._close(store, number, "released", why=why)

    def spent(self, *, project: bool = False) -> Spent:
        """Return what this run spent and holds; with `project`, every run of this ledger."""
        run = None if project else self.run
        with self.connect() as connection:
            settled, requests = connection.execute(
                "SELECT COALESCE(SUM(amount), 0), COUNT(*) FROM reservations WHERE state = 'settled' AND run = "
                "COALESCE(?, run)",
                (run,),
            ).fetchone()
            held = connection.execute(
                "SELECT tier, holder, SUM(amount) FROM reservations WHERE state = 'held' AND run = COALESCE(?, run) "
                "GROUP BY tier, holder",
                (run,),
            ).fetchall()
        lost = sum(amount for tier, holder, amount in held if is_lost(tier, holder))
        return Spent(settled, sum(amount for *_, amount in held) - lost, lost, requests)

    def held(self, key: str) -> list[Reservation]:
        """Return what any run holds for this request, oldest first."""
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT id, run, tier, worst, holder, reserved_at FROM reservations WHERE key = ? AND state = 'held' "
                "ORDER BY id",
                (key,),
            ).fetchall()
        return [
            Reservation(number, run, tier, worst, Birth.of_text(holder), at)
            for number, run, tier, worst, holder, at in rows
        ]

    def left(self) -> int:
        """Return the nanodollars that may still be reserved; nothing without a cap of the run."""
        with self.connect() as connection:
            free = [cap - used for _, cap, used in self._caps(connection) if cap is not None]
        return 0 if self.run_cap is None else max(min(free), 0)

    def may_fit(self, worst: int) -> bool:
        """True if a request that a cap refused would fit if everything that living processes have on the wire cost
        nothing, so that waiting may help. Only requests of this run make room under the run's cap.
        """
        if self.run_cap is None:
            return worst == 0
        with self.connect() as connection:
            held = connection.execute(
                "SELECT run, holder, SUM(amount) FROM reservations WHERE state = 'held' AND tier != 'batch' GROUP BY "
                "run, holder"
            ).fetchall()
            caps = self._caps(connection)
        alive = [(run, amount) for run, holder, amount in held if Birth.of_text(holder).state() == "alive"]
        of_all = sum(amount for _, amount in alive)
        of_run = sum(amount for run, amount in alive if run == self.run)
        freed = {"run": of_run, "project": of_all}
        return all(cap is None or used - freed[name] + worst <= cap for name, cap, used in caps)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _open(self) -> None:
        self._me = Birth.here()
        self._connection = open_file(self.path)
        self._depth = 0

    def _caps(self, connection: sqlite3.Connection) -> list[tuple[str, int | None, int]]:
        """Return name, cap and what is committed under it."""
        of_run = connection.execute("SELECT amount FROM committed WHERE run = ?", (self.run,)).fetchone()
        of_all = connection.execute("SELECT COALESCE(SUM(amount), 0) FROM committed").fetchone()
        return [("run", self.run_cap, of_run[0] if of_run else 0), ("project", self.project_cap, of_all[0])]

    def _check(self, connection: sqlite3.Connection, model: str, worst: int) -> None:
        if self.run_cap is None:
            raise BudgetError(
                f"a request to {model} costs money, up to {dollars(worst)}, and this run has no budget",
                "set machine.gemini.budget_usd to the most this run may spend",
            )
        for name, cap, used in self._caps(connection):
            if cap is not None and used + worst > cap:
                key = "budget_usd" if name == "run" else "project_budget_usd"
                raise BudgetError(
                    f"the next request to {model} could cost {dollars(worst)}, and of the {name}'s {dollars(cap)} only "
                    f"{dollars(max(cap - used, 0))} are free; nothing more was sent",
                    f"raise machine.gemini.{key}: answers that were paid for are kept; `gemma-ops cost` shows what was "
                    f"spent on what",
                )

    @contextmanager
    def _joined(self, connection: sqlite3.Connection | None) -> Iterator[sqlite3.Connection]:
        if connection is not None:
            yield connection
            return
        with self.connect() as own:
            yield own

    def _held(self, connection: sqlite3.Connection, number: int) -> int:
        row = connection.execute("SELECT worst FROM reservations WHERE id = ? AND state = 'held'", (number,)).fetchone()
        if row is None:
            raise ValueError(f"reservation {number} is not held")
        return int(row[0])

    def _close(self, connection: sqlite3.Connection, number: int, state: str, **fields: Any) -> None:
        self._held(connection, number)
        names = ", ".join(f"{name} = ?" for name in ("state", "closed_at", *fields))
        connection.execute(
            f"UPDATE reservations SET {names} WHERE id = ?",  # noqa: S608
            (state, time.time(), *fields.values(), number),
        )


def is_lost(tier: str, holder: str) -> bool:
    """True if nobody will settle a held reservation because its process is gone. A batch job needs no process to go
    on."""
    return tier != "batch" and Birth.of_text(holder).state() == "gone"
