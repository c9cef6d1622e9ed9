"""Counts of a synthesis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.synth import rows as finished
from gemma_ops.synth.material import Item, Pool
from gemma_ops.synth.replies import TeacherReply
from gemma_ops.synth.rows import Maker
from gemma_ops.tasks.compared_questions import TaskQuestions


@dataclass
class SynthesisCounts:
    """Counts of the step; `synth_card.py` writes them down."""

    pool: Pool
    teacher: Maker
    tasks: list[TaskQuestions]
    judge_sees: frozenset[str] | None
    """Privacy classes of rows that may be shown to the judge; None without one."""
    items: list[Item] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    replies: list[TeacherReply] = field(default_factory=list)
    written: int = 0
    passed: list[tuple[str, int]] = field(default_factory=list)
    """Number of rows left after each filter, in order."""
    overlaps: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    judge: dict[str, Any] | None = None
    rows: list[finished.Row] = field(default_factory=list)
    pairs: list[finished.Row] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
