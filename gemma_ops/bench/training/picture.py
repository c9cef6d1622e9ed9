"""The comparison as one SVG: a bar for each arm's speed with the range of its repeats, and one for its memory. It needs
nothing to be shown and follows the reader's light or dark.
"""

from __future__ import annotations

import html
from typing import Any

from gemma_ops.bench.training import bench_report
from gemma_ops.planning.devices import GIB

_WIDTH, _ROW, _TOP = 860, 38, 92
_NAME, _SPEED, _MEMORY = 150, 400, 190
"""Widths in pixels of the names and of the two groups of bars."""
_GAP = 60
_STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1f2328}
.title{font-size:17px;font-weight:600}.quiet{fill:#656d76;font-size:12px}.value{font-variant-numeric:tabular-nums}
.bar{fill:#b6c2cf}.own{fill:#1a73e8}.range{stroke:#1f2328;stroke-width:1.5;opacity:.55}.back{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#8b949e}.bar{fill:#475361}.own{fill:#8ab4f8}.range{stroke:#e6edf3}.back{fill:#0d1117}}
"""


def svg(body: dict[str, Any]) -> str:
    """Draw the picture of a benchmark that has a summary."""
    arms = {name: arm for name, arm in body["summary"]["arms"].items() if "absent" not in arm}
    absent = [f"{name}: {arm['absent']}" for name, arm in body["summary"]["arms"].items() if "absent" in arm]
    title, under = bench_report.opening(body)
    height = _TOP + _ROW * len(arms) + (46 if absent else 24)
    fastest = max((arm["highest"] for arm in arms.values()), default=1.0)
    largest = max((arm["peak_bytes"] for arm in arms.values()), default=1.0)
    unit = "tokens per CPU second" if body["summary"]["clock"] == "user" else "tokens per second"
    memory = _NAME + _SPEED + _GAP
    parts = [
        _text(24, 30, "gemma-ops bench train", "title"),
        _text(24, 50, title, "quiet"),
        _text(24, 66, under, "quiet"),
        _text(_NAME, _TOP - 8, unit, "quiet"),
        _text(memory, _TOP - 8, "peak memory above the model, GiB", "quiet"),
    ]
    for index, (name, arm) in enumerate(arms.items()):
        parts += _row(_TOP + _ROW * index, name, arm, fastest, largest, memory)
    if absent:
        parts.append(_text(24, height - 14, "; ".join(absent), "quiet"))
    told = "; ".join(f"{name} {arm['tokens_per_second']:.0f} {unit}" for name, arm in arms.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{html.escape(told, quote=True)}"><style>{_STYLE}</style>'
        f'<rect class="back" width="{_WIDTH}" height="{height}" rx="8"/>{"".join(parts)}</svg>\n'
    )


def _row(top: int, name: str, arm: dict[str, Any], fastest: float, largest: float, memory: int) -> list[str]:
    colour, middle = ("own" if name == "gemma-ops" else "bar"), top + _ROW // 2
    scale = (_SPEED - 110) / fastest
    width = arm["tokens_per_second"] * scale
    low, high = (_NAME + arm[key] * scale for key in ("lowest", "highest"))
    ratio = arm["ratios"].get("trl")
    label = f"{arm['tokens_per_second']:,.4g}" + (f"  {ratio['median']:.2f}x" if ratio and name != "trl" else "")
    heap = arm["peak_bytes"] / largest * (_MEMORY - 60)
    return [
        _text(24, middle + 4, name, ""),
        f'<rect class="{colour}" x="{_NAME}" y="{top + 8}" width="{width:.1f}" height="{_ROW - 16}" rx="3"/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        _text(max(high, _NAME + width) + 8, middle + 4, label, "value"),
        f'<rect class="{colour}" x="{memory}" y="{top + 8}" width="{heap:.1f}" height="{_ROW - 16}" rx="3"/>',
        _text(memory + heap + 8, middle + 4, f"{arm['peak_bytes'] / GIB:.2f}", "value"),
    ]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{kind}">{html.escape(text)}</text>'
