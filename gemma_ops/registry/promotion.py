"""Moving an alias: only to a version whose evidence passed and whose bytes are those that were registered.

    1. lock the model, check the ledger's chain, finish what a crash left open
    2. check the version: manifest against its digest, every stored byte against the manifest, lineage, verdict
    3. write `intent`, move the alias, read it back, write `done`

A digest that differs can't be overridden. A verdict that isn't `pass`, or lineage with gaps, can be, with a reason that is
kept in the ledger and on the version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import BusyError, ConfigError, GateError, OpsError
from gemma_ops.registry import evidence, ledger, lock, manifest, profile, stored
from gemma_ops.registry.ledger import Entry, Ledger
from gemma_ops.registry.profile import Tracking


@dataclass(frozen=True)
class Promotion:
    """What happened: `changed` is False when the alias stood there already. `head` is the hash of the ledger's last entry,
    `ledger` where that is."""

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

    def to_json(self) -> dict[str, Any]:
        """Everything, as a JSON object."""
        return dict(vars(self))

    def lines(self) -> list[str]:
        """What happened, on what grounds, and where that is written down."""
        excuse = f", overridden: {self.override}" if self.override else ""
        return [
            self.words,
            f"  verdict {self.verdict}{excuse}; every byte as registered",
            f"  ledger {self.ledger}, last entry {self.head[:12]}",
        ]


@dataclass(frozen=True)
class Checked:
    """A version that may be served: its manifest's digest, its verdict and the verdict's digest."""

    version: str
    manifest: str
    verdict: str
    verdict_sha256: str | None
    lacking: tuple[str, ...]


def promote(
    machine: MachineConfig,
    name: str,
    *,
    to: str = "champion",
    version: str | int | None = None,
    reason: str,
    override: str | None = None,
    expect: str | int | None = None,
) -> Promotion:
    """Point alias `to` of model `name` at `version` (None: the latest).

    `override` is the reason for promoting without a passed verdict; `expect` the version the alias must stand at now.
    Raises GateError when the evidence, the bytes, the ledger or `expect` forbid it, OpsError when model or version doesn't
    exist, BusyError while another promotion runs, ServiceError when MLflow can't be reached. Safe to repeat.
    """
    why = ledger.reason_given(reason)
    excuse = ledger.reason_given(override, "override") if override is not None else None
    _check_alias(to)
    with _opened(machine, name) as tracking:
        # Reads every byte, so it comes before the lock.
        checked = check(tracking, stored.version(tracking, name, version))
        if excuse is None:
            _judge(name, checked)
    with _locked(machine, name) as (tracking, book):
        _settle(tracking, book, to)
        now = current(tracking, name, to)
        entries = book.entries()
        trail = ledger.trail(entries, to)
        if now == checked.version and trail and trail[-1] == now:
            words = f"{name}@{to} is version {now} already: nothing changed"
            before = trail[-2] if len(trail) > 1 else None
            head, at = entries[-1]["hash"], book.shelf.at
            return Promotion(name, to, now, before, checked.verdict, excuse, False, head, at, words)
        if expect is not None and now != str(expect):
            raise GateError(
                f"{name}@{to} is {f'version {now}' if now else 'not set'}, not version {expect}",
                "somebody moved it: look with gemma-ops show, then say --expect with what it is now",
            )
        if excuse is not None and (checked.verdict != "pass" or checked.lacking):
            # Before the alias moves, so that an overridden version never stands there without saying so.
            tracking.client.set_model_version_tag(name, checked.version, "override", excuse)
        done = _finish(
            tracking, book, book.append("intent", **_fields("promote", to, now, checked, why=why, excuse=excuse))
        )
        words = f"{name}@{to} is version {checked.version}" + (
            f" (it was {now})" if now and now != checked.version else ""
        )
        return Promotion(
            name, to, checked.version, now, checked.verdict, excuse, True, done["hash"], book.shelf.at, words
        )


def rollback(machine: MachineConfig, name: str, *, alias: str = "champion", reason: str) -> Promotion:
    """Point `alias` back at the version it stood at before, after comparing that version's bytes with its manifest.

    The verdict is not asked again: the version was promoted before. Raises OpsError when there is no earlier one, else as
    `promote`. Repeated after a crash it finishes the move it had begun instead of going back twice.
    """
    why = ledger.reason_given(reason)
    with _opened(machine, name) as tracking:
        goal = _earlier(tracking, Ledger(tracking, name), alias)
        checked = check(tracking, stored.version(tracking, name, goal))
    with _locked(machine, name) as (tracking, book):
        intent = ledger.pending(book.entries(), alias)
        if intent and intent["action"] == "rollback" and intent["to"] == goal:
            done = _finish(tracking, book, intent)
            words = f"{name}@{alias} is back at version {goal}: finished the rollback that was interrupted"
            return Promotion(
                name, alias, goal, intent["from"], checked.verdict, None, True, done["hash"], book.shelf.at, words
            )
        _settle(tracking, book, alias)
        now = current(tracking, name, alias)
        if _earlier(tracking, book, alias) != goal:
            raise BusyError(
                f"{name}@{alias} was moved by somebody else at the same moment",
                "look with gemma-ops show, and try again",
            )
        done = _finish(
            tracking, book, book.append("intent", **_fields("rollback", alias, now, checked, why=why, excuse=None))
        )
        words = f"{name}@{alias} is back at version {checked.version} (it was {now})"
        return Promotion(
            name, alias, checked.version, now, checked.verdict, None, True, done["hash"], book.shelf.at, words
        )


def _earlier(tracking: Tracking, book: Ledger, alias: str) -> str:
    """The version a rollback of `alias` leads to: that of an interrupted rollback, else the one before the present one."""
    entries = book.entries()
    intent, now = ledger.pending(entries, alias), current(tracking, book.name, alias)
    if intent and intent["action"] == "rollback":
        return str(intent["to"])
    if now is None:
        raise OpsError(f"{book.name} has no alias {alias!r}", _aliases(tracking, book.name))
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


def check(tracking: Tracking, found: Any) -> Checked:
    """Compare everything stored for a version with its manifest and read its verdict from those bytes.

    Raises GateError for a version that isn't ours, isn't whole, or was changed by as little as a bit.
    """
    logged = stored.logged_model(tracking, found)
    body = stored.read_manifest(tracking, logged)
    if found.tags.get(stored.TAG) != body["digest"]:
        raise GateError(
            f"{found.name} version {found.version} carries another manifest than its model", "register it again"
        )
    problems = stored.compare_bytes(tracking, logged, body)
    if problems:
        raise GateError(
            f"{found.name} version {found.version} is not what was registered: {'; '.join(problems[:5])}",
            "promote another version, or register this one again from its run (--redo register)",
        )
    verdict, sha256 = "missing", body["subject"]["files"].get("verdict.json", {}).get("sha256")
    if sha256:
        with stored.opened(tracking, logged, "verdict.json") as file:
            verdict = evidence.parse(json.loads(file.read_text(encoding="utf-8"))).outcome
    return Checked(str(found.version), body["digest"], verdict, sha256, tuple(manifest.missing(body)))


def current(tracking: Tracking, name: str, alias: str) -> str | None:
    """The version an alias stands at now; None when it isn't set."""
    found = stored.model(tracking, name).aliases.get(alias)
    return None if found is None else str(found)


