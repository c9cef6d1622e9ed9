"""The counts of what was done: `report.json`, and the metrics of the step. `synth_card.py` says the same to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gemma_ops.config import SynthConfig
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.synth.plan_requests import counts
from gemma_ops.synth.replies import TeacherReply
from gemma_ops.synth.synth_facts import SynthesisCounts


def synthesis_report(settings: SynthConfig, facts: SynthesisCounts) -> dict[str, Any]:
    """Return everything counted, as JSON. Nothing in it depends on when or how often the step was started."""
    finished = [*facts.rows, *facts.pairs]
    versions = sorted({reply.model for reply in facts.replies if reply.model})
    return {
        "schema": "gemma-ops/synth-report@1",
        "teacher": facts.teacher.to_json()
        | {"versions": versions, "tiers": sorted({r.tier for r in facts.replies if r.tier})},
        "rows": {"rows": len(facts.rows), "pairs": len(facts.pairs), "rejected": len(facts.rejected)},
        "by_method": _methods(settings, facts),
        "filters": [{"filter": name, "left": left} for name, left in facts.passed],
        "rejected": _ordered(row["code"] for row in facts.rejected),
        "sources": _sources(facts),
        "seeds": len(facts.pool.seeds),
        "tools": [tool["function"]["name"] for tool in facts.pool.tools.tools] if facts.pool.tools else [],
        "unread": list(facts.pool.unread),
        "hidden": {"mode": settings.hidden, "names": facts.hidden},
        "coverage": _coverage(facts),
        "replies": {"by_end": _ordered(reply.end for reply in facts.replies), "repaired": _repaired(facts.replies)},
        "usage": teacher_usage(facts.replies),
        "judge": facts.judge,
        "overlap": {
            "tasks": [
                {
                    "name": task.name,
                    "questions": len(task.questions),
                    "rows": facts.overlaps[task.name],
                    "not_compared": task.missing or None,
                }
                for task in facts.tasks
            ],
            "dropped": [
                {key: row[key] for key in ("from", "reason", "messages")}
                for row in facts.rejected
                if row["code"] == "overlap"
            ],
        },
        "pii": {"mode": settings.pii, "rows": dict(sorted(facts.personal.items()))},
        "privacy": {name: n for name in PRIVACY if (n := sum(row["privacy"] == name for row in finished))},
        "groups": len({row["group"] for row in finished}),
        "licenses": _ordered(
            str(row["provenance"].get("source", {}).get("license") or "not stated") for row in finished
        ),
    }


def synthesis_metrics(settings: SynthConfig, facts: SynthesisCounts, body: dict[str, Any]) -> dict[str, float]:
    """Return the step's metrics. Dollars are those of teacher and judge, left out where neither costs any."""
    judge = (body["judge"] or {}).get("dollars")
    paid = [part for part in (body["usage"]["dollars"], judge) if part is not None]
    return {
        "requests": float(len(facts.items)),
        "asked": float(sum(counts(settings).values())),
        "written": float(facts.written),
        "rows": float(len(facts.rows)),
        "pairs": float(len(facts.pairs)),
        "rejected": float(len(facts.rejected)),
        "documents_covered": body["coverage"]["documents"]["with_rows"] / max(1, body["coverage"]["documents"]["all"]),
        **({"dollars": round(sum(paid), 9)} if paid else {}),
    }


def teacher_usage(replies: Sequence[TeacherReply]) -> dict[str, Any]:
    """Return tokens and dollars of all replies; dollars null where nothing is billed."""
    paid = [reply.dollars for reply in replies if reply.dollars is not None]
    return {
        "requests": len(replies),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "new_tokens": sum(reply.new_tokens for reply in replies),
        "thought_tokens": sum(reply.thought_tokens for reply in replies),
        "cached_tokens": sum(reply.cached_tokens for reply in replies),
        "dollars": round(sum(paid), 9) if paid else None,
    }


def _methods(settings: SynthConfig, facts: SynthesisCounts) -> dict[str, Any]:
    found = {}
    for name, count in counts(settings).items():
        if count:
            items = [item for item in facts.items if item.method == name]
            finished = [row for row in (*facts.rows, *facts.pairs) if row["provenance"]["method"] == name]
            found[name] = {
                "wanted": count,
                "requests": len(items),
                "asked": sum(item.wanted for item in items),
                "kept": len(finished),
            }
    return found


def _sources(facts: SynthesisCounts) -> list[dict[str, Any]]:
    """Return every document with its digest, class, licence, and what became of it."""
    made = Counter(row["group"] for row in (*facts.rows, *facts.pairs))
    found: dict[str, dict[str, Any]] = {}
    for section in facts.pool.sections:
        document = section.document
        entry = found.setdefault(
            document.name,
            {
                "name": document.name,
                "sha256": document.sha256,
                "privacy": document.privacy,
                "license": document.license,
                "sections": 0,
                "rows": made[document.group],
            },
        )
        entry["sections"] += 1
    return list(found.values())


def _coverage(facts: SynthesisCounts) -> dict[str, Any]:
    """Return documents and sections: how many there are, were asked about, and have rows."""
    finished = [row["provenance"]["source"] for row in (*facts.rows, *facts.pairs) if "source" in row["provenance"]]
    asked = [item.material.section for item in facts.items if item.material.section]
    places = {(source["name"], *source["span"]) for source in finished}
    return {
        "documents": {
            "all": len({section.document.name for section in facts.pool.sections}),
            "asked": len({section.document.name for section in asked}),
            "with_rows": len({source["name"] for source in finished}),
        },
        "sections": {
            "all": len(facts.pool.sections),
            "asked": len({(section.document.name, section.number) for section in asked}),
            "with_rows": len(places),
        },
    }


def _repaired(replies: Sequence[TeacherReply]) -> int:
    return sum(reply.tries > 1 and reply.value is not None for reply in replies)


def _ordered(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))
