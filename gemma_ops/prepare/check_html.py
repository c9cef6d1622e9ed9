"""A page that shows rows token by token: self-contained, readable in light and dark, on a phone and on paper."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from gemma_ops.prepare.check_result import CheckResult
from gemma_ops.words.markup import Templates, escape, trusted


def check_page(result: CheckResult) -> str:
    """Return the whole page."""
    lengths = result.lengths
    share = lengths["tokens_with_loss"] / max(1, lengths["tokens"])
    return _PAGES.page(
        "check.html", "page", result=result, count=f"{'The first ' if result.more else ''}{result.checked:,} rows",
        table=[
            (part, *(f"{lengths[part][name]:,}" for name in ("p50", "p95", "max")))
            for part in ("prompt", "completion", "row")
        ],
        tokens=f"{lengths['tokens']:,}", loss=f"{lengths['tokens_with_loss']:,} ({share:.0%})",
        cut="" if result.max_length is None else f"({result.max_length:,}): {result.truncated:,}.",
    )  # fmt: skip


def _visible(text: str) -> Markup:
    """Return the text of a token with visible line breaks."""
    return escape(text).replace("\n", trusted("<i>⏎</i>\n"))


_PAGES = Templates(Path(__file__).parent / "templates", helpers={"visible": _visible})
