"""The least that a `verdict.json` holds, for tests of what reads one."""

from __future__ import annotations

from typing import Any

TASK = {"digest": "aa", "primary": "exact_match", "rows": 10, "privacy": {"any": 10}}


def bare_verdict(**facts: Any) -> dict[str, Any]:
    """A verdict without gates, tasks and results, with these facts besides."""
    body = {"schema": "gemma-ops/verdict@1", "verdict": "ungated", "confidence": 0.95}
    return {**body, "gates": [], "tasks": {}, "results": [], "differences": [], **facts}
