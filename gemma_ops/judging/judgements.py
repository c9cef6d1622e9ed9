"""Stored verdicts: `judgements.jsonl` grows while judges speak, and survives a kill at any moment.

A verdict's key covers who judged, the very conversation it was asked in and which repeat it was. So a changed rubric, a
changed answer or another judge asks anew, and everything else is kept. A verdict that was never given because the
service failed is asked for again by the next run; one that was given and was no valid verdict stays, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from gemma_ops.targets.asked import AskedFile, StructuredRecord, asked_key
from gemma_ops.targets.structured import Structured

FILE = "judgements.jsonl"
Kind = Literal["pair", "identical", "broken", "injected"]
Order = Literal["AB", "BA", "first", "second"]
"""Order of the answers: `AB` puts the first side into slot A; `first` and `second` are answers scored alone."""


@dataclass(frozen=True)
class JudgePlace:
    """The place of a verdict: an item, or a canary made from one; in which order; for which time."""

    kind: Kind
    item: str
    order: Order
    repeat: int = 0


@dataclass(frozen=True, kw_only=True)
class Judgement(StructuredRecord):
    """One line of `judgements.jsonl`."""

    LINE: ClassVar[tuple[str, ...]] = (
        "key", "judge", "kind", "item", "order", "repeat", "verdict", "problem", "end", "tries", "prompt_tokens",
        "new_tokens", "thought_tokens", "seconds", "dollars", "model", "response_id",
    )  # fmt: skip

    judge: str
    kind: Kind
    item: str
    order: Order
    repeat: int
    verdict: dict[str, Any] | None
    """Verdict of the judge; None when no valid one came, and `problem` says why."""

    @property
    def place(self) -> JudgePlace:
        return JudgePlace(self.kind, self.item, self.order, self.repeat)

    @property
    def said(self) -> str | None:
        """Return A, B, tie, pass or fail; None when there is no valid verdict."""
        return None if self.verdict is None else str(self.verdict["verdict"])


def judgement_key(
    judge: str, identity: str, messages: Iterable[dict[str, Any]], shape: dict[str, Any], repeat: int
) -> str:
    """Return the key of one verdict: 32 hex digits."""
    return asked_key(judge, identity, list(messages), shape, repeat)


def judgement(key: str, judge: str, place: JudgePlace, found: Structured) -> Judgement:
    """Return a reply as it is filed."""
    verdict = None if found.value is None else found.value.model_dump(mode="json")
    return Judgement.of_structured(found, key=key, judge=judge, **asdict(place), verdict=verdict)


class JudgementFile(AskedFile[Judgement]):
    """File of the verdicts of a comparison, which grows as they come."""

    kind, noun, again = Judgement, "a judgement", "judge again"
