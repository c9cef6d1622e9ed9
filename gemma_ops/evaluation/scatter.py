"""A scatter of targets with their names next to the points, as inline SVG that fills any width.

Positions across are per cent and heights are pixels. Names are laid out for the narrowest page: they keep their width
in pixels while points move apart on a wider one, so what is free there is free everywhere. A thin line leads from a
point to a name that had to move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from gemma_ops.words.markup import escape, trusted
from gemma_ops.words.svg import Domain, mark, ticks

_LEFT = 9
"""Width of the upright axis' numbers, in per cent."""
_TOP, _BOTTOM = 28, 44
"""Pixels above and below the grid, for the titles and the numbers of the axes."""
_NARROW = 300
"""Width of the drawing on a phone, in pixels."""
_LETTER = 7.4
"""Width of a letter of a name, in pixels, at most on average."""
_AWAY = 11
"""Distance between a point and its name, in pixels."""


@dataclass(frozen=True)
class Dot:
    """A point of a scatter: `x` and `y` with the interval of `y`. `name` stands next to it, `told` is for screen
    readers."""

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
        """Return the position of a value, 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels that something takes on the narrowest page."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """True if two rectangles share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Name:
    """Position of a name: its line in pixels, on which side of its point (`start` is right of it), and the box it
    takes."""

    y: float
    anchor: str
    box: Box


def log_ticks(low: float, high: float) -> list[float]:
    """Return round positions between two values: steps of 1, 2 and 5, or powers of ten where there would be more than
    six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [0.0]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 6:
            break
    return found


def scatter(
    dots: Sequence[Dot],
    across: LogAxis,
    title: str,
    *,
    upright: LogAxis | None = None,
    line: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Draw points with upright whiskers over a grid, and a thin `line` through other points. `y`, named by `title`,
    runs over the part of [0, 1] that intervals need; with `upright` it is logarithmic."""
    scale = _scale(dots)
    shares = [across.share(dot.x) for dot in dots]
    height = floor = 0
    names: list[Name | None] = [None]

    def y(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0]) if upright is None else upright.share(value)
        return round(_TOP + (floor - _TOP) * (1 - min(max(share, 0.0), 1.0)), 1)

    for height in range(250, 260 + 40 * len(dots), 40):
        floor = height - _BOTTOM
        names = place_names([dot.name for dot in dots], shares, [y(dot.y) for dot in dots], floor)
        if None not in names:
            break
    body = f'<text class="axis-title" x="0" y="14">↑ {escape(title)}</text>' + "".join(
        f'<line class="grid" x1="{_LEFT}%" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" x="{_LEFT - 1}%" y="{y(tick) + 4}" text-anchor="end">{escape(text)}</text>'
        for tick, text in (upright.marks if upright else [(tick, f"{tick:.3g}") for tick in ticks(scale)])
    )
    for value, text in across.marks:
        x = _inset(across.share(value))
        body += f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{floor}"/>'
        body += f'<text class="tick" x="{x}" y="{floor + 16}" text-anchor="middle">{escape(text)}</text>'
    body += f'<text class="axis-title" x="100%" y="{height - 8}" text-anchor="end">{escape(across.title)} →</text>'
    drawn = [(across.share(first), y(second)) for first, second in line]
    body += "".join(
        f'<line class="lead-line t-mixed" x1="{_inset(x1)}" y1="{y1}" x2="{_inset(x2)}" y2="{y2}"/>'
        for (x1, y1), (x2, y2) in pairwise(drawn)
    )
    places = list(zip(dots, shares, names, strict=True))
    body += "".join(_whisker(dot, _inset(share), y(dot.low), y(dot.high)) for dot, share, _ in places)
    body += "".join(_label(dot, _inset(share), y(dot.y), name) for dot, share, name in places)
    body += "".join(mark(dot.colour, _inset(share), y(dot.y)) for dot, share, _ in places)
    told = "; ".join(dot.told for dot in dots)
    return trusted(f'<svg class="plot" height="{height}" role="img" aria-label="{escape(told)}">{body}</svg>')


def _scale(dots: Sequence[Dot]) -> Domain:
    low, high = min(dot.low for dot in dots), max(dot.high for dot in dots)
    air = max(0.08 * (high - low), 0.01)
    return max(0.0, low - air), min(1.0, high + air)


def place_names(
    names: Sequence[str], shares: Sequence[float], heights: Sequence[float], floor: float
) -> list[Name | None]:
    """Place each name as near to its point as the others allow: next to it, above or below, inside the grid, and on no
    other name or point. None for a name that there is no room for. `floor` is the lower edge of the grid in pixels."""
    centres = [_NARROW * _across(share) / 100 for share in shares]
    points = [Box(x - 8, x + 8, y - 8, y + 8) for x, y in zip(centres, heights, strict=True)]
    found: list[Name | None] = [None] * len(names)
    for index in sorted(range(len(names)), key=lambda at: (heights[at], centres[at])):
        taken = [*points[:index], *points[index + 1 :], *(one.box for one in found if one)]
        found[index] = next(
            (
                name
                for name in _candidates(centres[index], heights[index], _LETTER * len(names[index]), floor)
                if not any(name.box.meets(other) for other in taken)
            ),
            None,
        )
    return found


def _candidates(x: float, y: float, width: float, floor: float) -> Iterator[Name]:
    """Yield places for a name of that width, the nearest to its point first."""
    for step in range(0, round(floor), 3):
        for line in (y - step, y + step):
            if not _TOP + 4 <= line <= floor - 6:
                continue
            sides = {"start": x + _AWAY, "end": x - _AWAY - width}
            if step > 15:
                sides["middle"] = x - width / 2
            for anchor, left in sides.items():
                if left >= 0 and left + width <= _NARROW:
                    yield Name(line, anchor, Box(left, left + width, line - 8, line + 8))


def _whisker(dot: Dot, x: str, low: float, high: float) -> str:
    return f'<line class="whisker {dot.colour}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'


def _label(dot: Dot, x: str, y: float, name: Name | None) -> str:
    """Return a name with the line that leads to it; one without room stands next to its point all the same."""
    line, anchor = (name.y, name.anchor) if name else (y, "start")
    step = {"start": _AWAY, "end": -_AWAY, "middle": 0}[anchor]
    moved = abs(line - y) > 9
    lead = f'<line class="lead-line {dot.colour}" x1="{x}" x2="{x}" y1="{y}" y2="{line:.1f}"/>' if moved else ""
    return (
        f'{lead}<text class="label {dot.colour}" x="{x}" dx="{step}" y="{line + 4:.1f}" text-anchor="{anchor}">'
        f"{escape(dot.name)}</text>"
    )


def _inset(share: float) -> str:
    return f"{_across(share):.2f}%"


def _across(share: float) -> float:
    """Return the position in per cent of the width, right of the upright axis' numbers."""
    return _LEFT + 3 + (94 - _LEFT) * share
