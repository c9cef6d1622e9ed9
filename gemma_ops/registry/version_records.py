"""What the ledger keeps of every registered version: which weights, which verdict.

It outlives the version: one that failed and was deleted in MLflow has still failed, and its weights are known again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_ops.config import PromotionAsks
from gemma_ops.family.formats import WEIGHT_ENDINGS
from gemma_ops.registry import lock, stored
from gemma_ops.registry.policies import append_policy, policy_in_force, proposed_policy
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import HEAD, PromotionLedger, anchor
from gemma_ops.registry.shelves import Entry
from gemma_ops.verdicts import Look, Verdict

_MOST = 300
"""Weight files of a version that are kept in the ledger, so that an entry fits a tag."""


def weights_of(subject: Mapping[str, Any]) -> list[str]:
    """Return short digests of the weight files of a version, sorted."""
    found = {file["sha256"][:16] for name, file in subject["files"].items() if name.endswith(WEIGHT_ENDINGS)}
    return sorted(found)[:_MOST]


def failed_before(entries: Sequence[Entry], weights: Sequence[str], version: str) -> list[str]:
    """Return verdicts that were not a pass on any of these weight files, of other versions, in words."""
    return [
        f"version {entry['version']} held the same weights, and its verdict was {entry['verdict']}"
        for entry in entries
        if entry["kind"] == "version" and entry["version"] != version and entry["verdict"] in ("fail", "inconclusive")
        and set(entry["weights"]) & set(weights)
    ]  # fmt: skip


def look_of(verdict: Verdict | None) -> Look | None:
    """Return the look at the models that a verdict was, as `evaluate.looks.jsonl` has it; None without one."""
    if verdict is None or verdict.look is None:
        return None
    look = verdict.look
    return Look(
        subjects=look.subjects, evidence=look.evidence, rows=look.rows, level=look.level, verdict=verdict.verdict
    )


def looks_before(entries: Sequence[Entry], version: str | None = None) -> dict[str, Look]:
    """Return the looks that registered versions took, by version; only those from before `version` was registered,
    where given."""
    found: dict[str, Look] = {}
    for entry in entries:
        if entry["kind"] != "version":
            continue
        if entry["version"] == version:
            break
        if entry["look"]:
            found[entry["version"]] = Look.model_validate(entry["look"])
    return found


def gone_versions(entries: Sequence[Entry], versions: Sequence[Any]) -> list[str]:
    """Return versions that the ledger knows and MLflow no longer has."""
    there = {str(version.version) for version in versions}
    return [version for entry in entries if entry["kind"] == "version" and (version := entry["version"]) not in there]


def check_ledger(tracking: Tracking, name: str) -> str | None:
    """Compare the ledger of a model with its anchors before anything is added to the model, and return the anchor of
    its last entry, None where there is no such model yet. Raises GateError."""
    return anchor(PromotionLedger(tracking, name).anchored()) if stored.find_model(tracking, name) else None


def record_version(
    tracking: Tracking,
    name: str,
    number: int,
    body: Mapping[str, Any],
    verdict: Verdict | None,
    run: str,
    asks: PromotionAsks | None = None,
) -> list[str]:
    """Write a version into the ledger, once; propose a policy, with `asks`, where the model has none; anchor the chain
    in the version.

    Returns what should be told: that a policy was proposed, and that the same weights failed before.
    """
    subject, version, told = body["subject"], str(number), []
    outcome = "not evaluated" if verdict is None else verdict.verdict
    with lock.held(tracking, name):
        book = PromotionLedger(tracking, name)
        entries = book.entries()
        weights = weights_of(subject)
        known = [one for one in entries if one["kind"] == "version" and one["version"] == version]
        if not known or known[-1]["manifest"] != body["digest"]:
            facts = {"version": version, "manifest": body["digest"], "verdict": outcome, "run": run, "weights": weights}
            look = look_of(verdict)
            book.append("version", **facts, look=look.to_json() if look else None)
        if verdict is not None and policy_in_force(name, entries) is None:
            policy = proposed_policy(subject, verdict, asks)
            if policy is not None:
                reason = f"proposed by version {version} from the gates of run {run}"
                told.append(append_policy(book, policy, reason).words)
        told += failed_before(entries, weights, version)
        found = stored.version(tracking, name, version)
        if HEAD not in found.tags:
            tracking.client.set_model_version_tag(name, version, HEAD, anchor(book.entries()))
    return told
