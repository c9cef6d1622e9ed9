"""Small drawings for the report, as inline SVG: positions are percentages, so that they fill any width."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from gemma_ops.words.markup import escape, trusted

Domain = tuple[float, float]
_ROW = 30
"""Height of one row, in CSS pixels."""


def whisker(
    value: float, low: float, high: float, domain: Domain, colour: str, *, marks: Sequence[float] = (), label: str = ""
) -> Markup:
    """Return a dot for the value and a line for its interval, over faint grid lines. `marks` are drawn dashed
    across."""
    y = _ROW / 2
    grid = "".join(_vertical(tick, domain, "grid") for tick in ticks(domain))
    zero = _vertical(0.0, domain, "zero") if domain[0] < 0 < domain[1] else ""
    dashed = "".join(_vertical(mark, domain, "mark") for mark in marks if domain[0] <= mark <= domain[1])
    left, right, centre = (_x(number, domain) for number in (low, high, value))
    body = (
        f'<line class="whisker {colour}" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<line class="whisker {colour}" x1="{left}" x2="{left}" y1="{y - 4}" y2="{y + 4}"/>'
        f'<line class="whisker {colour}" x1="{right}" x2="{right}" y1="{y - 4}" y2="{y + 4}"/>'
        f"{mark(colour, centre, y)}"
    )
    told = f'role="img" aria-label="{escape(label)}"'
    return trusted(f'<svg class="plot" height="{_ROW}" {told}>{grid}{zero}{dashed}{body}</svg>')


def mark(colour: str, x: str, y: float) -> str:
    """Return the mark of a target, whose shape `palette.marks` puts into the page."""
    return f'<use class="dot {colour}" href="#mark-{colour}" x="{x}" y="{y}"/>'


def axis(domain: Domain, *, title: str, signed: bool = False, parts: int = 4) -> Markup:
    """Return the numbers below the grid lines of `whisker`, and below them their title."""
    texts = []
    for tick in ticks(domain, parts):
        at = (tick - domain[0]) / (domain[1] - domain[0])
        anchor = "start" if at < 0.03 else "end" if at > 0.97 else "middle"
        shown = f"{tick:+.2g}" if signed and abs(tick) > 1e-9 else f"{abs(tick):.2g}"
        texts.append(
            f'<text class="tick" x="{_x(tick, domain)}" y="12" text-anchor="{anchor}">{shown.replace("-", "−")}</text>'
        )
    named = f'<text class="axis-title" x="50%" y="27" text-anchor="middle">{escape(title)}</text>'
    return trusted(f'<svg class="plot axis" height="32">{"".join(texts)}{named}</svg>')


def ticks(domain: Domain, parts: int = 4) -> list[float]:
    """Return round positions inside the domain, about `parts` steps apart."""
    span = domain[1] - domain[0]
    raw = span / parts
    power = 10 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(candidate - raw))
    first = math.ceil(domain[0] / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(domain[1] / step + 1e-9) + 1)]


def domain_of(values: Sequence[float], *, around_zero: bool = False) -> Domain:
    """Return a domain with a margin on both sides. Scores get [0, 1]; differences keep zero in sight."""
    if not around_zero:
        return (0.0, 1.0)
    low, high = min([0.0, *values]), max([0.0, *values])
    span = max(high - low, 0.02)
    return (max(-1.0, low - 0.12 * span), min(1.0, high + 0.12 * span))


def svg_bar(parts: Sequence[tuple[float, str, str]]) -> Markup:
    """Return a stacked bar: (share, colour class, label) from left to right."""
    at, body = 0.0, ""
    for share, colour, label in parts:
        place = f'x="{100 * at:.3f}%" width="{100 * share:.3f}%" height="10"'
        body += f'<rect class="{colour}" {place}><title>{escape(label)}</title></rect>'
        at += share
    told = escape("; ".join(label for *_, label in parts))
    return trusted(f'<svg class="plot bar" height="10" role="img" aria-label="{told}">{body}</svg>')


def heat(labels: Sequence[str], cells: Sequence[tuple[int, int, int]]) -> Markup:
    """Return a confusion map: rows are expected labels, columns answered ones. Hits stand on the diagonal in one
    colour, confusions off it in another, each as strong as the root of its share of the strongest."""
    size = 10
    side = size * len(labels)
    top = {on: max((count for row, column, count in cells if (row == column) is on), default=1) for on in (True, False)}
    body = "".join(
        f'<rect class="{"hit" if row == column else "miss"}" x="{column * size}" y="{row * size}" width="{size - 0.6}" '
        f'height="{size - 0.6}" opacity="{0.12 + 0.88 * (count / top[row == column]) ** 0.5:.2f}">'
        f"<title>{escape(labels[row])} answered as {escape(labels[column])}: {count}</title></rect>"
        for row, column, count in cells
    )
    return trusted(
        f'<svg class="heat" viewBox="-1 -1 {side + 2} {side + 2}" role="img" aria-label="confusion map of '
        f'{len(labels)} labels"><rect class="frame" x="-0.5" y="-0.5" width="{side + 0.4}" '
        f'height="{side + 0.4}"/>{body}</svg>'
    )


def _vertical(value: float, domain: Domain, kind: str) -> str:
    x = _x(value, domain)
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="{_ROW}"/>'


def _x(value: float, domain: Domain) -> str:
    """Position in per cent, kept a dot's radius inside the drawing."""
    share = min(max((value - domain[0]) / (domain[1] - domain[0]), 0.0), 1.0)
    return f"{1.5 + 97 * share:.2f}%"
