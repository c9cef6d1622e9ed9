"""A page that shows rows token by token: self-contained, readable in light and dark, on a phone and on paper."""

from __future__ import annotations

from html import escape

from gemma_ops.prepare.check_result import CheckResult
from gemma_ops.prepare.row_view import RowView

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --paper: #fbfaf7; --soft: #6b7280; --line: #dcd8cf; --card: #fff;
  --loss: #0b6b3a; --loss-bg: #d9f2e2; --loss-bg2: #c4e8d2; --plain-bg: #f0eee8; --error: #b42318; --warning: #a15c07; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --paper: #15171a; --soft: #9aa0a8; --line: #33373d;
  --card: #1d2024; --loss: #8fe3b4; --loss-bg: #12402a; --loss-bg2: #175236; --plain-bg: #26292e; --error: #ff8a7a; --warning: #f2b95e; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p.soft, .soft { color: var(--soft); }
table { border-collapse: collapse; } th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 500; color: var(--soft); }
td.text { text-align: left; } .wide { width: 100%; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--soft); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; margin: 1rem 0; }
article h3 { margin: 0; font: 500 .85rem ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
article h4 { margin: .7rem 0 0; font: 500 .85rem system-ui, sans-serif; }
article ul { margin: .4rem 0 0; padding-left: 1.1rem; font-size: .9rem; }
.tokens { font: .85rem/1.75 ui-monospace, SFMono-Regular, Menlo, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin-top: .6rem; }
.tokens span { border-radius: .2rem; padding: .1em 0; } .tokens span:nth-child(odd) { background: var(--plain-bg); }
.tokens .loss { color: var(--loss); background: var(--loss-bg2); } .tokens .loss:nth-child(odd) { background: var(--loss-bg); }
.tokens i { font-style: normal; opacity: .45; }
.key { border-radius: .2rem; padding: .1em .3em; color: var(--loss); background: var(--loss-bg); }
"""


def check_page(result: CheckResult) -> str:
    """The whole page."""
    lengths = result.lengths
    rows = "".join(
        f"<tr><td>{part}</td>"
        + "".join(f"<td>{lengths[part][name]:,}</td>" for name in ("p50", "p95", "max"))
        + "</tr>"
        for part in ("prompt", "completion", "row")
    )
    share = lengths["tokens_with_loss"] / max(1, lengths["tokens"])
    cut = (
        ""
        if result.max_length is None
        else f" Longer than train.max_length ({result.max_length:,}): {result.truncated:,}."
    )
    count = f"{'The first ' if result.more else ''}{result.checked:,} rows, layout {escape(result.layout)}."
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Training data, token by token</title><style>{_STYLE}</style></head><body>"
        f"<h1>Training data, token by token</h1><p class=soft>{count}</p>"
        f"<table><tr><th>tokens</th><th>p50</th><th>p95</th><th>max</th></tr>{rows}</table>"
        f"<p>{lengths['tokens']:,} tokens, of which {lengths['tokens_with_loss']:,} ({share:.0%}) "
        f"<span class=key>carry loss</span>.{cut}</p>{_findings(result)}<h2>Rows</h2>"
        + "".join(map(_row, result.rows))
        + "</body></html>\n"
    )


def _findings(result: CheckResult) -> str:
    told = "".join(f"<p class=warning>{escape(line)}</p>" for line in (*result.template, *result.thinned))
    told += "".join(
        f"<p class=error>The run would refuse: {escape(what)}<br><span class=soft>{escape(fix)}</span></p>"
        for what, fix in result.refusals
    )
    if not result.totals:
        return f"<h2>Findings</h2>{told or '<p>Nothing to complain about.</p>'}"
    first = result.first
    body = "".join(
        f"<tr><td class={first[code].level}>{escape(code)}</td><td>{count:,}</td>"
        f"<td class=text>{escape(first[code].what)}<br><span class=soft>First {escape(first[code].where)}. {escape(first[code].fix)}</span></td></tr>"
        for code, count in result.totals.items()
    )
    return f"<h2>Findings</h2>{told}<table class=wide><tr><th>code</th><th>rows</th><th></th></tr>{body}</table>"


def _row(row: RowView) -> str:
    findings = "".join(f"<li class={item.level}>{escape(item.what)}</li>" for item in row.findings)
    listed = f"<ul>{findings}</ul>" if findings else ""
    shown = "".join(map(_tokens, [row.tokens, *row.more]))
    if row.rejected:
        wanted = f"<h4>chosen</h4>{shown}" if row.tokens else ""
        shown = f"{wanted}<h4>rejected</h4>{_tokens(row.rejected)}"
    return f"<article><h3>{escape(row.source)} · {escape(row.id)}</h3>{listed}{shown}</article>"


def _tokens(tokens: list[tuple[str, bool]]) -> str:
    spans = "".join(f"<span{' class=loss' if loss else ''}>{_visible(text)}</span>" for text, loss in tokens)
    return f"<div class=tokens>{spans}</div>"


def _visible(text: str) -> str:
    return escape(text).replace("\n", "<i>⏎</i>\n")
