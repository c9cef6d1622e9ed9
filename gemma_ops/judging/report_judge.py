"""A comparison's section in the report: win rates drawn, habits and canaries in tables, and who may gate, in words."""

from __future__ import annotations

from typing import Any

from gemma_ops.judging import judging_text
from gemma_ops.judging.judged import JudgedComparison
from gemma_ops.words import palette, svg
from gemma_ops.words.figures import chip, escape, html_table, interval_text, number, p_text, stylesheet

Facts = dict[str, Any]
_UNIT = (0.0, 1.0)


def judge_section_page(judged: JudgedComparison) -> str:
    """The section as HTML; it needs the report's style sheet."""
    return judge_section(judged.body)


def judge_section(body: Facts) -> str:
    """As `render`, from what `judge.json` holds."""
    drawn = _pairwise(body) if body["mode"] == "pairwise" else _pointwise(body)
    return (
        f'<section class="card"><h3>What judges say</h3><p class="note">{escape(judging_text.heading(body))}</p>'
        f"{_released(body)}{_loud(body)}{drawn}{_panel(body)}{_canaries(body)}{_texts(body)}{_calibrations(body)}{_standing(body)}</section>"
    )


def judge_page(body: Facts) -> str:
    """A self-contained page with this one section."""
    names = side_names(body)
    css = stylesheet() + palette.style(names)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Judged</title><style>\n{css}</style></head>\n<body><main>\n<h1>Judged</h1>\n{palette.marks(names)}{judge_section(body)}\n</main></body></html>\n"
    )


def side_names(body: Facts) -> list[str]:
    """The sides of a comparison, which are targets, or files of answers."""
    return [body[side]["name"] for side in ("first", "second") if body.get(side)]


def _released(body: Facts) -> str:
    text = judging_text.released_words(body)
    return f'<p class="note"><b>{escape(text)}</b></p>' if text else ""


def _loud(body: Facts) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in judging_text.judge_warnings(body))
    return f"<h4>Before you believe it</h4><ul>{items}</ul>" if items else ""


def _pairwise(body: Facts) -> str:
    first, second = body["first"]["name"], body["second"]["name"]
    rows = ""
    for name, entry in judging_text.summary_entries(body):
        kinds = [("", entry["win_rate"]), ("at equal length", entry["controlled"])]
        kinds.append(("corrected for its errors", entry["corrected"].get("pairs")))
        for index, (kind, figure) in enumerate((kind, figure) for kind, figure in kinds if figure):
            title = f"<b>{escape(name)}</b>" if index == 0 else f"<small>{escape(kind)}</small>"
            rows += _row(title, figure, f"{name} {kind}", opens=index == 0 and bool(rows))
    head = ["judge", "better", "even", "worse", "p", "flips", "slot A", "longer wins", "asked again, same", "invalid"]
    body_rows = [
        [
            escape(name),
            *(f"{entry['labels'][key]:,}" for key in ("first", "tie", "second")),
            p_text(entry["win_rate"]["p"]) if entry["win_rate"] else "–",
            _cell(entry["flips"]),
            _cell(entry["first_slot"]),
            _cell(entry["longer_wins"]),
            _cell((entry["retest"] or {}).get("agreement")),
            f"{entry['invalid']:,}",
        ]
        for name, entry in judging_text.summary_entries(body)
    ]
    criteria = [
        [escape(judge["name"]), *(_cell(judge["criteria"].get(c["name"])) for c in body["criteria"])]
        for judge in body["judges"]
    ]
    return (
        f'<p class="note">How often {chip(first)} is preferred to {chip(second)}; a pair on which a judge contradicts itself '
        f"when the answers change places counts one half.</p>{rows}{_foot('rate at which it is preferred')}<h4>Habits</h4>{html_table(head, body_rows)}"
        f"<h4>By criterion</h4>{html_table(['judge', *(escape(c['name']) for c in body['criteria'])], criteria)}"
    )


