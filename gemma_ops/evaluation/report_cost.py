"""What targets take, in the report: quality beside dollars, seconds and place, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemma_ops.evaluation import svg
from gemma_ops.evaluation.markup import chip, colour, escape, number, seconds, short, span, table, usd

Facts = dict[str, Any]


def section(task: Facts, results: Sequence[Facts], confidence: float) -> str:
    """One line per target, in the order of the configuration."""
    primary = task["primary"]
    head = ["target", escape(primary), "$ per 1,000", "first token", "whole answer", "questions"]
    rows = [[chip(item["target"]), *_cells(item, primary)] for item in results]
    bases = dict.fromkeys(item["cost"]["basis"] for item in results)
    told = "".join(f"<li>{_who(results, basis)}: {escape(basis)}</li>" for basis in bases)
    hidden = [item for item in results if item["hidden"]]
    note = " ".join(f"{item['hidden']:,} rows were not shown to {short(item['target'])}." for item in hidden)
    return (
        '<section class="card"><h3>Quality, cost and time</h3>'
        f'<p class="note">Dollars per 1,000 answers with {confidence:.0%} intervals; seconds are what whoever asks waits, half of the time and 95% of the time. {escape(note)}</p>'
        f"{_picture(results, primary)}{table(head, rows, kind='stack')}"
        f'<p class="note">Where the dollars are from:</p><ul class="note">{told}</ul></section>'
    )


def _cells(item: Facts, primary: str) -> list[str]:
    figure, money, fast = item["metrics"][primary], item["cost"], item["speed"]
    quality = "–" if figure["value"] is None else number(figure["value"]) + span(figure["low"], figure["high"])
    dollars = '<span class="ci">unknown</span>'
    if money["usd_per_1k"] is not None:
        ends = (
            f"at least {usd(money['low'])}" if money["high"] is None else f"{usd(money['low'])} to {usd(money['high'])}"
        )
        dollars = f'{usd(money["usd_per_1k"])}<span class="ci">{ends}</span>'
    times = [_wait(fast, "first_seconds"), _wait(fast, "seconds")]
    kind = "here" if item["place"] == "stays here" else "away"
    return [quality, dollars, *times, f'<span class="place {kind}">{escape(item["place"])}</span>']


def _wait(fast: Facts, kind: str) -> str:
    half, most = fast[f"{kind}_p50"], fast[f"{kind}_p95"]
    return "–" if half is None else f'{seconds(half)}<span class="ci">p95 {seconds(most)}</span>'


def _who(results: Sequence[Facts], basis: str) -> str:
    return ", ".join(escape(short(item["target"])) for item in results if item["cost"]["basis"] == basis)


def _picture(results: Sequence[Facts], primary: str) -> str:
    """Quality upwards, dollars to the right on a logarithmic scale; only where two targets have both."""
    known = [item for item in results if item["cost"]["usd_per_1k"] and item["metrics"][primary]["value"] is not None]
    if len(known) < 2:
        return ""
    costs = [item["cost"]["usd_per_1k"] for item in known]
    domain = (math.floor(math.log10(min(costs)) - 0.15), math.ceil(math.log10(max(costs)) + 0.15))
    dots = [
        svg.Dot(
            math.log10(item["cost"]["usd_per_1k"]),
            item["metrics"][primary]["value"],
            item["metrics"][primary]["low"],
            item["metrics"][primary]["high"],
            colour(item["target"]),
            f"{item['target']}: {item['metrics'][primary]['value']:.3f} at {usd(item['cost']['usd_per_1k'])} per 1,000",
        )
        for item in known
    ]
    names = " ".join(chip(item["target"]) + "&ensp;" for item in known)
    ticks = [(float(power), f"${10.0**power:g}") for power in range(domain[0], domain[1] + 1)]
    return (
        f'<p class="note">{names}</p>{svg.scatter(dots, (float(domain[0]), float(domain[1])), ticks)}'
        f'<p class="note axisname">{escape(primary)} upwards, dollars per 1,000 answers to the right; left and up is better</p>'
    )
