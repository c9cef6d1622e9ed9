"""Counts of the step `prepare`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.data.import_rows import Teacher
from gemma_ops.data.parts import media_of
from gemma_ops.data.row_tokens import Lengths
from gemma_ops.family.media import Senses
from gemma_ops.tasks.compared_questions import TaskQuestions


@dataclass
class PrepareCounts:
    """Counts of the step; `data_card.py` writes them down."""

    layout: str = ""
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: list[str] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    exact_duplicates: int = 0
    near_duplicates: int = 0
    near_pairs: list[dict[str, Any]] = field(default_factory=list)
    conflicts: int = 0
    contradictions: int = 0
    pii: Counter[str] = field(default_factory=Counter)
    pii_rows: list[str] = field(default_factory=list)
    pii_count: int = 0
    tasks: list[TaskQuestions] = field(default_factory=list)
    overlaps: Counter[str] = field(default_factory=Counter)
    overlap_pairs: list[dict[str, Any]] = field(default_factory=list)
    privacy: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    """Number of kept rows that took the class of a stricter row whose text they hold."""
    teachers: Counter[Teacher] = field(default_factory=Counter)
    """Number of rows that are trained on or validated with, by the model that wrote them."""
    groups: int = 0
    shown: Counter[str] = field(default_factory=Counter)
    """Number of images and sounds in rows that are kept, by kind; one file counts as often as it is shown."""
    shown_tokens: Counter[str] = field(default_factory=Counter)
    """Number of soft tokens of these images and sounds, by kind."""
    files: set[str] = field(default_factory=set)
    """Files of these images and sounds."""
    lengths: dict[str, Lengths] = field(default_factory=lambda: {"train": Lengths(), "valid": Lengths()})
    rows: Counter[str] = field(default_factory=Counter)
    examples: Counter[str] = field(default_factory=Counter)
    """Number of examples that training makes of the training rows, by `train.thinking`."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of rows that are trained on or validated with, by kind."""

    def show(self, messages: list[dict[str, Any]], senses: Senses) -> None:
        """Count the images and sounds of a kept row."""
        for part in media_of(messages):
            self.shown[part["type"]] += 1
            self.shown_tokens[part["type"]] += senses.tokens(part)
            self.files.add(part["path"])