@contextmanager
def _opened(machine: MachineConfig, name: str) -> Iterator[Tracking]:
    tracking = profile.connect(machine)
    with profile.calls(tracking.place):
        stored.model(tracking, name)
        yield tracking


@contextmanager
def _locked(machine: MachineConfig, name: str) -> Iterator[tuple[Tracking, Ledger]]:
    with _opened(machine, name) as tracking, lock.held(tracking, name):
        book = Ledger(tracking, name)
        book.entries()
        yield tracking, book


def _judge(name: str, checked: Checked) -> None:
    if checked.verdict != "pass":
        raise GateError(
            f"version {checked.version} of {name} may not be promoted: its verdict is {checked.verdict}",
            f"read its report, gather more evidence, or take the responsibility: gemma-ops promote {name} --override 'why'",
        )
    if checked.lacking:
        raise GateError(
            f"version {checked.version} of {name} may not be promoted: its manifest lacks {', '.join(checked.lacking)}",
            f"register it from a whole run, or take the responsibility: gemma-ops promote {name} --override 'why'",
        )


def _fields(action: str, alias: str, now: str | None, checked: Checked, *, why: str, excuse: str | None) -> Entry:
    """What an intent says; the entry that closes it repeats it."""
    return {
        "action": action,
        "alias": alias,
        "from": now,
        "to": checked.version,
        "reason": why,
        "override": excuse,
        "verdict": checked.verdict,
        "verdict_sha256": checked.verdict_sha256,
        "manifest": checked.manifest,
    }


_REPEATED = ("action", "alias", "from", "to", "reason", "override", "verdict", "verdict_sha256", "manifest")


def _finish(tracking: Tracking, book: Ledger, intent: Entry) -> Entry:
    """Carry out what was written down, look whether it came true, write that down."""
    tracking.client.set_registered_model_alias(book.name, intent["alias"], intent["to"])
    now = current(tracking, book.name, intent["alias"])
    fields = {key: intent[key] for key in _REPEATED}
    if now != intent["to"]:
        book.append("void", **fields)
        raise GateError(
            f"{book.name}@{intent['alias']} is version {now}: somebody moved it at the same moment",
            "look with gemma-ops show",
        )
    return book.append("done", **fields)


def _settle(tracking: Tracking, book: Ledger, alias: str) -> None:
    """Close an intent whose process died: `done` if the alias got there, else `void`."""
    intent = ledger.pending(book.entries(), alias)
    if intent is not None:
        came_true = current(tracking, book.name, alias) == intent["to"]
        book.append("done" if came_true else "void", **{key: intent[key] for key in _REPEATED})


def _check_alias(alias: str) -> None:
    """MLflow reserves `latest` and `v1`, `v2`, …"""
    if (
        not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,254}", alias)
        or alias.lower() == "latest"
        or re.fullmatch(r"[vV]\d+", alias)
    ):
        raise ConfigError(f"{alias!r} can't be an alias", "use a word such as champion or challenger")


def _aliases(tracking: Tracking, name: str) -> str:
    found = stored.model(tracking, name).aliases
    return (
        f"aliases: {', '.join(f'{alias} (version {number})' for alias, number in sorted(found.items()))}"
        if found
        else (f"none is set yet: gemma-ops promote {name}")
    )
