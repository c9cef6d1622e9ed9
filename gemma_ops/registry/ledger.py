"""Who moved which alias from which version to which, when and why: a chain in which every entry carries the last one's hash.

A move is written down before it happens (`intent`) and after (`done`), so that a crash in between is seen and finished by
whoever comes next; an intent that did not come true is closed with `void`. Changing, dropping or reordering an earlier entry
breaks the chain.

For a folder the ledger is a file beside the database, `ledger/<name>.jsonl`, appended and flushed: it outlives the
database and can be kept in git. A server offers no file, and an artifact can be overwritten as a whole without a trace, so there
each entry is a tag of its own on the registered model (`gemma_ops.ledger.000001`): one transaction each, read in one call,
visible to every client, and safe to send twice. Who may edit the model can still delete the tail; the hash of the
last entry, which promote prints, shows that.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, Protocol

from gemma_ops import digest
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.state import user

Entry = dict[str, Any]
PREFIX = "gemma_ops.ledger."
START = "0" * 64  # what the first entry chains to
_LONGEST = 1000  # characters of a reason, so that an entry fits a tag of any MLflow store


class Shelf(Protocol):
    """Where entries are kept, in order; `at` says where in words."""

    at: str

    def read(self) -> list[Entry]: ...
    def append(self, entry: Entry) -> None: ...


class FileShelf:
    """One JSON line per entry."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, str(path)

    def read(self) -> list[Entry]:
        """All whole entries. A last line without its end was torn by a crash before it counted, and is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise _broken(str(self.path), f"line {_first_bad(lines)} is no JSON") from error

    def append(self, entry: Entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < size:
                file.truncate(whole)
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class TagShelf:
    """One tag of the registered model per entry."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking, self.name = tracking, name
        self.at = f"tags {PREFIX}… of {name}"

    def read(self) -> list[Entry]:
        tags = self.tracking.client.get_registered_model(self.name).tags
        try:
            return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(PREFIX)]
        except ValueError as error:
            raise _broken(f"the tags {PREFIX}… of {self.name}", "one is no JSON") from error

    def append(self, entry: Entry) -> None:
        self.tracking.client.set_registered_model_tag(
            self.name, f"{PREFIX}{entry['n']:06d}", json.dumps(entry, ensure_ascii=False)
        )


class Ledger:
    """The ledger of one registered model."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.name = name
        folder = tracking.place.folder
        self.shelf: Shelf = FileShelf(folder / "ledger" / f"{name}.jsonl") if folder else TagShelf(tracking, name)

    def entries(self) -> list[Entry]:
        """All entries, after checking the chain. Raises GateError naming the entry at which it breaks."""
        found = self.shelf.read()
        last = START
        for position, entry in enumerate(found, start=1):
            body = {key: value for key, value in entry.items() if key != "hash"}
            if entry.get("n") != position:
                raise _broken(self.name, f"entry {position} is missing or out of order")
            if entry.get("prev") != last or entry.get("hash") != digest.of_json(body):
                raise _broken(self.name, f"entry {position} was changed after it was written")
            last = entry["hash"]
        return found

    def append(self, kind: str, **fields: Any) -> Entry:
        """Add an entry of this kind to the checked chain and return it."""
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
            raise _broken(self.name, f"somebody else wrote entry {entry['n']} at the same moment")
        return entry


def pending(entries: list[Entry], alias: str) -> Entry | None:
    """The intent for `alias` that was neither done nor voided, if its process died in between."""
    opened = None
    for entry in entries:
        if entry["alias"] == alias:
            opened = entry if entry["kind"] == "intent" else None
    return opened


def trail(entries: list[Entry], alias: str) -> list[str]:
    """The versions `alias` stood at, oldest first, the present one last; going back takes the later one away."""
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
    """A reason fit for the ledger. Raises ConfigError for none or one that is too long."""
    text = (reason or "").strip()
    if not text:
        raise ConfigError(f"--{key} is empty", "say in a sentence why, for whoever reads the ledger later")
    if len(text) > _LONGEST:
        raise ConfigError(f"--{key} is {len(text):,} characters long", f"say it in {_LONGEST:,}, and link to the rest")
    return text


def _broken(where: str, why: str) -> GateError:
    return GateError(
        f"the ledger of {where} can't be trusted: {why}",
        "find out who changed it; to begin a new one, put the old one aside (the file in ledger/, or the model's gemma_ops.ledger.… tags)",
    )


def _first_bad(lines: list[bytes]) -> int:
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            return number
    return 0


def lock_name(uri: str, name: str) -> str:
    """A file name for the lock on one model of one place."""
    return f"gemma-ops-{os.getuid()}-{hashlib.sha256(f'{uri} {name}'.encode()).hexdigest()[:16]}.lock"
