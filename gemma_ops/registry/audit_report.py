"""The report of `gemma-ops audit`: whether everything that the registry says about a model still holds, version by
version.

    ledger      its chain, and its anchors in the model and in every version
    files       the manifest, sizes and small files; every byte with `--bytes`
    signature   by a trusted key, where any is trusted
    verdict     there, and about the bytes that the version carries
    record      the version as the ledger knows it
    aliases     each move: who, when, why, by which policy; and that the alias stands where the ledger says

Nothing is changed. What doesn't hold is reported and doesn't end the audit, so that all of it is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import OpsError
from gemma_ops.registry import profile, promotion_ledger, stored
from gemma_ops.registry.overview import move_line
from gemma_ops.registry.points import judged_point
from gemma_ops.registry.policies import policy_of
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.served import check_served
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.signing import SIGNATURE
from gemma_ops.registry.verification import check_verdict
from gemma_ops.registry.version_records import gone_versions
from gemma_ops.verdicts import VERDICT, Verdict

_SMALL = 1 << 20
"""Largest file, in bytes, that is read without `--bytes`."""


@dataclass(frozen=True)
class Checked:
    """One check of a version, an alias or the ledger (`about`): whether it holds, and a sentence."""

    about: str
    check: str
    holds: bool
    why: str


@dataclass(frozen=True)
class AuditReport:
    """Every check of a registered model; `read` says how much was read, `notes` what else to know."""

    name: str
    tracking_uri: str
    read: str
    checks: tuple[Checked, ...]
    notes: tuple[str, ...]

    @property
    def problems(self) -> tuple[Checked, ...]:
        """Return the checks that failed."""
        return tuple(check for check in self.checks if not check.holds)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON objects."""
        return {
            "name": self.name, "tracking_uri": self.tracking_uri, "read": self.read, "holds": not self.problems,
            "checks": [vars(check) for check in self.checks], "notes": list(self.notes),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the checks under what they are about, then the sum."""
        text, about = [f"{self.name}  ({self.tracking_uri})"], ""
        wide = max(len(check.check) for check in self.checks)
        for check in self.checks:
            if check.about != about:
                about = check.about
                text.append(about)
            text.append(f"  {'ok  ' if check.holds else 'FAIL'}  {check.check:<{wide}}  {check.why}")
        text += [f"note: {note}" for note in self.notes]
        bad = len(self.problems)
        total = f"{len(self.checks)} checks, {self.read}"
        return [*text, f"{bad} of {total}: don't hold" if bad else f"{total}: all hold"]


def audit(machine: MachineConfig, name: str, *, everything: bool = False) -> AuditReport:
    """Check a registered model; `everything` reads every stored byte. Raises OpsError where there is no such model,
    ServiceError when MLflow can't be reached."""
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        model = stored.registered_model(tracking, name)
        book, checks = PromotionLedger(tracking, name), []
        entries: list[Entry] = []
        chain = _tried("ledger", "chain", lambda: _chain(book, entries))
        checks.append(chain)
        versions = sorted(stored.registered_versions(tracking, name), key=lambda one: int(one.version))
        for found in versions:
            checks += _version(tracking, found, entries if chain.holds else None, machine.trusted_keys, everything)
        if chain.holds:
            aliases = {alias: str(number) for alias, number in model.aliases.items()}
            checks += [check for alias in _aliases(entries, aliases) for check in _alias(entries, alias, aliases)]
        notes = [f"version {number} was deleted in MLflow" for number in gone_versions(entries, versions)]
        notes += (
            []
            if machine.trusted_keys
            else ["no key is trusted here (machine.trusted_keys), so no signature was checked"]
        )
        read = "every byte read" if everything else f"files up to {_SMALL >> 20} MiB read (--bytes reads all)"
        return AuditReport(name, tracking.place.uri, read, tuple(checks), tuple(notes))


def _tried(about: str, check: str, holds: Callable[[], str]) -> Checked:
    """Return a check that holds with the sentence that a function returns, and fails with that of the error it
    raises."""
    try:
        return Checked(about, check, True, holds())
    except OpsError as error:
        return Checked(about, check, False, error.what)


def _chain(book: PromotionLedger, entries: list[Entry]) -> str:
    entries += book.anchored()
    last = f", last {entries[-1]['hash'][:12]}" if entries else ""
    return f"{len(entries):,} entries unbroken and anchored{last} ({book.shelf.at})"


def _version(
    tracking: Tracking, found: Any, entries: Sequence[Entry] | None, keys: Sequence[str], everything: bool
) -> Iterator[Checked]:
    about = f"version {found.version}" + (
        f", a copy of {found.tags[stored.ORIGIN]}" if stored.ORIGIN in found.tags else ""
    )
    try:
        logged, body = stored.version_manifest(tracking, found)
    except OpsError as error:
        yield Checked(about, "files", False, error.what)
        return
    largest = None if everything else _SMALL
    problems = stored.compare_tags(found, logged) or stored.compare_bytes(tracking, logged, body, largest=largest)
    files = judged_point("files", f"{len(body['subject']['files'])} files as registered", problems)
    yield Checked(about, "files", files.good, "; ".join(files.why))
    if keys:
        yield _tried(about, "signature", lambda: f"by {stored.signed_by(tracking, logged, body, about, keys)}")
    else:
        there = SIGNATURE in stored.listing(tracking, logged)
        yield Checked(about, "signature", True, "there, not checked" if there else "none")
    yield _tried(about, "verdict", lambda: _verdict(tracking, logged, body, about))
    if entries is not None:
        yield _record(about, str(found.version), body["digest"], entries)


def _verdict(tracking: Tracking, logged: Any, body: dict[str, Any], who: str) -> str:
    if VERDICT not in body["subject"]["files"]:
        return "none: it was never evaluated"
    check_verdict(body, who)
    with stored.opened_version(tracking, logged, VERDICT) as file:
        verdict = Verdict.read(file)
    check_served(verdict, body["subject"], who)
    return f"{verdict.verdict}, about the files that it carries"


def _record(about: str, version: str, manifest: str, entries: Sequence[Entry]) -> Checked:
    known = [one for one in entries if one["kind"] == "version" and one["version"] == version]
    if not known:
        lost = entries and entries[0]["kind"] == "restart" and version in entries[0].get("versions", ())
        why = "from before the ledger was begun anew" if lost else "the ledger doesn't know this version"
        return Checked(about, "record", bool(lost), why)
    if known[-1]["manifest"] != manifest:
        return Checked(about, "record", False, f"the ledger knows it by the manifest {known[-1]['manifest'][:12]}")
    return Checked(about, "record", True, f"entry {known[-1]['n']}, {known[-1]['at']}, {known[-1]['who']}")


def _aliases(entries: Sequence[Entry], aliases: dict[str, str]) -> list[str]:
    return sorted({*aliases, *(str(entry["alias"]) for entry in entries if "alias" in entry)})


def _alias(entries: list[Entry], alias: str, aliases: dict[str, str]) -> Iterator[Checked]:
    """Yield each move of an alias, and whether it stands where the last of them put it."""
    about = f"alias {alias}"
    policies = {policy_of("", entry).digest: entry["n"] for entry in entries if entry["kind"] == "policy"}
    for entry in entries:
        if entry["kind"] == "done" and entry["alias"] == alias:
            by = policies.get(str(entry.get("policy")))
            policy = f"; policy of entry {by}" if by else ""
            yield Checked(
                about, f"entry {entry['n']}", True, f"{entry['at']}  {entry['who']}  {move_line(entry)}{policy}"
            )
    stands, trail = aliases.get(alias), promotion_ledger.trail(entries, alias)
    told = trail[-1] if trail else None
    if promotion_ledger.pending_moves(entries, alias):
        yield Checked(about, "stands", False, "a move was interrupted: repeat the command to finish it")
    elif stands != told:
        where = f"at version {stands}" if stands else "nowhere"
        yield Checked(
            about, "stands", False, f"{where}, and the ledger says version {told or 'none'}: moved without gemma-ops"
        )
    else:
        yield Checked(about, "stands", True, f"at version {stands}, as the ledger says")
