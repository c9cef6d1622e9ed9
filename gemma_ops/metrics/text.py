"""Plain text: equal, contained, matching a pattern, within a length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gemma_ops.metrics.metric import (
    Metric,
    Normalization,
    ScoredAnswer,
    ScoredRow,
    Scorer,
    normalize,
    one_metric,
    score_words,
)


class ExactMatch(Metric):
    """1 when answer and reference are equal after the same normalisations."""

    id: Literal["exact_match"]
    normalize: tuple[Normalization, ...] = ("strip",)
    """Normalisations in order: strip, casefold, spaces, punctuation, accents, nfc and nfkc (Unicode's normal forms,
    which change nothing else), json (equal values however they are spelled)."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return one_metric(self.key, None)
            return one_metric(self.key, float(normalize(text, self.normalize) == normalize(row.gold, self.normalize)))

        return Scorer(self.key, (self.key,), score)


class Contains(Metric):
    """1 when the normalised reference occurs in the normalised answer."""

    id: Literal["contains"]
    normalize: tuple[Normalization, ...] = ("casefold", "spaces")
    """Normalisations in order, those of `exact_match`."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return one_metric(self.key, None)
            return one_metric(self.key, float(normalize(row.gold, self.normalize) in normalize(text, self.normalize)))

        return Scorer(self.key, (self.key,), score)


class Regex(Metric):
    """Match of a pattern: without a group, 1 when the pattern is found. With groups: 1 when what one of them caught
    equals what one catches in the reference; the first group that took part counts."""

    id: Literal["regex"]
    pattern: str
    """A Python regular expression; the last place it is found counts."""
    normalize: tuple[Normalization, ...] = ("strip", "casefold")
    """Normalisations of what the group caught, in answer and reference."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        pattern = re.compile(self.pattern)

        def caught(text: str) -> str | None:
            """Return what the last match caught; None where there is none, or where no group took part in it."""
            found = list(pattern.finditer(text))
            if not found or not pattern.groups:
                return found[-1].group() if found else None
            group = next((part for part in found[-1].groups() if part is not None), None)
            return None if group is None else normalize(group, self.normalize)

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            here = caught(text)
            if not pattern.groups:
                return one_metric(self.key, float(here is not None))
            if row.reference is None:
                return one_metric(self.key, None)
            wanted = caught(row.gold)
            # A reference that is just the value, without the words around it, is meant literally.
            wanted = normalize(row.gold, self.normalize) if wanted is None else wanted
            bare = here is None and normalize(text, self.normalize) == wanted != ""
            return one_metric(self.key, float(bare or (here is not None and here == wanted)), caught=here)

        return Scorer(self.key, (self.key,), score)


class Length(Metric):
    """1 when the answer has at least `min` and at most `max` units."""

    id: Literal["length"]
    unit: Literal["words", "characters"] = "words"
    """Unit that is counted."""
    min: Annotated[int, Field(ge=1)] = 1
    """Fewest units of an answer; an empty one is never long enough."""
    max: Annotated[int, Field(ge=1)] | None = None
    """Most units of an answer; no upper limit when left out."""

    @model_validator(mode="after")
    def _order(self) -> Length:
        if self.max is not None and self.max < self.min:
            raise ValueError("length: max is below min")
        return self

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            count = len(score_words(text)) if self.unit == "words" else len(text.strip())
            return one_metric(self.key, float(self.min <= count <= (self.max or count)), count=count)

        return Scorer(self.key, (self.key,), score)
