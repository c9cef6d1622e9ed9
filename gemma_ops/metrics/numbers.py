"""Answers that end in a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.metrics.base import Metric, Row, Scored, Scorer, one

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:[,\u202f\u00a0]\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\d])"
)


class Numeric(Metric):
    """1 when the final number of the answer equals the reference's, within the tolerance.

    The final number is the one after `####` where an answer has that mark (as in GSM8K), else the last one in it.
    Thousands separators, a currency sign before and a unit after the number don't matter.
    """

    id: Literal["numeric"]
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest absolute difference that counts as equal."""
    relative: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference as a share of the reference that counts as equal."""

    def scorer(self, folder: Path, rows: Sequence[Row]) -> Scorer:
        def score(text: str, row: Row) -> Scored:
            wanted = final_number(row.gold) if row.reference is not None else None
            if wanted is None:
                return one(self.key, None)
            found = final_number(text)
            if found is None:
                return one(self.key, 0.0, number=None)
            allowed = max(Decimal(str(self.tolerance)), abs(wanted) * Decimal(str(self.relative)))
            return one(self.key, float(abs(found - wanted) <= allowed), number=str(found))

        return Scorer(self.key, (self.key,), score)


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, or the last number of the text; None when there is none."""
    _, mark, tail = text.rpartition("####")
    numbers = _numbers(tail) if mark else []
    if numbers:
        return numbers[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in _NUMBER.finditer(text):
        plain = match.group().replace("\u2212", "-").replace(",", "").replace("\u202f", "").replace("\u00a0", "")
        try:
            value = Decimal(plain)
        except InvalidOperation:
            continue  # a lone sign or an empty match
        if abs(value.adjusted()) <= 300:
            found.append(value)
    return found
