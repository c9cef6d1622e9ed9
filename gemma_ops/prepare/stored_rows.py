"""Usable rows between the passes: a working file, where each row begins in it, and the group of each."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

AT_ONCE = 512
"""Rows of a chunk."""


class RowSpan(NamedTuple):
    """Rows of the working file: bytes [start, end), the number of the first of them, and which of them (counted from
    it) to leave out."""

    start: int
    end: int
    first: int
    skipped: frozenset[int] = frozenset()


class StoredRows:
    """The working file, written line by line, then read by number or span. In memory: 8 bytes a row, and its group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: list[str] = []
        self._places = array("Q", [0])

    def __len__(self) -> int:
        return len(self.groups)

    def added(self, line: str, group: str) -> str:
        """Return a line with its break, to write next; it is counted as written."""
        self.groups.append(group)
        self._places.append(self._places[-1] + len(line.encode("utf-8")) + 1)
        return line + "\n"

    def spans(self, dropped: set[int] | None = None) -> Iterator[RowSpan]:
        """Yield all rows in chunks; those with a number in `dropped` are to be left out."""
        for first in range(0, len(self), AT_ONCE):
            last = min(first + AT_ONCE, len(self))
            skipped = frozenset(row - first for row in range(first, last) if row in dropped) if dropped else frozenset()
            yield RowSpan(self._places[first], self._places[last], first, skipped)

    def row(self, number: int) -> dict[str, Any]:
        """Read one row."""
        (line,) = lines_of(self.path, RowSpan(self._places[number], self._places[number + 1], number))
        row: dict[str, Any] = json.loads(line)
        return row


def lines_of(path: Path, span: RowSpan) -> list[str]:
    """Return the lines of a span, with their breaks."""
    with path.open("rb") as file:
        file.seek(span.start)
        return [line.decode("utf-8") for line in file.read(span.end - span.start).splitlines(keepends=True)]


def rows_of(path: Path, span: RowSpan) -> list[dict[str, Any]]:
    """Return the rows of a span."""
    return [json.loads(line) for line in lines_of(path, span)]
