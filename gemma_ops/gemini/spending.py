"""Spending by run, use, model and tier, added up from the ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemma_ops.gemini.ledger import is_lost
from gemma_ops.gemini.ledgerfile import check_whole_file, explained_sqlite
from gemma_ops.gemini.prices import NANO
from gemma_ops.gemini.usage import Usage


@dataclass
class SpendingLine:
    """Everything one run asked of one model, for one use on one tier. Money in nanodollars."""

    run: str
    use: str
    model: str
    tier: str
    requests: int = 0
    """Number of requests that were answered and settled."""
    refused: int = 0
    """Number of requests that the service turned away without a bill."""
    waiting: int = 0
    """Number of requests that are held: on the wire, in a batch job, or lost."""
    without_usage: int = 0
    """Number of settled requests whose reply named no usage; the most they can have cost counts."""
    unanswered: int = 0
    """Number of tries that broke off or timed out, and may have been billed; the most they can have cost counts as
    settled."""
    prompt: int = 0
    cached: int = 0
    output: int = 0
    thoughts: int = 0
    tool: int = 0
    settled: int = 0
    reserved: int = 0
    lost: int = 0

    @property
    def total(self) -> int:
        return self.settled + self.reserved + self.lost

    def add(self, other: SpendingLine) -> None:
        for field in fields(self)[4:]:
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Spending:
    """The sums of one ledger."""

    path: Path
    found: tuple[SpendingLine, ...]
    since: float | None
    until: float | None
    """Times of the first and the last reservation, in seconds since 1970."""

    @property
    def sum(self) -> SpendingLine:
        whole = SpendingLine("", "", "", "")
        for line in self.found:
            whole.add(line)
        return whole

    def to_json(self) -> dict[str, Any]:
        return {
            "ledger": str(self.path),
            "since": _moment(self.since),
            "until": _moment(self.until),
            "lines": [_json(line) for line in self.found],
            "total": {key: value for key, value in _json(self.sum).items() if value != ""},
        }

    def lines(self) -> list[str]:
        """Return the table as plain text."""
        if not self.found:
            return [f"nothing was spent: {self.path} holds no request"]
        head = ["run", "use", "model", "tier", "requests", "input", "cached", "output", "thoughts", "dollars"]
        whole = self.sum
        held = bool(whole.reserved or whole.lost)
        head += ["reserved", "lost"] if held else []
        rows = [_cells(line, held) for line in self.found]
        rows.append(["total", "", "", "", *_cells(whole, held)[4:]])
        text = [f"{self.path}, {_day(self.since)} to {_day(self.until)}", "", *_aligned([head, *rows], left=4), ""]
        if whole.lost:
            text.append(
                "lost: held by processes that were killed. It is not known whether it was billed, so it counts in full."
            )
        if whole.without_usage:
            text.append(f"{whole.without_usage:,} replies named no usage; the most they can have cost counts.")
        if whole.unanswered:
            text.append(
                f"{whole.unanswered:,} tries broke off or timed out. It is not known whether they were billed, so the "
                "most they can have cost counts."
            )
        if whole.refused:
            text.append(f"{whole.refused:,} requests were turned away by the service without a bill.")
        return text


def spending(path: Path, *, run: str | None = None) -> Spending:
    """Add up a ledger, of all runs or of one, without writing to it. A file that is not there holds nothing.

    Raises MachineError for a file that is no ledger.
    """
    if not path.exists():
        return Spending(path, (), None, None)
    check_whole_file(path)
    lines: dict[tuple[str, str, str, str], SpendingLine] = {}
    with explained_sqlite(path):
        # Not read-only: a reader of a WAL file may have to recover what a killed writer left.
        connection = sqlite3.connect(path, timeout=60)
        try:
            rows = connection.execute(
                "SELECT run, use, model, tier, state, amount, usage, holder, reserved_at FROM reservations "
                "WHERE run = COALESCE(?, run) ORDER BY id",
                (run,),
            ).fetchall()
        finally:
            connection.close()
    gone: dict[tuple[str, str], bool] = {}
    for *place, state, amount, usage, holder, _ in rows:
        line = lines.setdefault((place[0], place[1], place[2], place[3]), SpendingLine(*place))
        if state == "settled":
            _settled(line, amount, usage)
        elif state == "released":
            line.refused += 1
        else:
            key = (line.tier, holder)
            lost = gone[key] if key in gone else gone.setdefault(key, is_lost(*key))
            line.waiting += 1
            line.lost += amount if lost else 0
            line.reserved += 0 if lost else amount
    moments = [row[-1] for row in rows]
    return Spending(path, tuple(lines.values()), min(moments, default=None), max(moments, default=None))


def _settled(line: SpendingLine, amount: int, usage: str | None) -> None:
    line.settled += amount
    counts = json.loads(usage) if usage else {}
    if "lost" in counts:
        line.unanswered += 1
        return
    line.requests += 1
    line.without_usage += not counts or "missing" in counts
    for field in fields(Usage):
        setattr(line, field.name, getattr(line, field.name) + int(counts.get(field.name, 0)))


def _cells(line: SpendingLine, held: bool) -> list[str]:
    counts = [line.requests, line.prompt + line.tool, line.cached, line.output, line.thoughts]
    money = [line.settled, line.reserved, line.lost] if held else [line.settled]
    shown = [f"{count:,}" for count in counts] + [f"{amount / NANO:,.4f}" for amount in money]
    return [line.run, line.use, line.model, line.tier, *shown]


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return columns two spaces apart: the first `left` flush left, the others flush right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _json(line: SpendingLine) -> dict[str, Any]:
    return asdict(line) | {"dollars": line.settled / NANO, "total_dollars": line.total / NANO}


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _day(seconds: float | None) -> str:
    return (_moment(seconds) or "")[:10]
