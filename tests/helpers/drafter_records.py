"""`drafter.json` of made-up measurements."""

from __future__ import annotations

from typing import Any

from gemma_ops.verdicts.drafter_record import SCHEMA, DrafterRecord


def drafter_record(files: dict[str, tuple[str, bool]], *, tokens: int = 3) -> DrafterRecord:
    """Return a record: for each format the SHA-256 of its file, and whether the drafter is recommended."""
    return DrafterRecord.made(
        {
            "schema": SCHEMA, "base": "stock", "tokens": tokens, "parameters": 390_368, "rows": 500,
            "engine": "llama.cpp (xllamacpp 1)", "files": {
                form: {
                    "sha256": sha256, "tasks": [_task()], "recommended": on,
                    "reason": "routing: 1.50× (1.40 to 1.60) the tokens a second" if on else "routing: slower",
                }
                for form, (sha256, on) in files.items()
            },
        }
    )  # fmt: skip


def _task() -> dict[str, Any]:
    def answers(steps: float) -> dict[str, Any]:
        return {
            "tokens_per_step": {"value": steps, "low": steps - 0.1, "high": steps + 0.1},
            "accepted": {"value": 0.6, "low": 0.5, "high": 0.7},
            "speed": {"value": 1.5, "low": 1.4, "high": 1.6},
            "tokens_per_second": 300.0,
        }

    return {
        "task": "routing", "digest": "dd", "rows": 200, "clusters": 200, "tokens_per_second": 200.0,
        "stock": answers(1.4), "tuned": answers(3.6), "equal": 199, "metric": "exact_match", "score": 0.5,
        "score_alone": 0.5, "outcome": "pass", "words": "not worse: yes.",
    }  # fmt: skip
