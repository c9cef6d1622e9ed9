"""The record of what was done to the data, for programs (`report.json`) and for people (`card.md`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ops.config import DataConfig
from gemma_ops.data.row_files import is_datasets_folder, source_files
from gemma_ops.family.media import KINDS
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.runs import digest
from gemma_ops.runs.durable import whole_file

if TYPE_CHECKING:
    from gemma_ops.prepare.prepare_counts import PrepareCounts

REASONS = {
    "arguments_parsed": "tool arguments were a JSON string and were parsed",
    "tools_parsed": "the tool list was a JSON string and was parsed",
    "reasoning_renamed": "the thought stood in another field and was renamed to reasoning",
    "channel_moved": "a thought channel inside the answer was moved to reasoning",
    "parts_joined": "content in several text parts was joined",
    "call_ids_made": "tool calls without ids were numbered, results matched by name or order",
    "field_dropped": "a message had fields that no chat template reads",
    "thinking_switch": "<|think|> in the system turn is a setting, not text, and was left out",
    "arrow_nulls": "keys that a table had filled with null were left out",
    "labels_named": "class labels were numbers and are given by name",
    "system_column": "the system turn stood in a column beside the turns",
}
"""Words for repairs, by their code (see `normal.py`)."""


def source_facts(source: Path | None, settings: DataConfig) -> list[dict[str, Any]]:
    """Return name, SHA-256 and size in bytes of each source file; a Hub set has its id only."""
    if source is None:
        return [{"name": f"{settings.hub} (Hub, split {settings.split})", "sha256": None, "bytes": None}]
    paths = [source] if is_datasets_folder(source) else source_files(source)
    return [
        {"name": path.name, "sha256": digest.of_path(path), "bytes": path.stat().st_size if path.is_file() else None}
        for path in paths
    ]


def write_report(out: Path, settings: DataConfig, facts: PrepareCounts, sources: list[dict[str, Any]]) -> None:
    """Write `report.json` and `card.md` from the same facts."""
    body = prepare_report(settings, facts, sources)
    with whole_file(out / "report.json") as file:
        file.write(json.dumps(body, ensure_ascii=False, indent=1) + "\n")
    with whole_file(out / "card.md") as file:
        file.write(data_card(body))


def prepare_report(settings: DataConfig, facts: PrepareCounts, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Return everything counted, as JSON."""
    dropped = facts.overlaps.total() if settings.overlap == "drop" else 0
    return {
        "schema": "gemma-ops/data-report@1",
        "sources": sources,
        "layout": facts.layout,
        "rows": {
            "read": facts.read,
            "rejected": facts.rejected.total(),
            "exact_duplicates": facts.exact_duplicates,
            "near_duplicates": facts.near_duplicates,
            "overlap_dropped": dropped,
            "train": facts.rows["train"],
            "valid": facts.rows["valid"],
        },
        "rejected": _ordered(facts.rejected),
        "repaired": _ordered(facts.repaired),
        "near_duplicates": {"threshold": settings.near_duplicates, "first": facts.near_pairs},
        "same_prompt_other_answer": facts.conflicts,
        "kinds": _ordered(facts.kinds),
        "contradictions": facts.contradictions,
        "overlap": {
            "mode": settings.overlap,
            "tasks": [
                {
                    "name": task.name,
                    "questions": len(task.questions),
                    "rows": facts.overlaps[task.name],
                    "not_compared": task.missing or None,
                }
                for task in facts.tasks
            ],
            "first": facts.overlap_pairs,
        },
        "pii": {"mode": settings.pii, "rows": facts.pii_count, "found": _ordered(facts.pii), "first": facts.pii_rows},
        "privacy": {name: facts.privacy[name] for name in PRIVACY if facts.privacy[name]},
        "copies": facts.copies,
        "media": {
            kind: {
                "shown": facts.shown[kind],
                "files": sum(1 for name in facts.files if name.rpartition(".")[2] in KINDS[kind]),
                "tokens": facts.shown_tokens[kind],
            }
            for kind in sorted(facts.shown)
        },
        "teachers": [{**teacher._asdict(), "rows": rows} for teacher, rows in sorted(facts.teachers.items())],
        "split": {"valid_share": settings.valid_share, "group_by": settings.group_by, "groups": facts.groups},
        "examples": {mode: facts.examples[mode] for mode in ("off", "on", "mixed")},
        "tokens": {side: lengths.table() for side, lengths in facts.lengths.items()},
    }


