"""The ledger of a registered model: what happened, when, by whom and why, in a chain in which every entry carries the
last one's hash.

`version` says what was registered, `policy` what is asked of versions, `restart` that an earlier ledger was lost. A
move of an alias is written down before it happens (`intent`) and after (`done`), so that a crash in between is seen and
finished by whoever comes next; an intent that did not come true is closed with `void`.

Changing, dropping or reordering an entry breaks the chain. Cutting the chain, or writing another one, is seen by its
anchors: the last entry's number and hash stand in a tag of the registered model, and in a tag and the manifest of each
version as it was registered. Whoever may edit all of them at once can still rewrite history; the hash that promote
prints shows that.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from typing import Any

from gemma_ops.errors import ConfigError
from gemma_ops.registry import stored
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.shelves import Entry, FileShelf, TagShelf, VersionShelf, broken_ledger
from gemma_ops.registry.state import user
from gemma_ops.runs import digest

HEAD = "gemma_ops.ledger_head"
"""Tag of the registered model, and of each version, that anchors the chain: `<number>:<hash>` of its last entry."""
COPY_HEAD = "gemma_ops.copy_ledger_head"
"""Tag that anchors the chain in a version that was copied from another registered model."""
START = "0" * 64  # what the first entry chains to
_LONGEST = 1000  # characters of a reason, so that an entry fits a tag of any MLflow store


class PromotionLedger:
    """The ledger of one registered model."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.name, self.tracking = name, tracking
        folder = tracking.place.folder
        self.shelf: VersionShelf = (
            FileShelf(folder / "ledger" / f"{name}.jsonl") if folder else TagShelf(tracking, name)
        )

    def entries(self) -> list[Entry]:
        """Return all entries, after checking the chain. Raises GateError naming the entry at which it breaks."""
        found = self.shelf.read()
        last = START
        for position, entry in enumerate(found, start=1):
            body = {key: value for key, value in entry.items() if key != "hash"}
            if entry.get("n") != position:
                raise broken_ledger(self.name, f"entry {position} is missing or out of order", self.name)
            if entry.get("prev") != last or entry.get("hash") != digest.of_json(body):
                raise broken_ledger(self.name, f"entry {position} was changed after it was written", self.name)
            last = entry["hash"]
        return found

    def anchored(self) -> list[Entry]:
        """Return all entries, after comparing the chain with its anchors. Raises GateError where one of them isn't in
        it."""
        found = self.entries()
        model = self.tracking.client.get_registered_model(self.name)
        self._hold(found, model.tags.get(HEAD), "the registered model")
        for version in stored.registered_versions(self.tracking, self.name):
            # A copy brings the anchor in the ledger of its origin along.
            mark = COPY_HEAD if stored.is_copied_version(version) else HEAD
            self.check_version(found, str(version.version), version.tags.get(mark))
        return found

    def check_version(self, found: list[Entry], version: str, mark: str | None, where: str = "") -> None:
        """Compare the chain with the anchor that a version holds. Raises GateError where that is not in it."""
        # Versions from before a restart are anchored in the ledger that was lost.
        before = found[0].get("versions", ()) if found and found[0]["kind"] == "restart" else ()
        if version not in before:
            self._hold(found, mark, f"{where}version {version}")

    def append(self, kind: str, **fields: Any) -> Entry:
        """Add an entry of this kind to the checked chain, move the model's anchor to it, and return it."""
        before = self.entries()
        entry: Entry = {
            "n": len(before) + 1,
            "kind": kind,
            "model": self.name,
            **fields,
            "who": f"{user()}@{platform.node()}",
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "prev": before[-1]["hash"] if before else START,
        }
        entry["hash"] = digest.of_json(entry)
        self.shelf.append(entry)
        after = self.entries()
        if after[-1]["hash"] != entry["hash"]:
            raise broken_ledger(self.name, f"somebody else wrote entry {entry['n']} at the same moment", self.name)
        # Afterwards: a crash in between leaves a chain that is longer than its anchor says, which is no harm.
        self.tracking.client.set_registered_model_tag(self.name, HEAD, anchor(after))
        return entry

    def restart(self, reason: str) -> Entry:
        """Set aside what is left of a broken ledger and begin a new one, which says so and names the versions there
        are."""
        model = self.tracking.client.get_registered_model(self.name)
        kept = self.shelf.put_aside()
        versions = [str(version.version) for version in stored.registered_versions(self.tracking, self.name)]
        replaces = model.tags.get(HEAD)
        return self.append("restart", reason=reason, replaces=replaces, kept=kept, versions=versions)

    def _hold(self, found: list[Entry], mark: str | None, where: str) -> None:
        if mark is None:
            return  # registered before there were anchors
        number, _, expected = mark.partition(":")
        at = int(number) if number.isdigit() else 0
        if not found or len(found) < at:
            have = f"{len(found):,} entries" if found else "no entry"
            raise broken_ledger(self.name, f"it has {have}, and {where} was written when it had {at:,}", self.name)
        if at and found[at - 1]["hash"] != expected:
            raise broken_ledger(self.name, f"entry {at} is another than the one that {where} knows", self.name)


def anchor(entries: list[Entry]) -> str:
    """Return number and hash of the last entry, as a tag holds it; `0:` for an empty ledger."""
    return f"{len(entries)}:{entries[-1]['hash'] if entries else ''}"


def pending_moves(entries: list[Entry], alias: str) -> Entry | None:
    """Return the intent for `alias` that was neither done nor voided, if its process died in between."""
    opened = None
    for entry in entries:
        if entry.get("alias") == alias:
            opened = entry if entry["kind"] == "intent" else None
    return opened


def trail(entries: list[Entry], alias: str) -> list[str]:
    """Return the versions `alias` stood at, oldest first, the present one last; going back takes the later one away."""
    found: list[str] = []
    for entry in entries:
        if entry["kind"] != "done" or entry["alias"] != alias:
            continue
        if entry["action"] == "rollback":
            while found and found[-1] != entry["to"]:
                found.pop()
        if not found or found[-1] != entry["to"]:
            found.append(entry["to"])
    return found


def reason_given(reason: str | None, key: str = "reason") -> str:
    """Return a reason fit for the ledger. Raises ConfigError for none or one that is too long."""
    text = (reason or "").strip()
    if not text:
        raise ConfigError(f"--{key} is empty", "say in a sentence why, for whoever reads the ledger later")
    if len(text) > _LONGEST:
        raise ConfigError(f"--{key} is {len(text):,} characters long", f"say it in {_LONGEST:,}, and link to the rest")
    return text


def lock_name(uri: str, name: str) -> str:
    """Return a file name for the lock on one model of one place."""
    return f"gemma-ops-{os.getuid()}-{hashlib.sha256(f'{uri} {name}'.encode()).hexdigest()[:16]}.lock"
