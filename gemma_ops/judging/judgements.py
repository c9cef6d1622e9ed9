"""Stored verdicts: `judgements.jsonl` grows while judges speak, and survives a kill at any moment.

A verdict's key covers who judged, the very conversation it was asked in and which repeat it was. So a changed rubric, a
changed answer or another judge asks anew, and everything else is kept. A verdict that was never given because the service
failed is asked for again by the next run; one that was given and was no valid verdict stays, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gemma_ops.answer import End
from gemma_ops.runs import digest
from gemma_ops.runs.keyed import KeyedFile
from gemma_ops.targets.structured import Structured

FILE = "judgements.jsonl"
Kind = Literal["pair", "identical", "broken", "injected"]
Order = Literal["AB", "BA", "first", "second"]
"""Which answers stood where: `AB` puts the first side into slot A; `first` and `second` are answers scored alone."""


@dataclass(frozen=True)
class JudgePlace:
    """What was judged: an item, or a canary made from one; in which order; for which time."""

    kind: Kind
    item: str
    order: Order
    repeat: int = 0


@dataclass(frozen=True)
class Judgement:
    """One line of `judgements.jsonl`. `verdict` is None when no valid one came, and `problem` says why."""

    key: str
    judge: str
    kind: Kind
    item: str
    order: Order
    repeat: int
    verdict: dict[str, Any] | None
    problem: str
    end: End
    tries: int
    prompt_tokens: int
    new_tokens: int
    thought_tokens: int
    seconds: float
    dollars: float | None
    model: str
    response_id: str

    @property
    def place(self) -> JudgePlace:
        return JudgePlace(self.kind, self.item, self.order, self.repeat)

    @property
    def said(self) -> str | None:
        """A, B, tie, pass or fail; None when there is no valid verdict."""
        return None if self.verdict is None else str(self.verdict["verdict"])


def judgement_key(
    judge: str, identity: str, messages: Iterable[dict[str, Any]], shape: dict[str, Any], repeat: int
) -> str:
    """Key of one verdict: 32 hex digits."""
    return digest.of_json([judge, identity, list(messages), shape, repeat])[:32]


def judgement(key: str, judge: str, place: JudgePlace, found: Structured) -> Judgement:
    """A reply as it is filed."""
    answer = found.answer
    return Judgement(
        key=key,
        judge=judge,
        **asdict(place),
        verdict=None if found.value is None else found.value.model_dump(mode="json"),
        problem=found.problem,
        end=answer.end,
        tries=found.tries,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        thought_tokens=answer.thought_tokens,
        seconds=answer.seconds,
        dollars=answer.dollars,
        model=answer.model,
        response_id=answer.response_id,
    )


class JudgementFile(KeyedFile[Judgement]):
    """The verdicts of a comparison, as they come."""

    kind, noun, again = Judgement, "a judgement", "judge again"

    def lasts(self, record: Judgement) -> bool:
        """A verdict that the service failed to give is asked for again."""
        return record.end != "error"
