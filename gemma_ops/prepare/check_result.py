"""The findings of a check of rows, as one record."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gemma_ops.prepare.row_findings import RowFinding
from gemma_ops.prepare.row_view import RowView


@dataclass(frozen=True)
class CheckResult:
    """Rows, the findings in them, and their lengths. `checked` rows were read; `more` says whether there are others,
    because only the first were asked for."""

    layout: str
    checked: int
    more: bool
    rows: list[RowView]
    """First rows, to be shown."""
    totals: dict[str, int]
    """Number of rows by finding, errors first."""
    first: dict[str, RowFinding]
    """The first finding of each code."""
    lengths: dict[str, Any]
    truncated: int
    max_length: int | None
    privacy: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    """Number of examples that training makes of the rows."""
    shown: dict[str, Counter[int]] = field(default_factory=dict)
    """Number of images or sounds by kind and soft tokens."""
    template: tuple[str, ...] = ()
    """Remarks on the checkpoint's chat template, a line each."""
    thinned: tuple[str, ...] = ()
    """What a run would leave out, and what contradicts itself, a line each."""
    refusals: tuple[tuple[str, str], ...] = ()
    """What a run would refuse, and what to do about it."""
    trained: dict[str, int] = field(default_factory=dict)
    """What would be trained on, as `Rehearsal.trained` says it."""

    @property
    def findings(self) -> list[RowFinding]:
        """Return all findings of the shown rows, row by row."""
        return [item for row in self.rows for item in row.findings]

    def refusing(self, *refusals: tuple[str, str]) -> CheckResult:
        """Return the result with what else a run would refuse."""
        known = {what for what, _ in self.refusals}
        return replace(self, refusals=(*self.refusals, *(one for one in refusals if one[0] not in known)))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tokens' texts, which are given as token counts."""
        return {
            "layout": self.layout,
            "checked": self.checked,
            "more": self.more,
            "totals": self.totals,
            "tokens": self.lengths,
            "truncated": self.truncated,
            "examples": self.examples,
            "template": list(self.template),
            "thinned": list(self.thinned),
            "refusals": [{"what": what, "fix": fix} for what, fix in self.refusals],
            "max_length": self.max_length,
            "privacy": self.privacy,
            "findings": [asdict(item) for item in self.findings],
            "rows": [_row_json(row) for row in self.rows],
        }


def _row_json(row: RowView) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "tokens": row.count,
        "with_loss": sum(loss for tokens in (row.tokens, *row.more) for _, loss in tokens),
    }
    if row.shown:
        body["media"] = [list(item) for item in row.shown]
    if row.rejected:
        body["rejected_tokens"] = len(row.rejected)
        body["rejected_with_loss"] = sum(loss for _, loss in row.rejected)
    return body
