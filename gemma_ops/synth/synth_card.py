"""The data card: what these rows are, who wrote them from what, under which terms, and what was filtered out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops.config import SynthConfig
from gemma_ops.runs.durable import write_json, write_text
from gemma_ops.synth.synth_facts import SynthesisCounts
from gemma_ops.synth.synth_report import synthesis_metrics, synthesis_report

_LABELS = {
    "written": "rows written by the teacher",
    "checks": "after shape, language and evidence",
    "exact_duplicate": "after exact duplicates",
    "overlap": "after overlap with evaluation tasks",
    "pii": "after personal data",
    "near_duplicate": "after near duplicates",
    "judge": "after the judge",
}

_SPLIT = (
    "Rows that share a document (or a bundle of seeds) share a group, and `prepare` keeps a group on one side of "
    "training and validation."
)
_LIMITS = (
    "A quotation was found letter by letter in the source (white space aside); whether the answer follows from it "
    "was not checked by rule. Languages are told apart by their small words. The rows have the teacher's blind spots."
)
_BOUND = "The teacher's terms bind whoever uses these rows, whatever licence the trained model has."


def write_synthesis(out: Path, settings: SynthConfig, facts: SynthesisCounts) -> dict[str, float]:
    """Write `report.json` and `card.md` from the same facts, and return the step's metrics."""
    body = synthesis_report(settings, facts)
    write_json(out / "report.json", body)
    write_text(out / "card.md", synthesis_card(body))
    return synthesis_metrics(settings, facts, body)


def synthesis_card(body: dict[str, Any]) -> str:
    """Return the report as a page of Markdown."""
    rows = body["rows"]
    what = [f"{rows['rows']:,} rows"] + ([f"{rows['pairs']:,} preference pairs"] if rows["pairs"] else [])
    lines = ["# Synthetic training data", "", f"{' and '.join(what)}, written by a model and checked by rules.", ""]
    lines += _teacher(body)
    lines += ["", "## What became of the rows", "", "| | rows |", "|---|--:|"]
    lines += [f"| {_LABELS[item['filter']]} | {item['left']:,} |" for item in body["filters"]]
    if body["rejected"]:
        lines += ["", f"Left out, each with its reason in `rejected.jsonl`: {_counts(body['rejected'])}."]
    lines += ["", "| method | asked for | requests | kept |", "|---|--:|--:|--:|"]
    for name, item in body["by_method"].items():
        lines.append(f"| {name} | {item['wanted']:,} | {item['requests']:,} | {item['kept']:,} |")
    lines += ["", *_judge(body["judge"]), "", "## Sources", "", *_sources(body)]
    lines += [
        "",
        "## Who may see it",
        "",
        "Rows inherit the strictest class of what they were made from, and of what the teacher learned from.",
        "",
    ]
    lines += ["| privacy class | rows |", "|---|--:|"]
    lines += [f"| {name} | {count:,} |" for name, count in body["privacy"].items()]
    if body["hidden"]["names"]:
        lines += ["", f"Not shown to the teacher for privacy: {len(body['hidden']['names']):,} sources."]
    lines += ["", "## Overlap with evaluation", "", *_overlap(body["overlap"])]
    lines += ["", "## Personal data", "", _pii(body["pii"])]
    lines += [
        "",
        "## Split",
        "",
        f"{body['groups']:,} groups. {_SPLIT}",
        "",
        "## Limits",
        "",
        _LIMITS,
    ]
    return "\n".join(lines) + "\n"


