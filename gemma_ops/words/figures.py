"""Writing HTML without holes: every text goes through `escape`, and tables are built from cells that already did."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from gemma_ops.family.formats import GGUF
from gemma_ops.runs import digest

_COLOURS = {"base": "t-base", "tuned": "t-tuned", **{name: each.css for name, each in GGUF.items()}}


def stylesheet() -> str:
    """The style sheet that reports and pages share."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def escape(text: object) -> str:
    """Text as HTML, safe in elements and in quoted attributes. Control characters, which HTML can't hold, are made
    visible."""
    shown = "".join(
        char if char in "\n\t" or char.isprintable() or char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )
    return html.escape(shown, quote=True)


def colour(target: str) -> str:
    """CSS class of a target, its own; `palette.style` gives every class of a page its colour."""
    return _COLOURS.get(target) or f"t-{digest.of_json(target)[:10]}"


def short_name(target: str) -> str:
    """A name that fits a table: without the kind of target, its address and its folders."""
    kind, colon, rest = target.partition(":")
    if colon and kind == "gemini":
        return rest
    if colon and kind == "openai":
        return rest.partition("#")[2] or rest
    if colon and kind == "gguf":
        return rest.rpartition("@")[0].rpartition("/")[2] or rest
    return target.rstrip("/").rpartition("/")[2] or target


def chip(target: str) -> str:
    """A target's short name with its mark in its colour; the whole name is its title."""
    return (
        f'<span class="chip" title="{escape(target)}"><svg class="key-mark {colour(target)}" width="13" height="13" aria-hidden="true">'
        f'<use href="#mark-{colour(target)}" x="6.5" y="6.5"/></svg>{escape(short_name(target))}</span>'
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML cells; the first column is the row's head. It scrolls sideways where the screen is narrow; of
    kind `stack`, whose head is plain text, its rows become little cards there instead."""
    names = [f' data-label="{name}"' if kind == "stack" else "" for name in head[1:]]
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td{name}>{cell}</td>' for name, cell in zip(names, row[1:], strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float, sign: str = "") -> str:
    """Three decimals with a real minus sign."""
    return f"{value:{sign}.3f}".replace("-", "−")


def interval_text(low: float, high: float, sign: str = "") -> str:
    """An interval in small print."""
    return f'<span class="ci">{number(low, sign)} to {number(high, sign)}</span>'


def usd_text(value: float) -> str:
    """Dollars with as many digits as a small amount needs."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:#.2g}" if value >= 1e-4 else f"${value:.1e}"


def seconds(value: float | None) -> str:
    """Seconds with two or three figures; a dash where they were not measured."""
    if value is None:
        return "–"
    return f"{value:,.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def p_text(p: float) -> str:
    """A p-value as people read it."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
