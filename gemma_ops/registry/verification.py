"""Verification of a version: whether it is, byte for byte, what was registered, and what its own evidence says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.registry import manifest, stored
from gemma_ops.registry.points import INTEGRITY, LINEAGE
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
    signed_by: str = ""
    """Trusted key that signed it; empty where no key is trusted."""
    own: tuple[str, ...] = ()
    """Verified files next to those of the manifest, such as the card."""
    origin: str = ""
    """`NAME/VERSION` that it was copied from; empty where it was registered under its own name."""

    @property
    def digest(self) -> str:
        """Return the manifest's digest, which names the version."""
        return str(self.manifest["digest"])

    @property
    def registered(self) -> str:
        """Return its number under the name that it was registered under."""
        return self.origin.rpartition("/")[2] or self.version

    @property
    def outcome(self) -> str:
        """Return the verdict in a word."""
        return "missing" if self.verdict is None else self.verdict.verdict

    @property
    def verdict_sha256(self) -> str | None:
        """Return the SHA-256 of the stored verdict; None without one."""
        file = self.manifest["subject"]["files"].get(VERDICT)
        return str(file["sha256"]) if file else None


def verify_version(tracking: Tracking, found: Any, keys: Sequence[str] = ()) -> CheckedVersion:
    """Compare everything stored for a version with its manifest and read its verdict from those bytes; `keys` are those
    that are trusted.

    Raises GateError for a version that isn't ours, isn't whole, was changed by as little as a bit, or isn't signed by a
    trusted key where there is any, DataError for a verdict that can't be read.
    """
    logged, body = stored.version_manifest(tracking, found)
    who = f"{found.name} version {found.version}"
    problems = stored.compare_tags(found, logged) or stored.compare_bytes(tracking, logged, body)
    if problems:
        raise GateError(
            f"{INTEGRITY}: {who} is not what was registered: {'; '.join(problems[:5])}",
            "promote another version, or register this one again from its run (--redo register)",
        )
    check_verdict(body, who)
    signed = stored.signed_by(tracking, logged, body, who, keys)
    verdict = None
    if VERDICT in body["subject"]["files"]:
        with stored.opened_version(tracking, logged, VERDICT) as file:
            verdict = Verdict.read(file)
    own = tuple(stored.own_files(logged))
    lacking = tuple(manifest.missing_lineage(body))
    return CheckedVersion(str(found.version), body, verdict, lacking, signed, own, found.tags.get(stored.ORIGIN, ""))


def check_verdict(body: Mapping[str, Any], who: str) -> None:
    """Raise GateError for a version whose verdict is not the one its evaluation had made."""
    told = (body["subject"].get("evaluation") or {}).get("verdict_sha256")
    file = body["subject"]["files"].get(VERDICT)
    if file and told is not None and told != file["sha256"]:
        raise GateError(
            f"{LINEAGE}: {who} carries another verdict than its evaluation had made",
            "register it again from its run (--redo evaluate --redo register)",
        )
