"""The rubric: what a good answer is, in a person's words, and the criteria a judge must speak about.

Any Markdown will do. Where it has a heading `Criteria` followed by a list of `- name: what it means`, each entry
becomes a criterion that every verdict must address; a line `Scale: 1 to 5` sets the scale of pointwise scores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemma_ops.errors import DataError

DEFAULT = "A good answer is correct, does what was asked, and leaves out what was not asked."
_HEADING = re.compile(r"^#+\s*(.*?)\s*#*$")
_ENTRY = re.compile(r"^[-*]\s+\**`?([^:*`]{1,60}?)`?\**\s*:\**\s*(.+)$")
_SCALE = re.compile(r"^scale:\s*(\d+)\s*(?:to|-|–)\s*(\d+)\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Criterion:
    """One thing a verdict must speak about."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Rubric:
    """A rubric as judges get it. Scores run from `low` to `high`, in whole numbers."""

    text: str
    criteria: tuple[Criterion, ...]
    low: int = 1
    high: int = 5


def parse_rubric(text: str, place: str = "the rubric") -> Rubric:
    """Read a rubric. Without a list of criteria there is one: how well the answer does what the rubric asks."""
    criteria: list[Criterion] = []
    low, high, inside = 1, 5, False
    for line in text.splitlines():
        heading, entry, scale = _HEADING.match(line), _ENTRY.match(line.strip()), _SCALE.match(line.strip())
        if heading:
            inside = heading.group(1).casefold().rstrip(":") == "criteria"
        elif scale:
            low, high = int(scale.group(1)), int(scale.group(2))
        elif inside and entry:
            criteria.append(Criterion(entry.group(1).strip(), entry.group(2).strip()))
    if low >= high:
        raise DataError(f"{place}: the scale runs from {low} to {high}", "write it rising, for example `Scale: 1 to 5`")
    names = [criterion.name for criterion in criteria]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"{place}: the criterion {twice!r} is given twice", "give every criterion its own name")
    whole = Criterion("rubric", "how well the answer does what the rubric asks for")
    return Rubric(text.strip() or DEFAULT, tuple(criteria) or (whole,), low, high)
