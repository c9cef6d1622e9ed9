"""Moving an alias: only to a version whose evidence meets the model's policy and whose bytes are those that were registered.

    1. check the version: manifest against its digest, every stored byte against the manifest, lineage, verdict
    2. lock the model, compare the ledger with its anchors, finish what a crash left open
    3. weigh the verdict against the policy, the present champion, and the looks of earlier versions
    4. write `intent`, move the alias, read it back, write `done`

A digest that differs, and a ledger that does, can't be overridden. What speaks against the evidence or the lineage can be,
with a reason; the ledger and the version keep the reason and everything that it overrode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import BusyError, GateError, OpsError
from gemma_ops.registry import ledger, stored
from gemma_ops.registry.ledger import Ledger
from gemma_ops.registry.moving import (
    alias_version,
    alias_words,
    check_alias,
    finish_move,
    locked_model,
    move_fields,
    opened_registry,
    settle_move,
)
from gemma_ops.registry.objections import Incumbent, objections
from gemma_ops.registry.policies import PolicyInForce, policy_in_force
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.records import failed_before, gone_versions, looks_before, weights_of
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.verification import CheckedVersion, verify_version


@dataclass(frozen=True)
class Promotion:
    """What happened: `changed` is False when the alias stood there already. `policy` says by which policy the version was
    judged, `overrides` what spoke against it, `notes` what else to know, as that its weights failed before; `head` is the hash of the
    ledger's last entry, `ledger` where that is."""

    name: str
    alias: str
    version: str
    previous: str | None
    verdict: str
    override: str | None
    changed: bool
    head: str
    ledger: str
    words: str
    policy: str = ""
    compared_with: str | None = None
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as a JSON object."""
        return dict(vars(self))

    def lines(self) -> list[str]:
        """What happened, on what grounds, and where that is written down."""
        compared = f", compared with version {self.compared_with}" if self.compared_with else ""
        text = [self.words, f"  verdict {self.verdict}{compared}; every byte as registered"]
        text += [f"  {self.policy}"] if self.policy else []
        if self.overrides:
            text += [f"  overridden ({self.override}):", *(f"    {line}" for line in self.overrides)]
        text += [f"  note: {line}" for line in self.notes]
        return [*text, f"  ledger {self.ledger}, last entry {self.head[:12]}"]


def promote(
    machine: MachineConfig,
    name: str,
    *,
    to: str = CHAMPION,
    version: str | int | None = None,
    reason: str,
    override: str | None = None,
    expect: str | int | None = None,
) -> Promotion:
    """Point alias `to` of model `name` at `version` (None: the latest).

    `override` is the reason for promoting against what the evidence says; `expect` the version the alias must stand at now.
    Raises GateError when the evidence, the policy, the bytes, the ledger or `expect` forbid it, OpsError when model or
    version doesn't exist, BusyError while another promotion runs, ServiceError when MLflow can't be reached. Safe to repeat.
    """
    why = ledger.reason_given(reason)
    excuse = ledger.reason_given(override, "override") if override is not None else None
    check_alias(to)
    with opened_registry(machine, name) as tracking:
        # Reads every byte, so it comes before the lock.
        checked = verify_version(tracking, _wanted(tracking, name, version))
    with locked_model(machine, name) as (tracking, book):
        mark = checked.manifest["made"].get("ledger")
        book.check_version(book.entries(), checked.version, mark, "the manifest of ")
        settle_move(tracking, book, to)
        now = alias_version(tracking, name, to)
        entries = book.entries()
        trail = ledger.trail(entries, to)
        if now == checked.version and trail and trail[-1] == now:
            words = f"{name}@{to} is version {now} already: nothing changed"
            before = trail[-2] if len(trail) > 1 else None
            head, at = entries[-1]["hash"], book.shelf.at
            return Promotion(name, to, now, before, checked.outcome, excuse, False, head, at, words)
        if expect is not None and now != str(expect):
            raise GateError(
                f"{name}@{to} is {f'version {now}' if now else 'not set'}, not version {expect}",
                "somebody moved it: look with gemma-ops show, then say --expect with what it is now",
            )
        grounds = _grounds(tracking, name, entries, checked)
        if grounds.against and excuse is None:
            raise _refusal(name, checked, grounds)
        if excuse is not None and grounds.against:
            # Before the alias moves, so that an overridden version never stands there without saying so.
            tracking.client.set_model_version_tag(name, checked.version, "override", excuse)
        fields = move_fields(
            "promote", to, now, checked, why=why, excuse=excuse, overrides=list(grounds.against),
            policy=grounds.policy.digest if grounds.policy else None, failed_before=list(grounds.failed),
        )  # fmt: skip
        done = finish_move(tracking, book, book.append("intent", **fields))
        words = f"{name}@{to} is version {checked.version}" + (
            f" (it was {now})" if now and now != checked.version else ""
        )
        return Promotion(
            name, to, checked.version, now, checked.outcome, excuse, True, done["hash"], book.shelf.at, words,
            policy=grounds.policy.words if grounds.policy else "", compared_with=grounds.compared_with,
            overrides=grounds.against, notes=(*grounds.failed, *_later_gone(entries, tracking, checked, version)),
        )  # fmt: skip


def rollback(machine: MachineConfig, name: str, *, alias: str = CHAMPION, reason: str) -> Promotion:
    """Point `alias` back at the version it stood at before, after comparing that version's bytes with its manifest.

    The verdict is not asked again: the version was promoted before. Raises OpsError when there is no earlier one, else as
    `promote`. Repeated after a crash it finishes the move it had begun instead of going back twice.
    """
    why = ledger.reason_given(reason)
    with opened_registry(machine, name) as tracking:
        book = Ledger(tracking, name)
        book.anchored()
        goal = _earlier(tracking, book, alias)
        checked = verify_version(tracking, stored.version(tracking, name, goal))
    with locked_model(machine, name) as (tracking, book):
        intent = ledger.pending(book.entries(), alias)
        if intent and intent["action"] == "rollback" and intent["to"] == goal:
            now, done = intent["from"], finish_move(tracking, book, intent)
            words = f"{name}@{alias} is back at version {goal}: finished the rollback that was interrupted"
        else:
            settle_move(tracking, book, alias)
            now = alias_version(tracking, name, alias)
            if _earlier(tracking, book, alias) != goal:
                raise BusyError(
                    f"{name}@{alias} was moved by somebody else at the same moment",
                    "look with gemma-ops show, and try again",
                )
            fields = move_fields("rollback", alias, now, checked, why=why, excuse=None)
            done = finish_move(tracking, book, book.append("intent", **fields))
            words = f"{name}@{alias} is back at version {checked.version} (it was {now})"
        return Promotion(
            name, alias, checked.version, now, checked.outcome, None, True, done["hash"], book.shelf.at, words
        )


@dataclass(frozen=True)
class _Grounds:
    """What a version was weighed against, and what speaks against it."""

    policy: PolicyInForce | None
    compared_with: str | None
    against: tuple[str, ...]
    failed: tuple[str, ...]


def _wanted(tracking: Tracking, name: str, version: str | int | None) -> Any:
    """The version to be promoted. Raises OpsError where it isn't there, saying so if it was there once."""
    try:
        return stored.version(tracking, name, version)
    except OpsError as error:
        gone = gone_versions(Ledger(tracking, name).entries(), stored.versions(tracking, name))
        if gone and (version is None or str(version) in gone):
            raise OpsError(
                f"version {gone[-1] if version is None else version} of {name} was deleted in MLflow",
                "its run registers it again as a new version: gemma-ops run CONFIG",
            ) from error
        raise


