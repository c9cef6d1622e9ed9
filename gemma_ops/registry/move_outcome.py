"""Outcome of moving an alias, as plain data and as the lines a person reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_ops.registry.points import Point, points_table


@dataclass(frozen=True)
class Promotion:
    """Outcome of a move; `changed` is False when the alias stood there already. `policy` says by which policy the
    version was judged, `points` how each point ended, `overrides` what spoke against it, `notes` what else to know, as
    that its weights failed before; `head` is the hash of the ledger's last entry, `ledger` where that is."""

    name: str
    alias: str
    version: str
    previous: str | None
    verdict: str
    override: str | None
    changed: bool
    head: str
    ledger: str
    words: str
    policy: str = ""
    compared_with: str | None = None
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {**vars(self), "points": [point.to_json() for point in self.points]}

    def lines(self) -> list[str]:
        """Return what happened, on what grounds, and where that is recorded."""
        compared = f", compared with version {self.compared_with}" if self.compared_with else ""
        text = [self.words, f"  verdict {self.verdict}{compared}; every byte as registered"]
        text += [f"  {self.policy}"] if self.policy else []
        text += points_table(self.points)
        text += [f"  overridden: {self.override}"] if self.overrides else []
        text += [f"  note: {line}" for line in self.notes]
        return [*text, f"  ledger {self.ledger}, last entry {self.head[:12]}"]
