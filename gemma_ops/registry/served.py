"""Comparison of what was evaluated with what a version would serve, and what serving it takes.

The verdict says of every quantized file which bytes answered (SHA-256) and in which engine; the version's manifest says
which bytes it carries. A verdict on other bytes is no verdict on these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.family.formats import FORMATS, GGUF, PROJECTOR_SHELF, QUANTIZED
from gemma_ops.planning.kv_cache import kv_bytes
from gemma_ops.registry.points import SERVED
from gemma_ops.verdicts import Verdict
from gemma_ops.verdicts.drafter_record import DRAFTER_GGUF, DRAFTER_SHELF

DRAFTED = f"{DRAFTER_SHELF}/{DRAFTER_GGUF}"
"""The drafter's file in a version, which may be served with any GGUF file."""
_CHECKPOINT = "tuned"
"""Target name of a merged checkpoint, or of what is put on the base."""


@dataclass(frozen=True)
class ServeNeeds:
    """Load that a version must serve: tokens of a request, and concurrent requests."""

    context: int = 4096
    slots: int = 4


def carried_forms(subject: Mapping[str, Any]) -> list[str]:
    """Return the formats that a version carries, the better to serve first."""
    files = subject["files"]
    return [name for name, form in FORMATS.items() if any(path.startswith(f"{form.shelf}/") for path in files)]


def served_forms(subject: Mapping[str, Any]) -> list[str]:
    """Return the formats that it would be served in: its GGUF files, else its checkpoint, else what is put on the
    base."""
    found = carried_forms(subject)
    return [name for name in found if name in QUANTIZED] or found[:1]


def not_what_is_served(verdict: Verdict, subject: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return in what the verdict is about something else than what would be served, and what it doesn't say about
    it."""
    failed = other_bytes(verdict, subject)
    missing: list[str] = []
    for form in served_forms(subject):
        target = form if form in QUANTIZED else _CHECKPOINT
        facts = verdict.targets.get(target)
        if facts is None or not any(result.target == target for result in verdict.results):
            missing.append(f"{form} would be served, and {target} answered no question")
            continue
        if form in QUANTIZED:
            if facts.sha256 is None:
                missing.append(f"the verdict doesn't say which file of {form} answered")
        elif facts.artifact is None:
            missing.append(f"the verdict doesn't say which {target} answered")
        if not verdict.canary.get(target):
            missing.append(f"no canary was recorded of {target}")
        if facts.engine is not None and facts.engine not in FORMATS[form].engines:
            failed.append(f"{form} answered in {facts.engine}, and {' or '.join(FORMATS[form].engines)} serves it")
    return failed, missing


def other_bytes(verdict: Verdict, subject: Mapping[str, Any]) -> list[str]:
    """Return files of the version whose bytes are others than those that answered."""
    found = []
    for name, form in QUANTIZED.items():
        file, facts = subject["files"].get(form.place), verdict.targets.get(name)
        if file and facts and facts.sha256 and facts.sha256 != file["sha256"]:
            found.append(
                f"the verdict is about another file of {name} ({facts.sha256[:12]}) than the version's "
                f"({file['sha256'][:12]})"
            )
    made = {(subject.get(key) or {}).get("digest") for key in ("merged", "adapter", "tuned")} - {None}
    facts = verdict.targets.get(_CHECKPOINT)
    if facts and facts.artifact and made and facts.artifact not in made:
        found.append(
            f"the verdict is about another {_CHECKPOINT} ({facts.artifact[:12]}) than the one that was registered"
        )
    return found


def check_served(verdict: Verdict, subject: Mapping[str, Any], who: str) -> None:
    """Raise GateError where a version's verdict is about other bytes than it carries."""
    if found := other_bytes(verdict, subject):
        raise GateError(
            f"{SERVED}: {'; '.join(found)} ({who})",
            "take another version, or evaluate what this one carries and register that: --redo evaluate --redo "
            "register",
        )


def served_words(verdict: Verdict, subject: Mapping[str, Any]) -> list[str]:
    """Return which files answered where, and how many recorded answers a server must repeat."""
    told = []
    for form in served_forms(subject):
        target = form if form in QUANTIZED else _CHECKPOINT
        facts, count = verdict.targets[target], verdict.canary.get(target)
        digest = (facts.sha256 or facts.artifact or "")[:12]
        recorded = f", {count} answers recorded" if count else ""
        told.append(f"{form} {digest} answered in {facts.engine or 'an engine that is not recorded'}{recorded}")
    return told


def resource_findings(
    verdict: Verdict, subject: Mapping[str, Any], needs: ServeNeeds, limit_gb: float | None
) -> tuple[list[str], list[str], list[str]]:
    """Return what serving takes, in words; what passes the limit; and what was not measured."""
    failed, missing, told = [], [], []
    if not verdict.kv:
        missing.append("what a token costs in keys and values is not known")
    kept = needs.slots * kv_bytes(((one.window, one.bytes_per_token) for one in verdict.kv), needs.context)
    for form in served_forms(subject):
        shelf = (f"{FORMATS[form].shelf}/", *([f"{PROJECTOR_SHELF}/", DRAFTED] if form in GGUF else []))
        weights = sum(file["bytes"] for path, file in subject["files"].items() if path.startswith(shelf))
        took = weights + kept
        what = "what is put on the base" if form in ("adapter", "tuned") else "weights"
        told.append(f"{form} takes {_size(took)} ({what} {_size(weights)}, keys and values {_size(kept)})")
        if limit_gb is not None and took > limit_gb * 1e9:
            failed.append(f"{form} takes {_size(took)}, and the policy's limit is {_size(limit_gb * 1e9)}")
        speed = _speed(verdict, form if form in QUANTIZED else _CHECKPOINT)
        if speed is None:
            missing.append(f"no speed of {form} was measured")
        else:
            told[-1] += f", {speed}"
    asked = f"at {needs.context:,} tokens × {needs.slots} requests"
    return [f"{asked}, {line}" for line in told], failed, missing


def _speed(verdict: Verdict, target: str) -> str | None:
    """Return the slowest task's speed of a target in words; None where nothing was measured."""
    found = [result.speed for result in verdict.results if result.target == target]
    known = [one for one in found if one.seconds_p95 is not None and one.new_tokens_per_second is not None]
    if not known or len(known) < len(found):
        return None
    slow = max(known, key=lambda one: float(one.seconds_p95 or 0))
    return f"95% of answers within {slow.seconds_p95:.2f} s, {slow.new_tokens_per_second:,.0f} tokens/s"


def _size(count: float) -> str:
    units: Sequence[tuple[float, str]] = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{count / size:,.1f} {unit}" for size, unit in units if count >= size), f"{count:.0f} B")
