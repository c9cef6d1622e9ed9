"""A scatter of targets with their names beside the points, as inline SVG that fills any width.

Positions across are per cent and heights are pixels. Every name has a line of its own, so that no two names meet however
narrow the page is; a thin line leads from a point to a name that had to move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gemma_ops.evaluation.markup import escape
from gemma_ops.evaluation.svg import Domain, mark, ticks

_LEFT = 9
"""Per cent of the width that the numbers of the upright axis take."""
_TOP, _BOTTOM = 28, 44
"""Pixels above and below the grid, for the titles and the numbers of the axes."""
_LINE = 17
"""Pixels from one name to the next."""
_NEAR = 0.45
"""Share of the width that a name may take."""


@dataclass(frozen=True)
class Dot:
    """A point of a scatter: `x` and `y` with the interval of `y`. `name` stands beside it, `told` is for screen readers."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    name: str
    told: str


@dataclass(frozen=True)
class LogAxis:
    """The logarithmic axis across: its ends and ticks in the data's own units, with its title."""

    low: float
    high: float
    marks: tuple[tuple[float, str], ...]
    title: str

    def share(self, value: float) -> float:
        """Position of a value, 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class _Name:
    """Where a name stands: its line in pixels, and whether left of its point."""

    y: float
    left: bool


def log_ticks(low: float, high: float) -> list[float]:
    """Round positions between two values: steps of 1, 2 and 5, or powers of ten where there would be more than six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [0.0]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 6:
            break
    return found


def scatter(dots: Sequence[Dot], across: LogAxis, title: str) -> str:
    """Points with upright whiskers over a grid; `y`, named by `title`, runs over the part of [0, 1] that intervals need."""
    scale = _scale(dots)
    height = max(250, _LINE * len(dots) + _TOP + _BOTTOM)
    floor = height - _BOTTOM

    def y(value: float) -> float:
        return round(_TOP + (floor - _TOP) * (1 - (value - scale[0]) / (scale[1] - scale[0])), 1)

    shares = [across.share(dot.x) for dot in dots]
    names = _names(shares, [y(dot.y) for dot in dots], floor)
    body = f'<text class="axis-title" x="0" y="14">↑ {escape(title)}</text>' + "".join(
        f'<line class="grid" x1="{_LEFT}%" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" x="{_LEFT - 1}%" y="{y(tick) + 4}" text-anchor="end">{tick:.3g}</text>'
        for tick in ticks(scale)
    )
    for value, text in across.marks:
        x = _inset(across.share(value))
        body += f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{floor}"/>'
        body += f'<text class="tick" x="{x}" y="{floor + 16}" text-anchor="middle">{escape(text)}</text>'
    body += f'<text class="axis-title" x="100%" y="{height - 8}" text-anchor="end">{escape(across.title)} →</text>'
    places = list(zip(dots, shares, names, strict=True))
    body += "".join(_whisker(dot, _inset(share), y(dot.low), y(dot.high)) for dot, share, _ in places)
    body += "".join(_label(dot, _inset(share), y(dot.y), name) for dot, share, name in places)
    body += "".join(mark(dot.colour, _inset(share), y(dot.y)) for dot, share, _ in places)
    told = "; ".join(dot.told for dot in dots)
    return f'<svg class="plot" height="{height}" role="img" aria-label="{escape(told)}">{body}</svg>'


def _scale(dots: Sequence[Dot]) -> Domain:
    low, high = min(dot.low for dot in dots), max(dot.high for dot in dots)
    air = max(0.08 * (high - low), 0.01)
    return max(0.0, low - air), min(1.0, high + air)


def _names(shares: Sequence[float], heights: Sequence[float], floor: float) -> list[_Name]:
    """Lines for the names: each as near to its point as the others allow, inside the grid, no two on one line."""
    order = sorted(range(len(heights)), key=lambda index: (heights[index], shares[index]))
    lines: dict[int, float] = {}
    after = _TOP - _LINE + 8.0
    for index in order:
        after = lines[index] = max(heights[index], after + _LINE)
    limit = floor - 6.0
    for index in reversed(order):
        lines[index] = min(lines[index], limit)
        limit = lines[index] - _LINE
    found = []
    for index, share in enumerate(shares):
        near = [
            other - share for at, other in enumerate(shares) if at != index and abs(heights[at] - lines[index]) < 12
        ]
        right, left = (sum(0 <= sign * gap < _NEAR for gap in near) for sign in (1, -1))
        crowded = right > left and share > _NEAR
        found.append(_Name(lines[index], left=share > 1 - _NEAR or crowded))
    return found


def _whisker(dot: Dot, x: str, low: float, high: float) -> str:
    return f'<line class="whisker {dot.colour}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'


def _label(dot: Dot, x: str, y: float, name: _Name) -> str:
    anchor, step = ("end", -11) if name.left else ("start", 11)
    moved = abs(name.y - y) > _LINE / 2
    lead = f'<line class="lead-line {dot.colour}" x1="{x}" x2="{x}" y1="{y}" y2="{name.y:.1f}"/>' if moved else ""
    return (
        f'{lead}<text class="label {dot.colour}" x="{x}" dx="{step}" y="{name.y + 4:.1f}" text-anchor="{anchor}">'
        f"{escape(dot.name)}</text>"
    )


def _inset(share: float) -> str:
    """Position right of the upright axis' numbers."""
    return f"{_LEFT + 3 + (94 - _LEFT) * share:.2f}%"
