"""Answers that end in a number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.errors import DataError
from gemma_ops.metrics.metric import Metric, ScoredAnswer, ScoredRow, Scorer, one_metric
from gemma_ops.metrics.numerals import DecimalSign, numbers_in


class Numeric(Metric):
    """1 when the final number of the answer equals the reference's, within the tolerance.

    The final number is the one after `####` where an answer has that mark (as in GSM8K), else the last one in it.
    Groups of digits, a currency sign before and a unit after the number don't matter; fractions, powers of ten and
    words of magnitude are read (`numerals.py`). Digits that are no number as a whole, such as a date, are no number in
    parts.
    """

    id: Literal["numeric"]
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest absolute difference that counts as equal."""
    relative: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference as a share of the reference that counts as equal."""
    decimal: DecimalSign = "point"
    """Reading of `1,234` and `1.234`, which could be either: with a decimal `point` or a decimal `comma`."""

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        """Bind to the rows; raises DataError for a reference with digits that can't be read as one number."""
        for row in rows:
            has_digits = row.reference is not None and any(letter.isdigit() for letter in row.gold)
            if has_digits and final_number(row.gold, self.decimal) is None:
                raise DataError(
                    f"row {row.id}: the reference {row.gold[:60]!r} ends in digits that can't be read as one number",
                    "write it as a plain number, or score the row with another metric",
                )

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            wanted = final_number(row.gold, self.decimal) if row.reference is not None else None
            if wanted is None:
                return one_metric(self.key, None)
            found = final_number(text, self.decimal)
            if found is None:
                return one_metric(self.key, 0.0, number=None)
            allowed = max(Fraction(str(self.tolerance)), abs(wanted) * Fraction(str(self.relative)))
            return one_metric(self.key, float(abs(found - wanted) <= allowed), number=str(found))

        return Scorer(self.key, (self.key,), score)


def final_number(text: str, decimal: DecimalSign = "point") -> Fraction | None:
    """Return the number after the last `####`, or the last number of the text; None when there is none, or it can't be
    read."""
    _, mark, tail = text.rpartition("####")
    numbers = list(numbers_in(tail, decimal)) if mark else []
    if numbers:
        return numbers[0]
    numbers = list(numbers_in(text, decimal))
    return numbers[-1] if numbers else None
