"""Storage of a ledger's entries: a file next to the database, or tags of the registered model on a server.

For a folder the ledger is a file, `ledger/<name>.jsonl`, appended and flushed: it outlives the database and can be kept
in git. A server offers no file, and an artifact can be overwritten as a whole without a trace, so there each entry is a
tag of its own on the registered model (`gemma_ops.ledger.000001`): one transaction each, read in one call, visible to
every client, and safe to send twice.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from gemma_ops.errors import GateError
from gemma_ops.registry.profile import Tracking

Entry = dict[str, Any]
PREFIX = "gemma_ops.ledger."
LOST = "gemma_ops.old_ledger."
"""Prefix of the tags of a ledger that was set aside."""
_LONGEST = 7900
"""Most characters of an entry on a server: MLflow cuts longer tags without notice."""


class VersionShelf(Protocol):
    """The interface of a ledger's storage, in order; `at` says where in words."""

    at: str

    def read(self) -> list[Entry]: ...
    def append(self, entry: Entry) -> None: ...
    def put_aside(self) -> str:
        """Keep the present entries under another name, and return where; what follows begins a new ledger."""
        ...


class FileShelf:
    """Storage with one JSON line per entry."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, str(path)

    def read(self) -> list[Entry]:
        """Return all whole entries. A last line without its end was torn by a crash before it counted, and is left
        out."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise broken_ledger(str(self.path), f"line {_first_bad(lines)} is no JSON", self.path.stem) from error

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

    def put_aside(self) -> str:
        if not self.path.exists():
            return "nowhere: it was gone"
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        kept = self.path.with_name(f"{self.path.stem}.{stamp}.old")
        self.path.rename(kept)
        return str(kept)


class TagShelf:
    """Storage with one tag of the registered model per entry."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking, self.name = tracking, name
        self.at = f"tags {PREFIX}… of {name}"

    def read(self) -> list[Entry]:
        tags = self.tracking.client.get_registered_model(self.name).tags
        try:
            return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(PREFIX)]
        except ValueError as error:
            raise broken_ledger(f"the tags {PREFIX}… of {self.name}", "one is no JSON", self.name) from error

    def append(self, entry: Entry) -> None:
        text = json.dumps(entry, ensure_ascii=False)
        if len(text) > _LONGEST:
            raise GateError(
                f"an entry of {len(text):,} characters doesn't fit into a tag of {self.name}",
                "ask for fewer gates, or keep the ledger in a folder: --set machine.mlflow=mlflow",
            )
        self.tracking.client.set_registered_model_tag(self.name, f"{PREFIX}{entry['n']:06d}", text)

    def put_aside(self) -> str:
        client, tags = self.tracking.client, self.tracking.client.get_registered_model(self.name).tags
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for key in sorted(tags):
            if key.startswith(PREFIX):
                client.set_registered_model_tag(self.name, f"{LOST}{stamp}.{key.removeprefix(PREFIX)}", tags[key])
                client.delete_registered_model_tag(self.name, key)
        return f"tags {LOST}{stamp}.… of {self.name}"


def broken_ledger(where: str, why: str, name: str) -> GateError:
    """Return the error for a ledger that isn't what was written, with the honest ways on."""
    return GateError(
        f"the ledger of {where} can't be trusted: {why}",
        "restore it from a copy; if there is none, find out who changed it, and begin a new one that says so: "
        f"gemma-ops policy {name} --from CONFIG --new-ledger --reason '…'",
    )


def _first_bad(lines: list[bytes]) -> int:
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            return number
    return 0