def _later_gone(
    entries: list[Entry], tracking: Tracking, checked: CheckedVersion, version: str | int | None
) -> list[str]:
    """Later versions that were deleted, where the latest was asked for without a number."""
    gone = gone_versions(entries, stored.versions(tracking, checked.manifest["subject"]["name"]))
    later = [number for number in gone if int(number) > int(checked.version)] if version is None else []
    return [
        f"version {number} was deleted in MLflow, so {checked.version} is the latest that is left" for number in later
    ]


def _grounds(tracking: Tracking, name: str, entries: list[Entry], checked: CheckedVersion) -> _Grounds:
    policy = policy_in_force(name, entries)
    number = alias_version(tracking, name, CHAMPION)
    incumbent = None
    if number is not None and number != checked.version:
        found = stored.version(tracking, name, number)
        incumbent = Incumbent(number, str(found.tags.get(stored.TAG)))
    looks = looks_before(entries, checked.version)
    against = objections(checked.verdict, checked.lacking, policy, incumbent, looks)
    failed = failed_before(entries, weights_of(checked.manifest["subject"]), checked.version)
    return _Grounds(policy, number if incumbent else None, tuple(against), tuple(failed))


def _refusal(name: str, checked: CheckedVersion, grounds: _Grounds) -> GateError:
    told = [*grounds.against, *(f"note: {line}" for line in grounds.failed)]
    policy = f" ({grounds.policy.words})" if grounds.policy else ""
    lines = "".join(f"\n  {line}" for line in told)
    return GateError(
        f"version {checked.version} of {name} may not be promoted{policy}:{lines}",
        "read its report, and evaluate again what was not asked (--redo champion --redo evaluate --redo register); change what "
        f"is asked, with a reason (gemma-ops policy {name} --from CONFIG --reason 'why'); or take the responsibility: "
        f"gemma-ops promote {name} --override 'why'",
    )


def _earlier(tracking: Tracking, book: Ledger, alias: str) -> str:
    """The version a rollback of `alias` leads to: that of an interrupted rollback, else the one before the present one."""
    entries = book.entries()
    intent, now = ledger.pending(entries, alias), alias_version(tracking, book.name, alias)
    if intent and intent["action"] == "rollback":
        return str(intent["to"])
    if now is None:
        raise OpsError(f"{book.name} has no alias {alias!r}", alias_words(tracking, book.name))
    trail = ledger.trail([*entries, {**intent, "kind": "done"}] if intent and intent["to"] == now else entries, alias)
    if trail[-1:] != [now]:
        known = f"version {trail[-1]}" if trail else "nothing"
        raise GateError(
            f"{book.name}@{alias} is version {now}, but the ledger knows of {known}: it was moved without gemma-ops",
            f"promote the version you want: gemma-ops promote {book.name} --to {alias} --version …",
        )
    if len(trail) < 2:
        raise OpsError(
            f"{book.name}@{alias} was never another version than {now}",
            f"promote the one you want: gemma-ops promote {book.name} --version …",
        )
    return trail[-2]
