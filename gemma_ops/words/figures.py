"""Figures as a person reads them in pages: how a target and a number are written, tables of cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from gemma_ops.family.formats import QUANTIZED
from gemma_ops.runs import digest
from gemma_ops.words.markup import Templates, trusted

_COLOURS = {"base": "t-base", "tuned": "t-tuned", **{name: each.css for name, each in QUANTIZED.items()}}


def colour(target: str) -> str:
    """Return the CSS class of a target; `palette.style` gives every class of a page its colour."""
    return _COLOURS.get(target) or f"t-{digest.of_json(target)[:10]}"


def short_name(target: str) -> str:
    """Return a name that fits a table: without the kind of target, its address and its folders."""
    kind, colon, rest = target.partition(":")
    if colon and kind == "gemini":
        return rest
    if colon and kind == "openai":
        return rest.partition("#")[2] or rest
    if colon and kind == "gguf":
        return rest.rpartition("@")[0].rpartition("/")[2] or rest
    return target.rstrip("/").rpartition("/")[2] or target


def chip(target: str) -> Markup:
    """Return a target's short name with its mark in its colour; the whole name is its title."""
    return PAGES.fill("parts.html", "chip", target=target)


def small(kind: str, text: object) -> Markup:
    """Return the text in a span of a CSS class, such as `ci` (small print) or `mono`."""
    return PAGES.fill("parts.html", "small", kind=kind, text=text)


def html_table(head: Sequence[object], rows: Sequence[Sequence[object]], *, kind: str = "") -> Markup:
    """Return a table of texts and HTML; the first column is the row's head. It scrolls sideways where the screen is
    narrow; of kind `stack`, whose head is plain text, its rows become little cards there instead."""
    return PAGES.fill("parts.html", "table", head=head, rows=rows, kind=kind)


def number(value: float, sign: str = "") -> str:
    """Return a number with three decimals and a real minus sign."""
    return f"{value:{sign}.3f}".replace("-", "−")


def interval_text(low: float, high: float, sign: str = "") -> Markup:
    """Return an interval in small print."""
    return small("ci", f"{number(low, sign)} to {number(high, sign)}")


def usd_text(value: float) -> str:
    """Return dollars with as many digits as a small amount needs."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:#.2g}" if value >= 1e-4 else f"${value:.1e}"


def seconds(value: float | None) -> str:
    """Return seconds with two or three figures; a dash where they were not measured."""
    if value is None:
        return "–"
    return f"{value:,.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def p_text(p: float) -> str:
    """Return a p-value as people read it."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def p_cell(p: float) -> Markup:
    """Return a p-value for a table. Its `<0.0001` isn't escaped: `<` before a digit opens no tag, and a report that is
    rendered again keeps its bytes, which are part of an artifact's digest."""
    return trusted(p_text(p))


PAGES = Templates(
    Path(__file__).parent / "templates",
    helpers={"colour": colour, "short": short_name, "number": number, "span": interval_text},
)
"""The templates that pages share."""
