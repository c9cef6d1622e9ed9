"""The eleven points of a promotion: what each says, in a word and a sentence.

    integrity            every byte as registered, nothing that can run code, and a signature where keys are trusted
    lineage              from the base and the rows down to the file that is served
    contamination        no question among the training rows
    quality              gates, policy, champion, and looks that others took
    evaluated is served  the verdict is about the very files, asked in the engine that will serve them
    resources            memory at the declared context, and the speed that was measured
    safety               training rows aren't given away, refusals aren't lost
    card                 the model card and the bill of materials
    approval             a person's, where the policy asks for it
    atomic move          the ledger is whole, and the alias stands where it should
    roll                 what servers are told

What is missing counts as failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

INTEGRITY, LINEAGE, CONTAMINATION, QUALITY = "integrity", "lineage", "contamination", "quality"
SERVED, RESOURCES, SAFETY, CARD = "evaluated is served", "resources", "safety", "card"
APPROVAL, MOVE, ROLL = "approval", "atomic move", "roll"
POINTS = (INTEGRITY, LINEAGE, CONTAMINATION, QUALITY, SERVED, RESOURCES, SAFETY, CARD, APPROVAL, MOVE, ROLL)
_KEPT = 160
"""Characters of a sentence that the ledger keeps, so that an entry fits a tag."""


@dataclass(frozen=True)
class Point:
    """One point: `why` are the sentences that decide it."""

    name: str
    state: Literal["pass", "fail", "missing"]
    why: tuple[str, ...]

    @property
    def good(self) -> bool:
        """True if the point passes."""
        return self.state == "pass"

    def to_json(self) -> dict[str, Any]:
        """Return the point as a JSON object."""
        return {"point": self.name, "state": self.state, "why": list(self.why)}

    def kept(self) -> list[str]:
        """Return what the ledger keeps of it: name, state, sentences."""
        text = "; ".join(self.why)
        return [self.name, self.state, text if len(text) <= _KEPT else f"{text[: _KEPT - 1]}…"]


def judged_point(
    name: str, words: str | Sequence[str], failed: Sequence[str] = (), missing: Sequence[str] = ()
) -> Point:
    """Return the point that these findings make; `words` say why it passes where there are none."""
    if failed:
        return Point(name, "fail", (*failed, *missing))
    if missing:
        return Point(name, "missing", tuple(missing))
    return Point(name, "pass", (words,) if isinstance(words, str) else tuple(words))


def objected(points: Iterable[Point]) -> list[str]:
    """Return every sentence that speaks against the promotion, behind the name of its point."""
    return [f"{point.name}: {why}" for point in points if not point.good for why in point.why]


def points_table(points: Sequence[Point]) -> list[str]:
    """Return the points as lines of a table; further sentences of a point stand below its first."""
    wide = max((len(point.name) for point in points), default=0)
    lines = []
    for point in points:
        first, *more = point.why
        lines.append(f"  {point.state:<7}  {point.name:<{wide}}  {first}")
        lines += [f"  {'':<7}  {'':<{wide}}  {line}" for line in more]
    return lines


def kept_words(kept: Sequence[Sequence[str]]) -> str:
    """Return what an entry of the ledger kept, in words: `11 of 11 points`, or which did not hold."""
    bad = [f"{name} {state}" for name, state, _ in kept if state != "pass"]
    count = f"{len(kept) - len(bad)} of {len(kept)} points"
    return f"{count} ({', '.join(bad)})" if bad else count