def _teacher(body: dict[str, Any]) -> list[str]:
    teacher, usage = body["teacher"], body["usage"]
    model = teacher.get("id") or teacher["name"]
    lines = ["## Teacher", "", "| | |", "|---|---|", f"| model | `{model}` (as `{teacher['name']}`) |"]
    version = ", ".join(teacher["versions"]) or teacher.get("revision")
    lines += [f"| version | `{version}` |"] if version else []
    lines += [f"| family | {teacher['family']} |", f"| identity | `{teacher['identity']}` |"]
    lines += [f"| tier of the requests | {', '.join(teacher['tiers'])} |"] if teacher["tiers"] else []
    if teacher.get("learned", "any") != "any":
        lines.append(f"| learned from | {teacher['learned']} rows |")
    if release := teacher.get("release"):
        lines.append(f"| released | to {release['to']}: {release['reason']} |")
    tokens = f"{usage['prompt_tokens']:,} read, {usage['new_tokens']:,} written"
    if usage["thought_tokens"]:
        tokens += f", {usage['thought_tokens']:,} thought"
    lines.append(f"| tokens | {tokens}, in {usage['requests']:,} requests |")
    if usage["dollars"] is not None:
        lines.append(f"| cost | ${usage['dollars']:.4f} |")
    terms = teacher.get("terms")
    if terms:
        lines += [
            f"| project tier | {terms['tier']} |",
            f"| terms | in force since {terms['terms']}, {terms['terms_source']} |",
            (
                f"| stored by the service | "
                f"{'no (`store: false`)' if terms['store'] is False else 'as its own terms say'} |"
            ),
            "",
            f"**{terms['not_for'][0].upper()}{terms['not_for'][1:]}.** {_BOUND}",
        ]
        if terms.get("rehearsal"):
            lines += ["", "**A rehearsal: an emulator answered, no model did.**"]
    return lines


def _judge(judge: dict[str, Any] | None) -> list[str]:
    if judge is None:
        return ["No judge graded the rows."]
    kin = " **Related judge: of the teacher's family, whose rows it likes.**" if judge["related"] else ""
    cost = "" if judge["dollars"] is None else f" It cost ${judge['dollars']:.4f}, besides the teacher."
    return [
        (
            f"Judge: `{judge['name']}`, {judge['least']} of 5 or better is kept; grades: "
            f"{_counts(judge['grades'])}.{cost}{kin}"
        )
    ]


def _sources(body: dict[str, Any]) -> list[str]:
    covered = body["coverage"]
    lines = []
    if body["sources"]:
        documents, sections = covered["documents"], covered["sections"]
        share = f"{documents['with_rows']:,} of {documents['all']:,} documents have rows"
        lines += [
            f"{share} ({documents['asked']:,} asked about), {sections['with_rows']:,} of {sections['all']:,} sections.",
            "",
            "| document | SHA-256 | privacy | licence | sections | rows |",
            "|---|---|---|---|--:|--:|",
        ]
        lines += [
            f"| {item['name']} | `{item['sha256'][:16]}…` | {item['privacy']} | {item['license'] or 'not stated'} | "
            f"{item['sections']:,} | {item['rows']:,} |"
            for item in body["sources"]
        ]
    if body["seeds"]:
        lines += ["", f"{body['seeds']:,} seed rows."]
    if body["tools"]:
        lines += ["", f"Tools: {', '.join(body['tools'])}."]
    if body["unread"]:
        lines += ["", f"Of other file types and not read: {', '.join(body['unread'])}."]
    return lines


def _overlap(overlap: dict[str, Any]) -> list[str]:
    if not overlap["tasks"]:
        return ["No evaluation task was given to compare with."]
    lines = ["Rows that ask what a task asks were dropped; `report.json` lists them.", ""]
    lines += ["| task | questions | rows dropped |", "|---|--:|--:|"]
    for task in overlap["tasks"]:
        count = f"not compared: {task['not_compared']}" if task["not_compared"] else f"{task['rows']:,}"
        lines.append(f"| {task['name']} | {task['questions']:,} | {count} |")
    return lines


def _pii(pii: dict[str, Any]) -> str:
    limits = "Names, addresses and health data have no checkable form and are not looked for."
    if pii["mode"] == "off":
        return "Not looked for."
    if not pii["rows"]:
        return f"None found by checksummed patterns. {limits}"
    done = "dropped" if pii["mode"] == "drop" else "**left in place**"
    return f"Rows that hold some, {done}: {_counts(pii['rows'])}. {limits}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
