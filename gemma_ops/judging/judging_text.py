"""A short summary of a comparison: plain lines for a terminal, Markdown for a pull-request comment. Neither shows a
row's text."""

from __future__ import annotations

from typing import Any

from gemma_ops.words.figures import p_text

Facts = dict[str, Any]


def judging_lines(body: Facts) -> list[str]:
    """Return who was compared, each judge and the panel, what to be wary of, and who may gate."""
    found = [heading(body), *([text] if (text := released_words(body)) else [])]
    every = summary_entries(body)
    width = max(len(name) for name, _ in every)
    for name, entry in every:
        if body["mode"] == "pairwise":
            found.append(f"  {name:<{width}}  wins {span_words(entry['win_rate'])}{_pairwise(entry)}")
            continue
        for side, facts in entry["sides"].items():
            found.append(
                f"  {name:<{width}}  {body[side]['name']}: score {span_words(facts['score'])}  passes "
                f"{span_words(facts['pass_rate'])}"
                + (f"  corrected {span_words(entry['corrected'][side])}" if side in entry["corrected"] else "")
            )
        if entry.get("difference"):
            found.append(f"  {name:<{width}}  difference {span_words(entry['difference'], '+')}")
    if body["panel"]:
        shown = ", ".join(f"{level} {_number(value)}" for level, value in body["panel"]["alpha"].items())
        found.append(f"  Krippendorff's alpha of the panel: {shown}")
    found += [f"warning: {text}" for text in judge_warnings(body)]
    found += [f"  {text}" for text in body["standing"]["words"]]
    return found


def judging_markdown(body: Facts) -> str:
    """Return a Markdown fragment with one small table."""
    text = [f"### Judged: {heading(body)}", "", *([told, ""] if (told := released_words(body)) else [])]
    if body["mode"] == "pairwise":
        text += ["| judge | win rate | at equal length | corrected | flips | p |", "|---|---:|---:|---:|---:|---:|"]
        for name, entry in summary_entries(body):
            flips = "–" if not entry["flips"] else f"{entry['flips']['value']:.0%}"
            rate = entry["win_rate"]
            cells = [
                span_words(rate),
                span_words(entry["controlled"]),
                span_words(entry["corrected"].get("pairs")),
                flips,
            ]
            text.append(f"| `{name}` | {' | '.join(cells)} | {p_text(rate['p']) if rate else '–'} |")
    else:
        text += ["| judge | answers of | score | pass rate | corrected |", "|---|---|---:|---:|---:|"]
        for name, entry in summary_entries(body):
            for side, facts in entry["sides"].items():
                cells = [
                    span_words(facts["score"]),
                    span_words(facts["pass_rate"]),
                    span_words(entry["corrected"].get(side)),
                ]
                text.append(f"| `{name}` | `{body[side]['name']}` | {' | '.join(cells)} |")
    text += [
        "",
        *(f"- ⚠️ {line}" for line in judge_warnings(body)),
        *(f"- {line}" for line in body["standing"]["words"]),
        "",
    ]
    return "\n".join(text)


def heading(body: Facts) -> str:
    """Return what was compared, in one line."""
    sides = body["first"]["name"] + (f" against {body['second']['name']}" if body["second"] else "")
    where = f" on {body['task']}" if body["task"] else ""
    how = "both orders" if body["mode"] == "pairwise" else "each answer alone"
    decided = f", {body['decided']:,} of them needed no judge" if body["decided"] else ""
    return f"{sides}{where}: {body['pairs']:,} rows, {how}{decided} ({body['confidence']:.0%} intervals)"


def released_words(body: Facts) -> str:
    """Return what was shown because a person released it, with the reason; empty where nothing was."""
    if not body.get("release"):
        return ""
    shown = [side for side in (body["first"], body["second"]) if side and side["answers"] != side["learned"]]
    who = " and ".join(f"{side['name']} (learned from {side['learned']} rows)" for side in shown)
    return f"Answers of {who} were released to {body['release']['to']}: {body['release']['reason']}"


def summary_entries(body: Facts) -> list[tuple[str, Facts]]:
    """Return the panel first, then each judge."""
    panel = [("panel", body["panel"])] if body["panel"] else []
    return [*panel, *((judge["name"], judge) for judge in body["judges"])]


def judge_warnings(body: Facts) -> list[str]:
    """Return everything a reader must know before believing a number; failed canaries first and loudest."""
    found = []
    for judge in body["judges"]:
        failed = [result for result in judge["canaries"] if not result["passed"]]
        if failed:
            kinds = ", ".join(sorted({result["kind"] for result in failed}))
            found.append(
                f"UNFIT: {judge['name']} failed {len(failed)} of {len(judge['canaries'])} canaries ({kinds}); "
                "don't decide anything on its verdicts"
            )
    for judge in body["judges"]:
        found += [*(f"{judge['name']}: {text}" for text in judge["warnings"]), *judge["related"]]
    return found


def span_words(found: Facts | None, sign: str = "") -> str:
    """Return a figure with its interval."""
    if found is None:
        return "–"
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def _pairwise(entry: Facts) -> str:
    labels = entry["labels"]
    parts = [f"better {labels['first']}, even {labels['tie']}, worse {labels['second']}"]
    if entry["controlled"]:
        parts.append(f"at equal length {span_words(entry['controlled'])}")
    if entry["corrected"]:
        parts.append(f"corrected {span_words(entry['corrected']['pairs'])}")
    if entry["flips"]:
        parts.append(f"flips {entry['flips']['value']:.0%}")
    return "  " + ", ".join(parts)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
