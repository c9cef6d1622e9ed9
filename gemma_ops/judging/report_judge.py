"""A comparison's section in the report: win rates drawn, habits and canaries in tables, and who may gate, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from gemma_ops.judging import judging_text
from gemma_ops.judging.judged import JudgedComparison
from gemma_ops.words import palette, svg
from gemma_ops.words.figures import PAGES, chip, html_table, interval_text, number, p_cell, small
from gemma_ops.words.markup import Templates, escape

Facts = dict[str, Any]
_UNIT = (0.0, 1.0)
_PAGES = Templates(Path(__file__).parent / "templates", *PAGES.folders, helpers=PAGES.helpers)


def judge_section_page(judged: JudgedComparison) -> Markup:
    """Return the section as HTML; it needs the report's style sheet."""
    return judge_section(judged.body)


def judge_section(body: Facts) -> Markup:
    """Return the section as HTML from what `judge.json` holds."""
    return _PAGES.fill(
        "judge.html", "section", heading=judging_text.heading(body), released=judging_text.released_words(body) or "",
        warnings=list(judging_text.judge_warnings(body)),
        drawn=_pairwise(body) if body["mode"] == "pairwise" else _pointwise(body),
        panel=_panel(body), judges=len(body["judges"]), canaries=_canaries(body), texts=_texts(body),
        calibrations=_calibrations(body), by=body["standing"]["by"] or "", standing=body["standing"]["words"],
    )  # fmt: skip


def judge_page(body: Facts) -> str:
    """Return a self-contained page with this one section."""
    names = side_names(body)
    return _PAGES.page(
        "judge.html", "whole", style=palette.page_style(names), marks=palette.marks(names), section=judge_section(body)
    )


def side_names(body: Facts) -> list[str]:
    """Return the sides of a comparison, which are targets, or files of answers."""
    return [body[side]["name"] for side in ("first", "second") if body.get(side)]


def _pairwise(body: Facts) -> Markup:
    rows: list[Markup] = []
    for name, entry in judging_text.summary_entries(body):
        kinds = [("", entry["win_rate"]), ("at equal length", entry["controlled"])]
        kinds.append(("corrected for its errors", entry["corrected"].get("pairs")))
        for index, (kind, figure) in enumerate((kind, figure) for kind, figure in kinds if figure):
            title = _PAGES.fill("judge.html", "judge", name="" if index else name, kind=kind if index else "")
            rows.append(_row(title, figure, f"{name} {kind}", opens=index == 0 and bool(rows)))
    habits = [
        [
            name,
            *(f"{entry['labels'][key]:,}" for key in ("first", "tie", "second")),
            p_cell(entry["win_rate"]["p"]) if entry["win_rate"] else "–",
            _cell(entry["flips"]),
            _cell(entry["first_slot"]),
            _cell(entry["longer_wins"]),
            _cell((entry["retest"] or {}).get("agreement")),
            f"{entry['invalid']:,}",
        ]
        for name, entry in judging_text.summary_entries(body)
    ]
    criteria = [
        [judge["name"], *(_cell(judge["criteria"].get(c["name"])) for c in body["criteria"])]
        for judge in body["judges"]
    ]
    return _PAGES.fill(
        "judge.html", "pairwise", first=body["first"]["name"], second=body["second"]["name"], rows=rows, habits=habits,
        axis=svg.axis(_UNIT, title="rate at which it is preferred"), names=_criteria(body), criteria=criteria,
    )  # fmt: skip


def _pointwise(body: Facts) -> Markup:
    rows: list[Markup] = []
    for name, entry in judging_text.summary_entries(body):
        for index, (side, facts) in enumerate(entry["sides"].items()):
            figures = [("score", facts["score"]), ("passes", facts["pass_rate"])]
            figures.append(("passes, corrected", entry["corrected"].get(side)))
            for place, (kind, figure) in enumerate((kind, figure) for kind, figure in figures if figure):
                who = "" if place else body[side]["name"]
                title = _PAGES.fill("judge.html", "judge", name="" if place else name, kind=kind, target=who)
                rows.append(_row(title, figure, f"{name} {kind}", opens=bool(rows) and not index + place))
    criteria = [
        [_PAGES.fill("judge.html", "judged_by", name=judge["name"], target=body[side]["name"])]
        + [
            f"{facts['criteria'][c['name']]['mean']:.2f}" if c["name"] in facts["criteria"] else "–"
            for c in body["criteria"]
        ]
        for judge in body["judges"]
        for side, facts in judge["sides"].items()
    ]
    return _PAGES.fill(
        "judge.html", "pointwise", scale=f"{body['scale'][0]} to {body['scale'][1]}", rows=rows, names=_criteria(body),
        criteria=criteria, axis=svg.axis(_UNIT, title="score or share that passes"),
    )  # fmt: skip


def _criteria(body: Facts) -> list[str]:
    return [criterion["name"] for criterion in body["criteria"]]


def _panel(body: Facts) -> str:
    return ", ".join(
        f"{level} {number(value) if value is not None else 'not defined'}"
        for level, value in (body["panel"]["alpha"] if body["panel"] else {}).items()
    )


def _canaries(body: Facts) -> Markup:
    rows = []
    for judge in body["judges"]:
        cells = []
        for kind in ("identical", "broken", "injected"):
            results = [result for result in judge["canaries"] if result["kind"] == kind]
            passed = sum(result["passed"] for result in results)
            mark = "pass" if results and passed == len(results) else "fail"
            cells.append(small(f"pill {mark}", f"{passed} of {len(results)}"))
        rows.append([judge["name"], *cells])
    return html_table(
        ["canaries passed", "equal answers tie", "a broken answer loses", "an injected order is ignored"], rows
    )


def _texts(body: Facts) -> Markup:
    sides = [(body[side]["name"], body["texts"][side]) for side in ("first", "second") if side in body["texts"]]
    keys = [key for key in sides[0][1] if not key.startswith("words")]
    rows = [
        [chip(name), f"{facts['words_mean']:,.0f}", f"{facts['words_p50']:,.0f}", f"{facts['words_p95']:,.0f}"]
        + [f"{facts[key]:.0%}" for key in keys]
        for name, facts in sides
    ]
    return html_table(["answers of", "words", "p50", "p95", *keys], rows)


def _calibrations(body: Facts) -> Markup | str:
    rows = [
        [
            name,
            f"{known['labels']:,}",
            _cell(known["kappa"]),
            _cell(known["agreement"]),
            _cell(known["sensitivity"]),
            _cell(known["specificity"]),
        ]
        for name, entry in judging_text.summary_entries(body)
        if (known := entry["calibration"])
    ]
    if not rows:
        return ""
    return html_table(["against people", "labels", "kappa", "equal labels", "sensitivity", "specificity"], rows)


def _row(title: Markup, figure: Facts, label: str, *, opens: bool) -> Markup:
    value, low, high = figure["value"], figure["low"], figure["high"]
    drawing = svg.whisker(
        value, low, high, _UNIT, "t-other", marks=(0.5,),
        label=f"{label}: {value:.3f}, interval {low:.3f} to {high:.3f}",
    )  # fmt: skip
    return _PAGES.fill("parts.html", "scale_row", name=title, found=(value, low, high), drawing=drawing, opens=opens)


def _cell(figure: Facts | None) -> Markup | str:
    return "–" if not figure else escape(number(figure["value"])) + interval_text(figure["low"], figure["high"])
