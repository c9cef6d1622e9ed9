"""A calibration in a few plain lines for the terminal."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.judging.calibration import ENOUGH, KAPPA, TWICE, Calibration, Errors, Known
from gemma_ops.stats.intervals import Interval


def calibration_lines(found: Calibration, path: Path) -> list[str]:
    """Return per judge agreement, errors and habits; what it allows; what is weak about it."""
    text = [f"{found.labels:,} labelled items, {found.mode}, {found.confidence:.0%} intervals"]
    if found.twice:
        text.append(f"  two people   {_people(found)}")
    for known in found.judges:
        text += _judge(known)
    if found.labels < ENOUGH:
        text.append(f"warning: {found.labels} labels say little; {ENOUGH} or more make the corrected rate worth having")
    if "unknown" in found.families:
        text.append("warning: it is not known who wrote the answers, so this covers no judge's relatives")
    text.append(f"calibration: {path}")
    text.append(f"use it with: --set evaluate.judge.calibration={path}")
    return text


def _people(found: Calibration) -> str:
    if found.twice < TWICE:
        return f"not enough labels for a kappa: {found.twice:,} items have a second one, and {TWICE} is the least"
    if found.people is None:
        return f"kappa not defined on {found.twice:,} items: one of them, or both, gave one label throughout"
    return f"kappa {_span(found.people)} on {found.twice:,} items"


def _judge(known: Known) -> list[str]:
    verdict = "may gate if nothing else forbids it" if known.good else f"may not gate: kappa is not shown to be {KAPPA}"
    text = [
        f"  {known.name}: {verdict}",
        f"    kappa {_span(known.kappa)}   equal labels {_span(known.agreement)}   on {known.labels:,} items"
        + (f", {known.lost:,} without a valid verdict" if known.lost else ""),
        f"    sensitivity {_rate(known.sensitivity)}   specificity {_rate(known.specificity)}",
        f"    rate by the judge {known.judge_rate:.3f}, by people {known.human_rate:.3f}",
    ]
    habits = []
    for key, name in (("flips", "flips"), ("first_slot", "slot A"), ("longer_wins", "longer wins")):
        if figure := known.details.get(key):
            habits.append(f"{name} {figure['value']:.0%} [{figure['low']:.0%}, {figure['high']:.0%}]")
    failed = [result for result in known.details.get("canaries", ()) if not result["passed"]]
    if failed:
        habits.append(f"FAILED {len(failed)} of {len(known.details['canaries'])} canaries")
    return [*text, *([f"    {', '.join(habits)}"] if habits else [])]


def _rate(found: Errors | None) -> str:
    return _span(found) + (f" of {found.n:,}" if found else "")


def _span(found: Interval | Errors | None) -> str:
    return "not defined" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
