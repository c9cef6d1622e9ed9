"""The move of an alias: recorded before, carried out, read back, recorded after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.registry import lock, profile, promotion_ledger, stored
from gemma_ops.registry.points import LINEAGE
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.verification import CheckedVersion

_MOVED = ("action", "alias", "from", "to", "reason", "override", "verdict", "verdict_sha256", "manifest")
_GROUNDS = ("overrides", "policy", "failed_before", "points", "approved_by", "origin")
"""Further fields of a move's ledger entry: what was overridden, the digest of the policy, what was told, the points,
who approved, and which version of another model it is."""


@contextmanager
def opened_registry(machine: MachineConfig, name: str) -> Iterator[Tracking]:
    """Open the place where the model is registered. Raises OpsError when there is no such model."""
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        stored.registered_model(tracking, name)
        yield tracking


@contextmanager
def locked_model(machine: MachineConfig, name: str) -> Iterator[tuple[Tracking, PromotionLedger]]:
    """Hold the model for the length of the block, and give its ledger, which was compared with its anchors."""
    with opened_registry(machine, name) as tracking, lock.held(tracking, name):
        book = PromotionLedger(tracking, name)
        book.anchored()
        yield tracking, book


def alias_version(tracking: Tracking, name: str, alias: str) -> str | None:
    """Return the version an alias stands at now; None when it isn't set."""
    found = stored.registered_model(tracking, name).aliases.get(alias)
    return None if found is None else str(found)


def promoted_version(tracking: Tracking, name: str, alias: str) -> str | None:
    """Return the version an alias stands at, as the ledger confirms; None when it isn't set. An alias that was never
    promoted stands where somebody put it.

    Raises GateError where the alias was moved past the ledger, and for a ledger that isn't what was written.
    """
    now = alias_version(tracking, name, alias)
    while True:
        entries = PromotionLedger(tracking, name).entries()
        trail, intent = promotion_ledger.trail(entries, alias), promotion_ledger.pending_moves(entries, alias)
        if now is None or not trail or now in (trail[-1], intent["to"] if intent else None):
            return now
        before, now = now, alias_version(tracking, name, alias)
        if now == before:
            break  # else it moved while the ledger was read
    raise GateError(
        f"{LINEAGE}: {name}@{alias} stands at version {now} in MLflow, and its ledger put it at version {trail[-1]}: "
        "it was moved without gemma-ops",
        f"promote the version you want: gemma-ops promote {name} --to {alias} --version …",
    )


def move_fields(
    action: str, alias: str, now: str | None, checked: CheckedVersion, *, why: str, excuse: str | None, **grounds: Any
) -> Entry:
    """Return the fields of an intent; the entry that closes it repeats them."""
    return {
        "action": action,
        "alias": alias,
        "from": now,
        "to": checked.version,
        "reason": why,
        "override": excuse,
        "verdict": checked.outcome,
        "verdict_sha256": checked.verdict_sha256,
        "manifest": checked.digest,
        **grounds,
    }


def finish_move(tracking: Tracking, book: PromotionLedger, intent: Entry) -> Entry:
    """Carry out a recorded intent, check the result, and record that."""
    tracking.client.set_registered_model_alias(book.name, intent["alias"], intent["to"])
    now = alias_version(tracking, book.name, intent["alias"])
    if now != intent["to"]:
        book.append("void", **_repeated(intent))
        raise GateError(
            f"{book.name}@{intent['alias']} is version {now}: somebody moved it at the same moment",
            "look with gemma-ops show",
        )
    return book.append("done", **_repeated(intent))


def settle_move(tracking: Tracking, book: PromotionLedger, alias: str) -> None:
    """Close an intent whose process died: `done` if the alias got there, else `void`."""
    intent = promotion_ledger.pending_moves(book.entries(), alias)
    if intent is not None:
        came_true = alias_version(tracking, book.name, alias) == intent["to"]
        book.append("done" if came_true else "void", **_repeated(intent))


def check_alias(alias: str) -> None:
    """Refuse the aliases `latest` and `v1`, `v2`, …, which MLflow reserves."""
    if (
        not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,254}", alias)
        or alias.lower() == "latest"
        or re.fullmatch(r"[vV]\d+", alias)
    ):
        raise ConfigError(f"{alias!r} can't be an alias", "use a word such as champion or challenger")


def alias_words(tracking: Tracking, name: str) -> str:
    """Return the aliases of a model in words, or how to set one."""
    found = stored.registered_model(tracking, name).aliases
    return (
        f"aliases: {', '.join(f'{alias} (version {number})' for alias, number in sorted(found.items()))}"
        if found
        else (f"none is set yet: gemma-ops promote {name}")
    )


def _repeated(intent: Entry) -> Entry:
    return {key: intent[key] for key in (*_MOVED, *_GROUNDS) if key in intent}
