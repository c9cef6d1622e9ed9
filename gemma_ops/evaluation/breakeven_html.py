"""A comparison of costs as one self-contained page: the answer, dollars a month by volume, every break-even, every
figure.

The drawings are inline SVG with positions in per cent across and logarithmic scales, so that they fill a phone as well
as a desk; the page follows the reader's light or dark setting, and needs no network and no script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gemma_ops import __version__
from gemma_ops.evaluation import breakeven_text as text
from gemma_ops.evaluation.breakeven import Charge, CostComparison, Offer
from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.words.figures import small
from gemma_ops.words.markup import escape, trusted
from gemma_ops.words.palette import report_style

_COLOURS = ("t-q8", "t-q4", "t-bf16", "t-other", "t-base")
_HEIGHT = 300
"""Height of the drawing of dollars by volume, in CSS pixels."""
_ROW = 26


@dataclass(frozen=True)
class _Log:
    """A logarithmic scale."""

    low: float
    high: float

    def share(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return math.log(inside / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Return the powers of ten inside the scale."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


def cost_page(found: CostComparison) -> str:
    """Return the whole page."""
    return REPORT.page(
        "breakeven.html", "whole", style=report_style(), headline=text.cost_headline(found),
        own=f"{_capital(text.own_line(found.own))}.", months=_months(found), breaks=_breaks(found),
        figures=_figures(found), notes=[_capital(note) for note in text.notes(found)], version=__version__,
    )  # fmt: skip


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _months(found: CostComparison) -> Markup:
    """Draw dollars a month by answers a month: the machine in steps, one per machine; some services as slopes."""
    own = found.own
    chosen = _chosen(found.offers)
    dearest = max((offer.charges[-1].standard for offer in chosen), default=own.full)
    across = _Log(min(200 * own.per_month / dearest, own.capacity / 20), 4 * own.capacity)
    up = _Log(own.per_month / 12, own.per_month * 12)
    body = _grid(across, up)
    for place, offer in enumerate(chosen):
        body += _slope(across, up, offer.today.standard, _COLOURS[place], "line")
        for charge in offer.charges[1:]:
            body += _slope(across, up, charge.standard, _COLOURS[place], "line later")
    at = across.low
    for machines in (1, 2, 3, 4):
        until, dollars = machines * own.capacity, machines * own.per_month
        body += _segment(across, up, (at, dollars), (until, dollars), "line own t-tuned")
        if machines < 4:
            body += _segment(across, up, (until, dollars), (until, dollars + own.per_month), "line own t-tuned")
        at = until
    legend = []
    for place, offer in enumerate(chosen):
        later = ", ".join(str(charge.start) for charge in offer.charges[1:])
        priced = f"${text.money_words(offer.today.standard)} per 1,000" + (f"; dashed from {later}" if later else "")
        legend.append((_COLOURS[place], offer.name, priced))
    told = f'role="img" aria-label="{escape(text.cost_headline(found))}"'
    drawing = trusted(f'<svg class="plot" height="{_HEIGHT + 20}" {told}>{body}</svg>')
    return REPORT.fill("breakeven.html", "months", drawing=drawing, legend=legend)


def _chosen(offers: Sequence[Offer]) -> list[Offer]:
    """Return few enough services to tell apart: the cheapest and the most expensive of each kind, known rises included,
    and one in the middle of Gemini's."""
    kept: dict[str, Offer] = {}
    for kind, places in (("hosted", (0, -1)), ("gemini", (0, 0.5, -1))):
        ordered = sorted(
            (offer for offer in offers if offer.kind == kind), key=lambda offer: offer.charges[-1].standard
        )
        for place in places if ordered else ():
            offer = ordered[len(ordered) // 2 if place == 0.5 else int(place)]
            kept[offer.name] = offer
    return sorted(kept.values(), key=lambda offer: offer.today.standard)[: len(_COLOURS)]


def _breaks(found: CostComparison) -> Markup:
    """Return from which volume the machine is cheaper than each service."""
    volumes = [
        1000 * found.own.per_month / amount
        for offer in found.offers
        for amount in (offer.today.standard, offer.today.batch)
        if amount
    ]
    capacity = found.own.capacity
    across = _Log(min([*volumes, capacity / 10]) / 2, max([*(2 * volume for volume in volumes), 3 * capacity]))
    rows = [
        (offer.name, _break(across, capacity, found, offer.today), _told(found, offer.today)) for offer in found.offers
    ]
    foot = "".join(
        f'<text class="tick" x="{_x(across, tick)}" y="12" text-anchor="middle">{escape(text.count_words(tick))}</text>'
        for tick in _thinned(across.ticks(), 6)
    )
    axis = trusted(f'<svg class="plot axis" height="16" aria-hidden="true">{foot}</svg>')
    return REPORT.fill("breakeven.html", "breaks", rows=rows, axis=axis)


def _break(across: _Log, capacity: float, found: CostComparison, charge: Charge) -> Markup:
    y = _ROW / 2
    ticks = "".join(
        f'<line class="grid" x1="{_x(across, tick)}" x2="{_x(across, tick)}" y1="0" y2="{_ROW}"/>'
        for tick in across.ticks()
    )
    start = 100 * across.share(capacity)
    body = f'<rect class="beyond" x="{start:.2f}%" width="{100 - start:.2f}%" y="0" height="{_ROW}"/>{ticks}'
    places = [1000 * found.own.per_month / amount for amount in (charge.standard, charge.batch) if amount]
    if len(places) == 2:
        left, right = (_x(across, place) for place in places)
        body += f'<line class="faint" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        body += f'<circle class="hollow" cx="{right}" cy="{y}" r="4.5"/>'
    if places:
        body += f'<circle class="solid" cx="{_x(across, places[0])}" cy="{y}" r="5"/>'
    told = f'role="img" aria-label="{escape(_told(found, charge))}"'
    return trusted(f'<svg class="plot" height="{_ROW}" {told}>{body}</svg>')


def _told(found: CostComparison, charge: Charge) -> str:
    parts = []
    for name, amount in (("", charge.standard), ("batch ", charge.batch)):
        if amount:
            volume = found.break_even(amount)
            parts.append(name + ("never" if volume is None else text.count_words(volume)))
    return ", ".join(parts)


def _figures(found: CostComparison) -> Markup:
    head = ["service", "from", "standard", "batch", "cached", "break-even", "on batch", "price"]
    rows = []
    for offer in found.offers:
        for place, charge in enumerate(offer.charges):
            amounts = [charge.standard, charge.batch, charge.cached]
            volumes = [
                "–"
                if amount is None
                else "never"
                if (volume := found.break_even(amount)) is None
                else text.count_words(volume)
                for amount in amounts[:2]
            ]
            rows.append(
                [
                    offer.name if place == 0 else "",
                    "today" if place == 0 else str(charge.start),
                    *("–" if amount is None else f"${text.money_words(amount)}" for amount in amounts),
                    *volumes,
                    small("ci", offer.source),
                ]
            )
    return REPORT.fill("breakeven.html", "figures", head=head, rows=rows)


def _grid(across: _Log, up: _Log) -> str:
    body = ""
    for tick in across.ticks():
        x = _x(across, tick)
        body += f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{_HEIGHT}"/>'
    for tick in _thinned(across.ticks(), 5):
        body += (
            f'<text class="tick" x="{_x(across, tick)}" y="{_HEIGHT + 15}" '
            f'text-anchor="middle">{escape(text.count_words(tick))}</text>'
        )
    for tick in up.ticks():
        y = _y(up, tick)
        body += f'<line class="grid" x1="0%" x2="100%" y1="{y}" y2="{y}"/>'
        body += f'<text class="tick" x="0%" y="{y - 4:.1f}">${tick:,.0f}</text>'
    return body


def _slope(across: _Log, up: _Log, per_thousand: float, colour: str, kind: str) -> str:
    """Return the line of dollars that grow with the volume, clipped to the drawing."""
    low = max(across.low, 1000 * up.low / per_thousand)
    high = min(across.high, 1000 * up.high / per_thousand)
    if low >= high:
        return ""
    ends = [(volume, volume * per_thousand / 1000) for volume in (low, high)]
    return _segment(across, up, ends[0], ends[1], f"{kind} {colour}")


def _segment(across: _Log, up: _Log, start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{_x(across, start[0])}" y1="{_y(up, start[1])}" '
        f'x2="{_x(across, end[0])}" y2="{_y(up, end[1])}"/>'
    )


def _thinned(ticks: Sequence[float], most: int) -> Sequence[float]:
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else ticks


def _x(across: _Log, value: float) -> str:
    """Return the position in per cent, kept a dot's radius inside the drawing."""
    return f"{1.5 + 97 * across.share(value):.2f}%"


def _y(up: _Log, value: float) -> float:
    return round(_HEIGHT * (1 - up.share(value)), 1)