def _pointwise(body: Facts) -> str:
    rows = ""
    for name, entry in judging_text.summary_entries(body):
        for index, (side, facts) in enumerate(entry["sides"].items()):
            figures = [("score", facts["score"]), ("passes", facts["pass_rate"])]
            figures.append(("passes, corrected", entry["corrected"].get(side)))
            for place, (kind, figure) in enumerate((kind, figure) for kind, figure in figures if figure):
                who = f"{escape(name)}: {chip(body[side]['name'])}" if place == 0 else ""
                rows += _row(
                    f"{who}<small>{kind}</small>", figure, f"{name} {kind}", opens=bool(rows) and not index + place
                )
    scale = f"{body['scale'][0]} to {body['scale'][1]}"
    criteria = [
        [f"{escape(judge['name'])}: {chip(body[side]['name'])}"]
        + [
            f"{facts['criteria'][c['name']]['mean']:.2f}" if c["name"] in facts["criteria"] else "–"
            for c in body["criteria"]
        ]
        for judge in body["judges"]
        for side, facts in judge["sides"].items()
    ]
    return (
        f'<p class="note">Scores are means of the criteria ({scale}), brought to 0 to 1; “passes” is the judge\'s own verdict.</p>'
        f"{rows}{_foot('score or share that passes')}<h4>By criterion, {scale}</h4>"
        + html_table(["judge", *(escape(c["name"]) for c in body["criteria"])], criteria)
    )


def _panel(body: Facts) -> str:
    if not body["panel"]:
        return ""
    alphas = ", ".join(
        f"{level} {number(value) if value is not None else 'not defined'}"
        for level, value in body["panel"]["alpha"].items()
    )
    return f'<p class="note">Krippendorff\'s alpha of the {len(body["judges"])} judges: {escape(alphas)}.</p>'


def _canaries(body: Facts) -> str:
    rows = []
    for judge in body["judges"]:
        cells = []
        for kind in ("identical", "broken", "injected"):
            results = [result for result in judge["canaries"] if result["kind"] == kind]
            passed = sum(result["passed"] for result in results)
            mark = "pass" if results and passed == len(results) else "fail"
            cells.append(f'<span class="pill {mark}">{passed} of {len(results)}</span>')
        rows.append([escape(judge["name"]), *cells])
    head = ["canaries passed", "equal answers tie", "a broken answer loses", "an injected order is ignored"]
    return f"<h4>Canaries</h4>{html_table(head, rows)}"


def _texts(body: Facts) -> str:
    sides = [(body[side]["name"], body["texts"][side]) for side in ("first", "second") if side in body["texts"]]
    keys = [key for key in sides[0][1] if not key.startswith("words")]
    rows = [
        [chip(name), f"{facts['words_mean']:,.0f}", f"{facts['words_p50']:,.0f}", f"{facts['words_p95']:,.0f}"]
        + [f"{facts[key]:.0%}" for key in keys]
        for name, facts in sides
    ]
    return f"<h4>Length and format</h4>{html_table(['answers of', 'words', 'p50', 'p95', *keys], rows)}"


def _calibrations(body: Facts) -> str:
    rows = [
        [
            escape(name),
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
    head = ["against people", "labels", "kappa", "equal labels", "sensitivity", "specificity"]
    return f"<h4>Calibration</h4>{html_table(head, rows)}"


def _standing(body: Facts) -> str:
    by = body["standing"]["by"]
    pill = f"{escape(by)} decides" if by else "report only"
    items = "".join(f"<li>{escape(text)}</li>" for text in body["standing"]["words"])
    return f'<h4>May it gate?</h4><p><span class="pill {"pass" if by else "inconclusive"}">{pill}</span></p><ul>{items}</ul>'


def _row(title: str, figure: Facts, label: str, *, opens: bool) -> str:
    drawing = svg.whisker(
        figure["value"], figure["low"], figure["high"], _UNIT, "t-other", marks=(0.5,),
        label=f"{label}: {figure['value']:.3f}, interval {figure['low']:.3f} to {figure['high']:.3f}",
    )  # fmt: skip
    return (
        f'<div class="row{" open" if opens else ""}"><div class="name">{title}</div>{drawing}'
        f'<div class="figure"><b>{number(figure["value"])}</b>&ensp;{interval_text(figure["low"], figure["high"])}</div></div>'
    )


def _foot(title: str) -> str:
    return f'<div class="row foot"><div></div>{svg.axis(_UNIT, title=title)}<div class="figure"></div></div>'


def _cell(figure: Facts | None) -> str:
    return "–" if not figure else f"{number(figure['value'])}{interval_text(figure['low'], figure['high'])}"
