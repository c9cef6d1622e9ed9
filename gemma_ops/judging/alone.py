"""Scores of single answers: per side the criteria's scores and the share that passes.

A side's score is the mean of its criteria, brought to [0, 1] by the rubric's scale. A refused or failed answer scores 0
without being asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.judgements import Judgement, JudgePlace
from gemma_ops.judging.rubric import Rubric
from gemma_ops.tasks.grades import FAILED

SideName = Literal["first", "second"]


@dataclass
class Alone:
    """One judge's verdicts on one side's answers."""

    scores: dict[str, float] = field(default_factory=dict)
    """Score per item, in [0, 1], averaged over repeats."""
    passes: dict[str, float] = field(default_factory=dict)
    """Verdict per item: 1 passed, 0 failed; an even split of repeats is one half."""
    criteria: dict[str, dict[str, float]] = field(default_factory=dict)
    """Score per criterion and item, on the rubric's own scale."""
    repeats: list[tuple[str, str, str]] = field(default_factory=list)
    """Triples of item, first verdict, and later verdict on the very same question."""
    asked: int = 0
    invalid: int = 0
    lost: list[str] = field(default_factory=list)


def pointwise_outcomes(
    pairs: Sequence[JudgedPair], judgements: Sequence[Judgement], side: SideName, rubric: Rubric, repeats: int
) -> Alone:
    """Return one side's outcomes from one judge's verdicts."""
    known = {item.place: item for item in judgements if item.kind == "pair" and item.order == side}
    found = Alone(asked=len(known), invalid=sum(item.said is None for item in known.values()))
    for pair in pairs:
        if (pair.first_end if side == "first" else pair.second_end) in FAILED:
            found.scores[pair.id] = found.passes[pair.id] = 0.0
            continue
        said = [known.get(JudgePlace("pair", pair.id, side, repeat)) for repeat in range(repeats)]
        valid = [item for item in said if item is not None and item.verdict is not None]
        if not valid:
            found.lost.append(pair.id)
            continue
        found.scores[pair.id] = sum(_score(item, rubric) for item in valid) / len(valid)
        found.passes[pair.id] = sum(item.said == "pass" for item in valid) / len(valid)
        for entry in (valid[0].verdict or {})["criteria"]:
            found.criteria.setdefault(entry["name"], {})[pair.id] = float(entry["score"])
        found.repeats += [(pair.id, str(valid[0].said), str(item.said)) for item in valid[1:]]
    return found


def _score(item: Judgement, rubric: Rubric) -> float:
    scores = [entry["score"] for entry in (item.verdict or {})["criteria"]]
    return float((sum(scores) / len(scores) - rubric.low) / (rubric.high - rubric.low))