def _ordered(counts: Any) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def data_card(body: dict[str, Any]) -> str:
    """Return the report as a page of Markdown."""
    rows, overlap, pii, tokens = body["rows"], body["overlap"], body["pii"], body["tokens"]
    lines = ["# Training data", ""]
    lines += [f"{rows['train']:,} training and {rows['valid']:,} validation rows, from {rows['read']:,} rows read.", ""]
    lines += ["## Sources", "", "| file | bytes | SHA-256 |", "|---|--:|---|"]
    lines += [f"| {item['name']} | {_number(item['bytes'])} | {_code(item['sha256'])} |" for item in body["sources"]]
    lines += [
        "",
        f"Layout of a row: `{body['layout']}`{_kinds(body['kinds'])}.",
        "",
        "## What became of the rows",
        "",
        "| | rows |",
        "|---|--:|",
    ]
    labels = {
        "read": "read", "rejected": "rejected", "exact_duplicates": "exact duplicates dropped",
        "near_duplicates": "near duplicates dropped", "overlap_dropped": "dropped for overlap with an evaluation task",
        "train": "**training**", "valid": "**validation**",
    }  # fmt: skip
    lines += [f"| {label} | {rows[key]:,} |" for key, label in labels.items()]
    if apart := {mode: count for mode, count in body["examples"].items() if count != rows["train"]}:
        modes = ", ".join(f"{count:,} with `train.thinking: {mode}`" for mode, count in apart.items())
        apart_text = (
            f"Training makes {modes} examples of the {rows['train']:,} rows: an answer is learned after exactly the "
            "prompt that asks for it, and where one example can't hold that for all answers of a conversation, each "
            "has its own."
        )
        lines += ["", apart_text]
    if body["rejected"]:
        lines += [
            "",
            "Rejected (each row with its reason stands in `rejected.jsonl`): " + _counts(body["rejected"]) + ".",
        ]
    if body["repaired"]:
        lines += ["", "Repaired:", ""]
        lines += [f"- {count:,} rows: {REASONS.get(code, code)}" for code, count in body["repaired"].items()]
    if body["same_prompt_other_answer"]:
        lines += [
            "",
            f"{body['same_prompt_other_answer']:,} rows ask what an earlier row asked and answer it differently.",
        ]
    if body["media"]:
        lines += ["", "## Images and audio", "", "| | shown | files | soft tokens |", "|---|--:|--:|--:|"]
        lines += [
            f"| {kind} | {item['shown']:,} | {item['files']:,} | {item['tokens']:,} |"
            for kind, item in body["media"].items()
        ]
    if body["contradictions"]:
        lines += [
            "",
            f"{body['contradictions']:,} rows want the answer that an earlier row to the same prompt rejects.",
        ]
    if body["teachers"]:
        lines += [
            "",
            "## Written by a model",
            "",
            "| teacher | family | version | terms | rows |",
            "|---|---|---|---|--:|",
        ]
        lines += [
            f"| `{item['name']}`{' (rehearsed: an emulator answered)' if item['rehearsal'] else ''} | {item['family']} "
            f"| {item['version'] or 'not stated'} | {item['terms'] or '–'} | {item['rows']:,} |"
            for item in body["teachers"]
        ]
    share, by = body["split"]["valid_share"], body["split"]["group_by"]
    compared = body["kinds"].keys() - {"conversation", "text"}
    own = "rows with the same prompt stay together" if compared else "each row is its own group"
    alone = "rows of one source stay together" if body["teachers"] else own
    alone += "; rows about one image or sound stay together" if body["media"] else ""
    how = f"rows with the same `{by}` stay together" if by else alone
    lines += [
        "",
        "## Split",
        "",
        f"By hash of the group ({how}; {body['split']['groups']:,} groups), {share:.1%} for validation.",
        "",
    ]
    lines += ["## Who may see it", "", "| privacy class | rows |", "|---|--:|"]
    lines += [f"| {name} | {count:,} |" for name, count in body["privacy"].items()]
    if body["copies"]:
        lines += ["", f"{body['copies']:,} rows hold the text of a stricter row and took its class."]
    lines += ["", "## Personal data", "", _pii(pii), "", "## Overlap with evaluation", "", *_overlap(overlap)]
    lines += [
        "",
        "## Length in tokens",
        "",
        *(("Each side of a pair counts by itself.", "") if "pair" in compared else ()),
        "| | rows | prompt p50 / p95 / max | completion p50 / p95 / max | tokens | with loss |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for side in ("train", "valid"):
        table = tokens[side]
        cells = [
            " / ".join(f"{table[part][name]:,}" for name in ("p50", "p95", "max")) for part in ("prompt", "completion")
        ]
        lines.append(
            f"| {side} | {rows[side]:,} | {cells[0]} | {cells[1]} | {table['tokens']:,} | "
            f"{table['tokens_with_loss']:,} |"
        )
    longer = {limit: count for limit, count in tokens["train"]["longer_than"].items() if count}
    if longer:
        lines += [
            "",
            "Training rows longer than "
            + ", ".join(f"{int(limit):,}: {count:,}" for limit, count in longer.items())
            + " tokens.",
        ]
    return "\n".join(lines) + "\n"


def _pii(pii: dict[str, Any]) -> str:
    if pii["mode"] == "off":
        return "Not looked for."
    limits = "Names, addresses and health data have no checkable form and are not looked for."
    if not pii["rows"]:
        return f"None found by checksummed patterns. {limits}"
    done = "replaced by its kind" if pii["mode"] == "mask" else "**left in place**"
    return f"Found in {pii['rows']:,} rows, {done}: {_counts(pii['found'])}. {limits}"


def _overlap(overlap: dict[str, Any]) -> list[str]:
    if not overlap["tasks"]:
        return ["No evaluation task was given to compare with."]
    done = {"drop": "dropped", "report": "**kept**", "refuse": "none"}[overlap["mode"]]
    lines = [f"Mode `{overlap['mode']}`: overlapping rows are {done}." if done != "none" else "Overlap is refused.", ""]
    lines += ["| task | questions | overlapping rows |", "|---|--:|--:|"]
    for task in overlap["tasks"]:
        count = f"not compared: {task['not_compared']}" if task["not_compared"] else f"{task['rows']:,}"
        lines.append(f"| {task['name']} | {task['questions']:,} | {count} |")
    return lines


def _kinds(kinds: dict[str, int]) -> str:
    """Return what the rows hold, where it isn't conversations alone."""
    words = {
        "conversation": "conversations",
        "pair": "pairs of answers",
        "judged": "judged answers",
        "text": "raw texts",
    }
    return (
        (": " + _counts({words[name]: count for name, count in kinds.items()}))
        if kinds.keys() - {"conversation"}
        else ""
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _code(value: str | None) -> str:
    return "" if value is None else f"`{value}`"
