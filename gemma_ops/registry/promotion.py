"""Promotion: an alias moves only to a version whose evidence meets the model's policy and whose bytes are those that
were registered.

    1. check the version: manifest against its digest, every stored byte against the manifest, signature, verdict
    2. lock the model, compare the ledger with its anchors, finish what a crash left open
    3. weigh the version point by point: against the policy, the champion, and the looks of earlier versions
    4. write `intent`, move the alias, read it back, write `done`

Bytes that differ, a signature and a ledger that don't hold can't be overridden. Every other point can be, with a
reason; the ledger and the version keep the reason and everything that it overrode.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import BusyError, GateError, OpsError
from gemma_ops.registry import promotion_ledger, stored
from gemma_ops.registry.copying import copy_of, copy_version, production_model
from gemma_ops.registry.move_outcome import Promotion
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
from gemma_ops.registry.objections import Incumbent
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.registry.policies import append_policy, policy_in_force
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.served import ServeNeeds
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.verification import CheckedVersion, verify_version
from gemma_ops.registry.version_records import gone_versions
from gemma_ops.registry.weighing import Move, Weighing, weigh_version


def promote(
    machine: MachineConfig,
    name: str,
    *,
    to: str = CHAMPION,
    version: str | int | None = None,
    reason: str,
    override: str | None = None,
    expect: str | int | None = None,
    approved_by: str | None = None,
    needs: ServeNeeds | None = None,
) -> Promotion:
    """Point an alias at `version` (None: the latest) of model `name`: the alias `to`, or that of another registered
    model where `to` is `MODEL@ALIAS` or `NAME-prod`, which the version is then copied into.

    `override` is the reason for promoting against what the evidence says; `expect` the version the alias must stand at
    now; `approved_by` who approved, where the policy asks for it; `needs` how it is to be served. Raises GateError when
    a point, the ledger or `expect` forbids it, OpsError when model or version doesn't exist, ConfigError for a key that
    can't be read, BusyError while another promotion runs, ServiceError when MLflow can't be reached. Safe to repeat.
    """
    why = promotion_ledger.reason_given(reason)
    excuse = promotion_ledger.reason_given(override, "override") if override is not None else None
    approver = promotion_ledger.reason_given(approved_by, "approved-by") if approved_by is not None else None
    model, alias = production_model(name, to)
    check_alias(alias)
    with opened_registry(machine, name) as tracking:
        # Reads every byte, so it comes before the lock.
        checked = verify_version(tracking, _wanted(tracking, name, version), machine.trusted_keys)
        origin = _own_entries(PromotionLedger(tracking, name), checked) if model != name else []
        if model != name:
            stored.find_or_create(tracking, model, f"What of {name} was promoted.")
    with locked_model(machine, model) as (tracking, book):
        origin = origin if model != name else _own_entries(book, checked)
        settle_move(tracking, book, alias)
        now = alias_version(tracking, model, alias)
        entries = book.entries()
        trail = promotion_ledger.trail(entries, alias)
        there = checked.version if model == name else copy_of(tracking, model, checked)
        if there is not None and now == there and trail and trail[-1] == now:
            words = f"{model}@{alias} is version {now} already: nothing changed"
            before = trail[-2] if len(trail) > 1 else None
            head, at = entries[-1]["hash"], book.shelf.at
            return Promotion(model, alias, now, before, checked.outcome, excuse, False, head, at, words)
        if expect is not None and now != str(expect):
            raise GateError(
                f"{model}@{alias} is {f'version {now}' if now else 'not set'}, not version {expect}",
                "look at what changed (gemma-ops show), then say --expect with the version you mean to replace",
            )
        move = Move(model, alias, now, entries, approver, needs or ServeNeeds())
        weighing = _weighed(tracking, name, checked, origin, move)
        if weighing.against and excuse is None:
            raise weighing.refusal(name, checked)
        if model != name:
            checked = copy_version(tracking, book, name, checked, origin)
            if weighing.policy and policy_in_force(model, entries) is None:
                append_policy(book, weighing.policy.policy, f"taken over from {name}: {weighing.policy.reason}"[:1000])
        if excuse is not None and weighing.against:
            # Before the alias moves, so that an overridden version never stands there without saying so.
            tracking.client.set_model_version_tag(model, checked.version, "override", excuse)
        fields = move_fields(
            "promote", alias, now, checked, why=why, excuse=excuse, overrides=list(weighing.against),
            policy=weighing.policy.digest if weighing.policy else None, failed_before=list(weighing.failed),
            points=[point.kept() for point in weighing.points], approved_by=approver, origin=checked.origin,
        )  # fmt: skip
        done = finish_move(tracking, book, book.append("intent", **fields))
        words = f"{model}@{alias} is version {checked.version}" + (
            f" (it was {now})" if now and now != checked.version else ""
        )
        words += f", a copy of {checked.origin}" if checked.origin else ""
        return Promotion(
            model, alias, checked.version, now, checked.outcome, excuse, True, done["hash"], book.shelf.at, words,
            policy=weighing.policy.words if weighing.policy else "", compared_with=weighing.compared_with,
            overrides=weighing.against, points=weighing.points,
            notes=(*weighing.failed, *_later_gone(origin, tracking, name, checked, version)),
        )  # fmt: skip


def rollback(machine: MachineConfig, name: str, *, alias: str = CHAMPION, reason: str) -> Promotion:
    """Point `alias` back at the version it stood at before, after comparing that version's bytes with its manifest
    and its signature with the trusted keys.

    The verdict is not asked again: the version was promoted before. Raises OpsError when there is no earlier one, else
    as `promote`. Repeated after a crash it finishes the move it had begun instead of going back twice.
    """
    why = promotion_ledger.reason_given(reason)
    with opened_registry(machine, name) as tracking:
        book = PromotionLedger(tracking, name)
        book.anchored()
        goal = _earlier(tracking, book, alias)
        checked = verify_version(tracking, stored.version(tracking, name, goal), machine.trusted_keys)
    with locked_model(machine, name) as (tracking, book):
        intent = promotion_ledger.pending_moves(book.entries(), alias)
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


def _own_entries(book: PromotionLedger, checked: CheckedVersion) -> list[Entry]:
    """Return the ledger of the model, which must know the version as it was registered. Raises GateError where it
    doesn't."""
    entries = book.anchored()
    if not checked.origin:
        book.check_version(entries, checked.version, checked.manifest["made"].get("ledger"), "the manifest of ")
    known = [one for one in entries if one["kind"] == "version" and one["version"] == checked.version]
    if known and known[-1]["manifest"] != checked.digest:
        raise GateError(
            f"{INTEGRITY}: the ledger of {book.name} knows version {checked.version} by another manifest "
            f"({known[-1]['manifest'][:12]}) than it carries ({checked.digest[:12]})",
            "promote another version, or register this one again from its run (--redo register)",
        )
    return entries


