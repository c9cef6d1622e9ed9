"""Whether a version is, byte for byte, what was registered, and what its own evidence says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.registry import manifest, stored
from gemma_ops.registry.profile import Tracking
from gemma_ops.verdicts import VERDICT, Verdict


@dataclass(frozen=True)
class CheckedVersion:
    """A version whose bytes are as registered: its manifest, its verdict (None without one) and what its lineage
    lacks."""

    version: str
    manifest: Mapping[str, Any]
    verdict: Verdict | None
    lacking: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest, which names the version."""
        return str(self.manifest["digest"])

    @property
    def outcome(self) -> str:
        """The verdict in a word."""
        return "missing" if self.verdict is None else self.verdict.verdict

    @property
    def verdict_sha256(self) -> str | None:
        """SHA-256 of the stored verdict; None without one."""
        file = self.manifest["subject"]["files"].get(VERDICT)
        return str(file["sha256"]) if file else None


def verify_version(tracking: Tracking, found: Any) -> CheckedVersion:
    """Compare everything stored for a version with its manifest and read its verdict from those bytes.

    Raises GateError for a version that isn't ours, isn't whole, or was changed by as little as a bit, DataError for a
    verdict that can't be read.
    """
    logged, body = stored.version_manifest(tracking, found)
    who = f"{found.name} version {found.version}"
    problems = [
        f"{name} is another than the version was registered with"
        for name, tag in stored.OWN.items()
        if found.tags.get(tag) != logged.tags.get(tag)
    ]
    problems = problems or stored.compare_bytes(tracking, logged, body)
    if problems:
        raise GateError(
            f"{who} is not what was registered: {'; '.join(problems[:5])}",
            "promote another version, or register this one again from its run (--redo register)",
        )
    verdict = None
    if VERDICT in body["subject"]["files"]:
        with stored.opened(tracking, logged, VERDICT) as file:
            verdict = Verdict.read(file)
        told = (body["subject"].get("evaluation") or {}).get("verdict_sha256")
        if told is not None and told != body["subject"]["files"][VERDICT]["sha256"]:
            raise GateError(
                f"{who} carries another verdict than its evaluation had made",
                "register it again from its run (--redo evaluate --redo register)",
            )
    return CheckedVersion(str(found.version), body, verdict, tuple(manifest.missing(body)))
