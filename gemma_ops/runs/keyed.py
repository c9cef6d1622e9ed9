"""JSON Lines of records with keys, that grow one by one and survive a kill at any moment.

A record that is in the file is never asked for again. At the end the file is rewritten in the order of what was asked,
so that it doesn't tell how often the work was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from gemma_ops.errors import DataError
from gemma_ops.runs.durable import write_text

Record = TypeVar("Record")
"""Type of a frozen dataclass whose field `key` tells its records apart."""


class KeyedFile(Generic[Record]):
    """File of keyed records: appends new ones and knows those that are there. A half-written last line, left by a kill,
    is cut off."""

    kind: ClassVar[type[Any]]
    """Dataclass of a line."""
    noun: ClassVar[str]
    """What a line is, for messages, such as `an answer`."""
    again: ClassVar[str]
    """Advice for a file that can't be read, such as `evaluate again`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Record] = {}
        if path.exists():
            self._recover()

    def lasts(self, record: Record) -> bool:
        """True if a later attempt may rely on a record; otherwise it is asked for anew."""
        return True

    def line(self, record: Record) -> dict[str, Any]:
        """Return what stands in the file for a record."""
        return asdict(record)  # type: ignore[call-overload, no-any-return]

    def append(self, records: Iterable[Record]) -> None:
        """Add records and force them to the disk."""
        records = list(records)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(self._text(record) for record in records if self.lasts(record))
            file.flush()
            os.fsync(file.fileno())
        self.known |= {_key(record): record for record in records}

    def finish(self, keys: Iterable[str]) -> list[Record]:
        """Rewrite the file in the order of `keys`, dropping what nobody asked for, whole or not at all."""
        records = [self.known[key] for key in dict.fromkeys(keys)]
        write_text(self.path, "".join(map(self._text, records)))
        return records

    def _text(self, record: Record) -> str:
        return json.dumps(self.line(record), ensure_ascii=False) + "\n"

    def _recover(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = self.kind(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise DataError(
                        f"{self.path}:{number}: not {self.noun}: {error}", f"remove {self.path.parent} and {self.again}"
                    ) from error
                if self.lasts(record):
                    self.known[_key(record)] = record
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)


def _key(record: Any) -> str:
    return str(record.key)
