"""Candidates from replies: every row a reply holds is checked, and becomes either a candidate or a rejection; none
vanishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.data.example import content_id
from gemma_ops.synth import methods
from gemma_ops.synth.material import Draft, Item, Material
from gemma_ops.synth.replies import TeacherQuestion, TeacherReply
from gemma_ops.synth.row_checks import Rejection, check_row

_ENDS = {"length": "cut", "blocked": "blocked", "error": "error", "stop": "invalid_reply"}
"""Codes of replies without a value, by how they ended."""


@dataclass(frozen=True)
class RowCandidate:
    """A row that passed the checks. `share`: of the reply's cost, as one of its rows."""

    item: Item
    draft: Draft
    question: TeacherQuestion
    reply: TeacherReply
    share: float
    span: tuple[int, int] | None
    """Position of its quotation in the source."""

    @property
    def id(self) -> str:
        """Return the digest of what is trained on, as `prepare` names the row."""
        messages, tools = self.draft.messages, list(self.draft.tools) or None
        if self.draft.rejected is None:
            return content_id(messages, tools)
        rejected = [{"role": "assistant", "content": self.draft.rejected}]
        return content_id(messages[:-1], tools, chosen=messages[-1:], rejected=rejected)

    @property
    def pair(self) -> bool:
        return self.draft.rejected is not None

    def as_material(self) -> Material:
        """Return the row as something to write from."""
        source = self.item.material
        asked, answered = self.draft.messages[0]["content"], self.draft.messages[-1]["content"]
        return Material(
            self.id, source.privacy, source.group, source.section, source.seeds, question=asked, answer=answered
        )


@dataclass
class Rejected:
    """Rows that were left out, in order, each with its reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, item: Item, reply: TeacherReply, why: Rejection, draft: Draft | None = None) -> None:
        row: dict[str, Any] = {
            "code": why.code,
            "reason": why.reason,
            "method": item.method,
            "from": item.material.name,
            "privacy": item.material.privacy,
            "request": reply.key,
        }
        if draft is not None:
            row |= {"messages": draft.messages, "quote": draft.quote, "rejected": draft.rejected}
        self.rows.append({key: value for key, value in row.items() if value is not None})


def candidate_question(item: Item) -> TeacherQuestion:
    """Return what the teacher is asked for an item."""
    messages = tuple(methods.METHODS[item.method].ask(item))
    return TeacherQuestion(item.method, item.material.name, messages, item.material.privacy, item.turn)


def candidates(
    items: Sequence[Item], replies: Sequence[TeacherReply], rejected: Rejected
) -> tuple[list[RowCandidate], int]:
    """Return the usable rows of replies, and how many rows were written in all."""
    found: list[RowCandidate] = []
    written = 0
    for item, reply in zip(items, replies, strict=True):
        if reply.value is None:
            rejected.add(item, reply, Rejection(_ENDS[reply.end], reply.problem))
            continue
        method, question = methods.METHODS[item.method], candidate_question(item)
        drafts = method.drafts(item, method.shape.model_validate(reply.value))
        written += len(drafts)
        for draft in drafts:
            checked = check_row(item, draft)
            if isinstance(checked, Rejection):
                rejected.add(item, reply, checked, draft)
            else:
                found.append(RowCandidate(item, draft, question, reply, 1 / len(drafts), checked))
    return found, written
