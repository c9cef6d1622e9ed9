"""Evidence of the served version's own evaluation, slice by slice, against the same Gemini that would be asked.

A table counts where its local target is the one that is served and its service is the policy's model at its level of
thinking. An emulator's answers are no evidence about Gemini, so such a table counts in a rehearsal only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from gemma_ops.routing.routing_policy import GeminiRules
from gemma_ops.targets.gemini_target import gemini_identity
from gemma_ops.verdicts import Routing, RoutingTable
from gemma_ops.verdicts.routing_record import RoutingDecision

Key = tuple[str, str, str]
"""Task, slice and value; slice and value are empty for the task as a whole."""


@dataclass(frozen=True)
class SliceEvidence:
    """One line of a routing table."""

    decision: RoutingDecision
    words: str


@dataclass(frozen=True)
class EvidenceTable:
    """All lines of a routing table that count. Empty without an evaluation, and then nothing is shown of anything."""

    lines: Mapping[Key, SliceEvidence] = field(default_factory=dict)

    @classmethod
    def of(cls, routing: Routing | None, *, served: str, rules: GeminiRules, rehearsal: bool) -> Self:
        """Return the lines of `routing.json` that are about the served format and about this Gemini."""
        return cls(
            {
                (table.task, line.slice or "", line.value or ""): SliceEvidence(line.decision, line.words)
                for table in (routing.tables if routing else ())
                if _counts(table, served, rules, rehearsal)
                for line in table.lines
            }
        )

    def known(self, task: str, slices: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Return those of the declared slices that the table has a line about; a client may write anything into the
        others."""
        return tuple((name, value) for name, value in slices if (task, name, value) in self.lines)

    def about(self, task: str, slices: Sequence[tuple[str, str]]) -> SliceEvidence | None:
        """Return what is shown of a request: of its slices, where one is to be sent, or all are to be kept; else of its
        task."""
        found = [self.lines[key] for name, value in slices if (key := (task, name, value)) in self.lines]
        sent = next((line for line in found if line.decision == "send"), None)
        if sent or (found and all(line.decision == "keep" for line in found)):
            return sent or found[0]
        return self.lines.get((task, "", "")) or (found[0] if found else None)


def _counts(table: RoutingTable, served: str, rules: GeminiRules, rehearsal: bool) -> bool:
    identity = gemini_identity(rules.model, rules.thinking, rehearsed=rehearsal)
    return table.local.name == served and table.remote.identity == identity
