"""What the registry knows of a model, as plain data and as the lines a person reads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.registry import profile, promotion_ledger, stored
from gemma_ops.registry.points import kept_words
from gemma_ops.registry.policies import policy_in_force
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.version_records import gone_versions

_TAIL = 10
_COLUMNS = 6


@dataclass(frozen=True)
class Overview:
    """Versions (newest first) with aliases, verdict, tags and metrics; aliases; versions that the ledger knows and
    MLflow no longer has; the policy; the last entries of the ledger.

    `ledger_head` is the hash of the last entry: kept elsewhere, it shows later whether the ledger's tail was cut off.
    """

    name: str
    tracking_uri: str
    aliases: dict[str, str]
    versions: list[dict[str, Any]]
    moved_without_ledger: list[str]
    interrupted: list[str]
    ledger: list[Entry]
    ledger_entries: int
    ledger_head: str | None
    ledger_at: str
    gone: list[str]
    policy: dict[str, Any] | None
    policy_words: str

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON objects."""
        return {key: value for key, value in vars(self).items() if key != "policy_words"}

    def lines(self) -> list[str]:
        """Return a table of the versions, the policy, then the ledger's end."""
        rows = [["version", "registered", "verdict", "measured", "carries", "aliases"]]
        for version in self.versions:
            tags = version["tags"]
            at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(version["created_ms"] / 1000))
            measured = next((f"{key} {value}" for key, value in tags.items() if "[" in value and key[:3] != "vs "), "")
            rows.append(
                [
                    version["version"],
                    at,
                    version["verdict"] + (" (overridden)" if "override" in tags else ""),
                    measured,
                    tags.get("carries", ""),
                    ", ".join(version["aliases"]),
                ]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(_COLUMNS)]
        text = [f"{self.name}  ({self.tracking_uri})"]
        text += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        text += [f"  version {version} was deleted in MLflow" for version in self.gone]
        text += [
            f"  {alias} was moved without gemma-ops: the ledger doesn't know why" for alias in self.moved_without_ledger
        ]
        text += [f"  a move of {alias} was interrupted: repeat the command to finish it" for alias in self.interrupted]
        text += [self.policy_words] if self.policy_words else []
        moves = [entry for entry in self.ledger if entry["kind"] == "done"]
        if moves:
            text.append(f"ledger  {self.ledger_at}, {self.ledger_entries} entries, last {str(self.ledger_head)[:12]}")
            text += [f"  {entry['at']}  {entry['who']}  {move_line(entry)}" for entry in moves]
        return text


def move_line(entry: Entry) -> str:
    """Return a ledger entry in words: `promote champion 1 → 2: better on every slice`."""
    against = "; ".join(entry.get("overrides") or [f"verdict {entry['verdict']}"])
    override = f" (against: {against}; overridden: {entry['override']})" if entry["override"] else ""
    points = f"; {kept_words(entry['points'])}" if entry.get("points") else ""
    points += f"; approved by {entry['approved_by']}" if entry.get("approved_by") else ""
    told = f"{entry['reason']}{override}{points}"
    return f"{entry['action']} {entry['alias']} {entry['from'] or 'none'} → {entry['to']}: {told}"


def show(machine: MachineConfig, name: str) -> Overview:
    """Look a model up. Raises OpsError when there is no such model, GateError when the ledger's chain is broken."""
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        aliases = {alias: str(number) for alias, number in stored.registered_model(tracking, name).aliases.items()}
        book = PromotionLedger(tracking, name)
        entries = book.anchored()
        named = dict.fromkeys(entry["alias"] for entry in entries if "alias" in entry)
        interrupted = [alias for alias in named if promotion_ledger.pending_moves(entries, alias)]
        moved = [
            alias
            for alias, number in aliases.items()
            if promotion_ledger.trail(entries, alias)[-1:] != [number] and alias not in interrupted
        ]
        policy = policy_in_force(name, entries)
        versions = stored.registered_versions(tracking, name)
        return Overview(
            name,
            tracking.place.uri,
            aliases,
            [_version(tracking, found, aliases) for found in versions],
            moved,
            interrupted,
            entries[-_TAIL:],
            len(entries),
            entries[-1]["hash"] if entries else None,
            book.shelf.at,
            gone_versions(entries, versions),
            policy.to_json() if policy else None,
            policy.words if policy else "",
        )


def history(machine: MachineConfig, name: str) -> list[Entry]:
    """Return every entry of the model's ledger, oldest first, after checking the chain."""
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        stored.registered_model(tracking, name)
        return PromotionLedger(tracking, name).anchored()


def verify_ledger(machine: MachineConfig, name: str) -> str | None:
    """Return the hash of the last entry of an unbroken ledger, None for an empty one. Raises GateError where it
    breaks."""
    entries = history(machine, name)
    return str(entries[-1]["hash"]) if entries else None


def _version(tracking: Tracking, found: Any, aliases: dict[str, str]) -> dict[str, Any]:
    number = str(found.version)
    metrics: dict[str, float] = {}
    if model_id := stored.model_of(tracking, found):
        logged = tracking.client.get_logged_model(model_id)
        metrics = {metric.key: metric.value for metric in logged.metrics or []}
    return {
        "version": number,
        "aliases": sorted(alias for alias, at in aliases.items() if at == number),
        "verdict": found.tags.get("verdict", "unknown"),
        "tags": {key: value for key, value in sorted(found.tags.items()) if not key.startswith("gemma_ops.")},
        "manifest": found.tags.get(stored.TAG),
        "metrics": dict(sorted(metrics.items())),
        "run_id": found.run_id,
        "created_ms": found.creation_timestamp,
    }
