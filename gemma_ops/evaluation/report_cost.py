"""The section of costs in the report: quality against dollars, seconds and place, as a table and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.evaluation.scatter import Dot, LogAxis, log_ticks, scatter
from gemma_ops.privacy.classes import HERE
from gemma_ops.tasks.conditions import load_words
from gemma_ops.verdicts import TargetResult, TaskFacts, Verdict
from gemma_ops.verdicts.measurements import SpeedFacts
from gemma_ops.words.figures import chip, colour, interval_text, number, seconds, short_name, small, usd_text
from gemma_ops.words.markup import escape


def cost_section(task: TaskFacts, results: Sequence[TargetResult], verdict: Verdict) -> Markup:
    """Return one line per target, in the order of the configuration."""
    primary = task.primary
    head = ["target", primary, "$ per 1,000", "first token", "whole answer", "timed with", "questions"]
    rows = [[chip(item.target), *_cells(item, primary, verdict)] for item in results]
    bases = dict.fromkeys(item.cost.basis for item in results)
    hidden = [item for item in results if item.hidden]
    return REPORT.fill(
        "cost.html", "section", primary=primary, confidence=f"{verdict.confidence:.0%}", head=head, rows=rows,
        plots=_pictures(results, primary), bases=[(_who(results, basis), basis) for basis in bases],
        hidden=" ".join(f"{item.hidden:,} rows were not shown to {short_name(item.target)}." for item in hidden),
    )  # fmt: skip


def _cells(item: TargetResult, primary: str, verdict: Verdict) -> list[Markup | str]:
    figure, money, fast = item.metrics[primary], item.cost, item.speed
    quality = "–" if figure.span is None else escape(number(figure.span[0])) + interval_text(*figure.span[1:])
    dollars = small("ci", "unknown")
    if money.usd_per_1k is not None and money.low is not None:
        ends = (
            f"at least {usd_text(money.low)}"
            if money.high is None
            else f"{usd_text(money.low)} to {usd_text(money.high)}"
        )
        dollars = escape(usd_text(money.usd_per_1k)) + small("ci", ends)
    times = [_wait(fast, "first_seconds"), _wait(fast, "seconds")]
    load = small("load", load_words(verdict, item.task, item.target))
    return [quality, dollars, *times, load, small(f"place {'here' if item.place == HERE else 'away'}", item.place)]


def _wait(fast: SpeedFacts, kind: str) -> Markup | str:
    half, most = fast.wait(f"{kind}_p50"), fast.wait(f"{kind}_p95")
    return "–" if half is None else escape(f"p50 {seconds(half)}") + small("ci", f"p95 {seconds(most)}")


def _who(results: Sequence[TargetResult], basis: str) -> str:
    return ", ".join(short_name(item.target) for item in results if item.cost.basis == basis)


def _pictures(results: Sequence[TargetResult], primary: str) -> list[Markup]:
    """Draw quality against dollars, and against seconds; each only where two targets have both."""
    drawn = [
        _picture(results, primary, lambda item: item.cost.usd_per_1k, "dollars per 1,000 answers", _dollars),
        _picture(results, primary, lambda item: item.speed.seconds_p50, "seconds to the whole answer, p50", _plain),
    ]
    return [one for one in drawn if one]


def _picture(
    results: Sequence[TargetResult],
    primary: str,
    taken: Callable[[TargetResult], float | None],
    title: str,
    shown: Callable[[float], str],
) -> Markup | None:
    known = [
        (item, value, figure)
        for item in results
        if (value := taken(item)) and (figure := item.metrics[primary].span) is not None
    ]
    if len(known) < 2:
        return None
    least, most = min(value for _, value, _ in known), max(value for _, value, _ in known)
    low, high = least / 1.6, most * 1.6
    axis = LogAxis(low, high, tuple((tick, shown(tick)) for tick in log_ticks(low, high)), title)
    dots = []
    for item, value, figure in known:
        told = f"{item.target}: {figure[0]:.3f} at {shown(value)} {title}"
        name = _fitting(short_name(item.target))
        dots.append(Dot(value, *figure, colour(item.target), name, told))
    return scatter(dots, axis, primary)


def _fitting(name: str) -> str:
    """Return a name that fits next to a point on a phone too."""
    return name if len(name) <= 20 else f"{name[:10]}…{name[-9:]}"


def _dollars(value: float) -> str:
    return f"${value:.3g}"


def _plain(value: float) -> str:
    return f"{value:.3g} s"
