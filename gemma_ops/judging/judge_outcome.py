"""Outcomes from verdicts: what one judge says about each pair, and how far its own habits decide.

A pair is asked in both orders. The judge prefers an answer only if it says so in both; otherwise the pair counts one
half, and is counted as flipped. A pair that lacks a valid verdict has no outcome: it is counted as invalid and never
guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gemma_ops.judging.judge_asking import decided
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.judgements import Judgement, JudgePlace

_SCORE = {"first": 1.0, "tie": 0.5, "second": 0.0}
_SLOT = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass
class Tally:
    """One judge's outcomes for all pairs. Lists run over asked pairs and repeats that have both verdicts."""

    scores: dict[str, float] = field(default_factory=dict)
    """Score per pair, 1, ½ or 0 for the first side, averaged over repeats; also of pairs that needed no judge."""
    flips: list[tuple[str, bool]] = field(default_factory=list)
    """Whether the verdict changed when the answers changed places, per pair and repeat."""
    opposite: int = 0
    """Number of flips that changed from one answer to the other, and not to or from a tie."""
    slots: list[tuple[str, float]] = field(default_factory=list)
    """Share of verdicts for slot A, per pair and repeat, a tie counting one half."""
    repeats: list[tuple[str, str, str]] = field(default_factory=list)
    """Triples of pair, first verdict, and later verdict on the very same question."""
    invalid: int = 0
    """Number of verdicts that never became valid."""
    asked: int = 0
    """Number of verdicts asked for, canaries aside."""
    lost: list[str] = field(default_factory=list)
    """Number of pairs left without an outcome."""
    criteria: dict[str, dict[str, float]] = field(default_factory=dict)
    """Score of the first side per criterion and pair."""


def winner(said: str, order: str) -> str:
    """Return `first`, `second` or `tie`, from a slot."""
    if said == "tie":
        return said
    return "first" if (said == "A") == (order == "AB") else "second"


def pairwise_outcomes(pairs: Sequence[JudgedPair], judgements: Sequence[Judgement], repeats: int) -> Tally:
    """Return the outcomes of all pairs from one judge's verdicts."""
    known = {item.place: item for item in judgements if item.kind == "pair"}
    tally = Tally(asked=len(known), invalid=sum(item.said is None for item in known.values()))
    for pair in pairs:
        given = decided(pair)
        if given is not None:
            tally.scores[pair.id] = given
            continue
        found = [_repeat(pair.id, repeat, known, tally) for repeat in range(repeats)]
        valid = [score for score in found if score is not None]
        if valid:
            tally.scores[pair.id] = sum(valid) / len(valid)
        else:
            tally.lost.append(pair.id)
        _retest(pair.id, ("AB", "BA"), repeats, known, tally)
    return tally


def label(score: float) -> str:
    """Return a score as a label: `first`, `second`, or `tie` for exactly one half."""
    return "first" if score > 0.5 else "second" if score < 0.5 else "tie"


def judge_majority(tallies: Sequence[Tally]) -> dict[str, float]:
    """Return the panel's scores: what more than half of the judges with an outcome say, else one half."""
    items = dict.fromkeys(item for tally in tallies for item in tally.scores)
    found = {}
    for item in items:
        labels = [label(tally.scores[item]) for tally in tallies if item in tally.scores]
        top = max(sorted(set(labels)), key=labels.count)
        found[item] = _SCORE[top] if 2 * labels.count(top) > len(labels) else 0.5
    return found


def _repeat(item: str, repeat: int, known: Mapping[JudgePlace, Judgement], tally: Tally) -> float | None:
    both = [known.get(JudgePlace("pair", item, order, repeat)) for order in ("AB", "BA")]  # type: ignore[arg-type]
    verdicts = [judgement for judgement in both if judgement is not None and judgement.said is not None]
    if len(verdicts) < 2:
        return None
    said = [str(judgement.said) for judgement in verdicts]
    winners = [winner(one, judgement.order) for one, judgement in zip(said, verdicts, strict=True)]
    flipped = winners[0] != winners[1]
    tally.flips.append((item, flipped))
    tally.opposite += flipped and "tie" not in winners
    tally.slots.append((item, sum(_SLOT[one] for one in said) / 2))
    _criteria(item, verdicts, tally)
    return 0.5 if flipped else _SCORE[winners[0]]


def _criteria(item: str, verdicts: Sequence[Judgement], tally: Tally) -> None:
    """Fill in per criterion what both orders agree on; later repeats replace earlier ones."""
    found: dict[str, list[str]] = {}
    for judgement in verdicts:
        for entry in (judgement.verdict or {})["criteria"]:
            found.setdefault(entry["name"], []).append(winner(entry["better"], judgement.order))
    for name, winners in found.items():
        tally.criteria.setdefault(name, {})[item] = _SCORE[winners[0]] if len(set(winners)) == 1 else 0.5


def _retest(
    item: str, orders: Sequence[str], repeats: int, known: Mapping[JudgePlace, Judgement], tally: Tally
) -> None:
    for order in orders:
        before = known.get(JudgePlace("pair", item, order))  # type: ignore[arg-type]
        for repeat in range(1, repeats):
            after = known.get(JudgePlace("pair", item, order, repeat))  # type: ignore[arg-type]
            if before and after and before.said is not None and after.said is not None:
                tally.repeats.append((item, before.said, after.said))
