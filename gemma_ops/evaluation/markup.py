"""Writing HTML without holes: every text goes through `escape`, and tables are built from cells that already did."""

from __future__ import annotations

import html
from collections.abc import Sequence

_COLOURS = {"base": "t-base", "tuned": "t-tuned", "bf16": "t-bf16", "q8_0": "t-q8", "q4_0": "t-q4"}


def escape(text: object) -> str:
    """Text as HTML, safe in elements and in quoted attributes. Control characters, which HTML can't hold, are made visible."""
    shown = "".join(
        char if char in "\n\t" or char.isprintable() or char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )
    return html.escape(shown, quote=True)


def colour(target: str) -> str:
    """CSS class of a target; one of the unknown targets looks like another, so names always stand beside."""
    return _COLOURS.get(target, "t-other")


def chip(target: str) -> str:
    """A target's name with its colour."""
    return f'<span class="chip"><i class="{colour(target)}"></i>{escape(target)}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML cells; the first column is the row's head. It scrolls sideways where the screen is narrow."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float, sign: str = "") -> str:
    """Three decimals with a real minus sign."""
    return f"{value:{sign}.3f}".replace("-", "−")


def span(low: float, high: float, sign: str = "") -> str:
    """An interval in small print."""
    return f'<span class="ci">{number(low, sign)} to {number(high, sign)}</span>'
