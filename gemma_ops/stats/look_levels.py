"""The level that a look at growing data may spend, so that looking again buys nothing.

Whoever evaluates, adds rows and evaluates again until a gate passes makes several tests. By the union bound the chance
that any of them errs is at most the sum of their levels, whatever the rows have in common. So the levels of all looks
sum to no more than the level asked for: the first takes most of it, since most evaluations need no second.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST = 0.75
"""Share of the level that the first look takes; each later one takes half of what is left. At a level of .05 these are
.0375, .00625, .0031 …: a second look needs about 1.6 times the rows of a first one, a third 1.9 times."""


def look_level(level: float, spent: Sequence[float]) -> float:
    """Return the level of the next look, after looks that spent these levels; 0 when nothing is left."""
    return FIRST * level if not spent else max(0.0, level - sum(spent)) / 2