def _weighed(tracking: Tracking, name: str, checked: CheckedVersion, origin: list[Entry], move: Move) -> Weighing:
    """Weigh the version against the policy and the champion of the model that it is to go to."""
    policy = policy_in_force(move.name, list(move.entries)) or policy_in_force(name, origin)
    number = alias_version(tracking, move.name, CHAMPION)
    incumbent = None
    if number is not None:
        manifest = str(stored.version(tracking, move.name, number).tags.get(stored.TAG))
        incumbent = Incumbent(number, manifest) if manifest != checked.digest else None
    return weigh_version(checked, policy, incumbent, origin, move)


def _wanted(tracking: Tracking, name: str, version: str | int | None) -> Any:
    """Return the version to be promoted. Raises OpsError where it isn't there, saying so if it was there once."""
    try:
        return stored.version(tracking, name, version)
    except OpsError as error:
        gone = gone_versions(PromotionLedger(tracking, name).entries(), stored.registered_versions(tracking, name))
        if gone and (version is None or str(version) in gone):
            raise OpsError(
                f"version {gone[-1] if version is None else version} of {name} was deleted in MLflow",
                "its run registers it again as a new version: gemma-ops run CONFIG",
            ) from error
        raise


def _later_gone(
    entries: list[Entry], tracking: Tracking, name: str, checked: CheckedVersion, version: str | int | None
) -> list[str]:
    """Return later versions that were deleted, where the latest was asked for without a number."""
    gone = gone_versions(entries, stored.registered_versions(tracking, name))
    later = [number for number in gone if int(number) > int(checked.registered)] if version is None else []
    return [
        f"version {number} was deleted in MLflow, so {checked.registered} is the latest that is left"
        for number in later
    ]


def _earlier(tracking: Tracking, book: PromotionLedger, alias: str) -> str:
    """Return the version a rollback of `alias` leads to: that of an interrupted rollback, else the one before the
    present one."""
    entries = book.entries()
    intent, now = promotion_ledger.pending_moves(entries, alias), alias_version(tracking, book.name, alias)
    if intent and intent["action"] == "rollback":
        return str(intent["to"])
    if now is None:
        raise OpsError(f"{book.name} has no alias {alias!r}", alias_words(tracking, book.name))
    trail = promotion_ledger.trail(
        [*entries, {**intent, "kind": "done"}] if intent and intent["to"] == now else entries, alias
    )
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
