"""Answers that were paid for, in the ledger's own file: "the answer is here" and "it is paid" are one transaction.

An answer goes by the digest of its request and by who answered: what an emulator said never stands in for Gemini. Only
whole outcomes are kept (stopped, cut at the limit, blocked); a failure is asked again. The prompt itself is not stored,
and a row of class local_only can't be here, because it can't have been sent.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.config import MachineConfig
from gemma_ops.errors import BoundaryError
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.models import is_expected
from gemma_ops.gemini.prices import NANO, nanodollars
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import rehearsal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  endpoint TEXT NOT NULL, key TEXT NOT NULL,
  model TEXT NOT NULL, use TEXT NOT NULL, privacy TEXT NOT NULL CHECK (privacy IN ('paid', 'any')), run TEXT NOT NULL,
  text TEXT NOT NULL, "end" TEXT NOT NULL CHECK ("end" IN ('stop', 'length', 'blocked')), reason TEXT NOT NULL,
  seconds REAL NOT NULL, first_seconds REAL, usage TEXT NOT NULL, cost INTEGER NOT NULL, tier TEXT NOT NULL,
  model_version TEXT NOT NULL, response_id TEXT NOT NULL, answered_at REAL NOT NULL,
  PRIMARY KEY (endpoint, key)
)
"""
_COLUMNS = (
    'text, "end", reason, seconds, first_seconds, usage, cost, tier, model_version, '
    "response_id"
)  # as `_answer` reads them


@dataclass(frozen=True)
class Asked:
    """What the store keeps of a request, without any of its words."""

    key: str
    model: str
    use: str
    privacy: str

    @classmethod
    def of(cls, request: Request) -> Asked:
        return cls(request.key(), request.model, request.use, request.privacy)


@dataclass(frozen=True)
class Served:
    """One reply with its bill, ready to be stored. `cost` in nanodollars; None when the service did not say its
    usage."""

    answer: Answer
    usage: Mapping[str, Any]
    cost: int | None


class Store:
    """The answers of one endpoint, in the file of a ledger."""

    def __init__(self, ledger: SpendingLedger, endpoint: str) -> None:
        self.ledger, self.endpoint = ledger, endpoint
        with ledger.connect() as connection:
            connection.execute(_SCHEMA)

    def find(self, key: str, *, since: float = 0.0) -> Answer | None:
        """Return the answer to this request, unless it arrived before `since`. Its cost and times are those of when it
        was asked.

        An answer of another model than the one that was asked is taken by the run that paid for it, and by no other.
        """
        with self.ledger.connect() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS}, model, run FROM answers WHERE endpoint = ? AND key = ? AND answered_at >= ?",  # noqa: S608
                (self.endpoint, key, since),
            ).fetchone()
        if row is None:
            return None
        *found, model, run = row
        answer = _answer(tuple(found))
        return answer if run == self.ledger.run or is_expected(model, answer.model) else None

    def on_its_way(self, key: str) -> bool:
        """True if a living process has this request on the wire. Batch jobs need no process and are looked up there."""
        held = self.ledger.held(key)
        return any(item.tier != "batch" and item.holder.state() == "alive" for item in held)

    def settle(self, reservation: int, asked: Asked, served: Served) -> Answer:
        """Pay for a reply and keep it, both or neither. A failure is paid for, but not kept, and so is what a server
        asked for its clients.

        A reply without usage counts in full, as the most it can have cost. Returns the answer with its dollars, and
        with U+FFFD for halves of characters, which neither this file nor any other can hold.
        """
        answer = replace(served.answer, text=_whole(served.answer.text), reason=_whole(served.answer.reason))
        served = replace(served, answer=answer)
        with self.ledger.connect() as connection:
            cost = self.ledger.settle(
                reservation,
                served.cost,
                usage=served.usage,
                model_version=answer.model,
                response_id=answer.response_id,
                connection=connection,
            )
            if answer.end != "error" and asked.use != "serve":
                self._keep(connection, asked, served, cost)
        return replace(answer, dollars=cost / NANO)

    def _keep(self, connection: sqlite3.Connection, asked: Asked, served: Served, cost: int) -> None:
        if asked.privacy not in ("paid", "any"):
            raise BoundaryError(f"request {asked.key} is of class {asked.privacy} and was answered", "this is a defect")
        answer = served.answer
        connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.endpoint, asked.key, asked.model, asked.use, asked.privacy, self.ledger.run, answer.text,
                answer.end, answer.reason, answer.seconds, answer.first_seconds, json.dumps(dict(served.usage)), cost,
                answer.tier, answer.model, answer.response_id, time.time(),
            ),
        )  # fmt: skip


def open_ledger(machine: MachineConfig, run: str) -> SpendingLedger:
    """Open the ledger of this machine configuration, with its caps."""
    caps = (machine.gemini.budget_usd, machine.gemini.project_budget_usd)
    run_cap, project_cap = (None if cap is None else nanodollars(cap) for cap in caps)
    return SpendingLedger(store_path(machine), run=run, run_cap=run_cap, project_cap=project_cap)


def store_path(machine: MachineConfig) -> Path:
    """Return the file of ledger and answers. A rehearsal keeps its own next to it: its dollars are none, and must fill
    no cap."""
    path = ledger_path(machine)
    return path.with_name(f"{path.stem}.rehearsal{path.suffix}") if rehearsal(machine.gemini) else path


def ledger_path(machine: MachineConfig) -> Path:
    """Return the file of what was really spent."""
    return Path(machine.ledger) if machine.ledger else Path(machine.runs) / "gemini.sqlite"


def _whole(text: str) -> str:
    """Return the text without lone surrogates; two that belong together become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _answer(row: tuple[Any, ...]) -> Answer:
    text, end, reason, seconds, first_seconds, usage, cost, tier, model, response_id = row
    counts = json.loads(usage)
    return Answer(
        text=text,
        end=end,
        prompt_tokens=counts.get("prompt", 0) + counts.get("tool", 0),
        new_tokens=counts.get("output", 0),
        seconds=seconds,
        reason=reason,
        first_seconds=first_seconds,
        thought_tokens=counts.get("thoughts", 0),
        cached_tokens=counts.get("cached", 0),
        dollars=cost / NANO,
        model=model,
        response_id=response_id,
        tier=tier,
    )
