"""CSV and TSV, row by row, with the faults that such files really have reported by line.

The csv module would read the rest of a file into one cell after a quote that is never closed; here a record above the
cap is given up and reading goes on after its first line.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gemma_ops.data.line_reader import TextLine, read_lines
from gemma_ops.errors import DataError

# line, value or None, excerpt, code, reason: the fields of files.RawRow after the file's name
Record = tuple[int, dict[str, Any] | None, str, str, str]


class _TooLongError(Exception):
    """A record is longer than the cap."""


class _Feed:
    """Feeder of decoded lines to a csv.reader, which remembers those of the record being read."""

    def __init__(self, lines: Iterator[TextLine], cap: int) -> None:
        self.lines = lines
        self.cap = cap
        self.record: list[TextLine] = []
        self.size = 0
        self.again: deque[TextLine] = deque()
        self.faults: list[tuple[TextLine, str, str]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.lines)
        self.record.append(line)
        self.size += line.length
        if line.skipped or self.size > self.cap:
            raise _TooLongError
        try:
            return line.text() + "\n"
        except UnicodeDecodeError as error:
            self.faults.append((line, "not_utf8", f"not UTF-8: byte 0x{error.object[error.start]:02x}"))
            return line.data.decode("utf-8", "replace") + "\n"

    def start(self) -> None:
        self.record, self.faults, self.size = [], [], 0


def read_csv(path: Path, file: BinaryIO, cap: int, delimiter: str) -> Iterator[Record]:
    """Yield the records of a table with a header, as mappings of text, each with the line it starts on; `file` gives
    its bytes as UTF-8.

    A `.csv` whose header has semicolons and no commas is read with semicolons. Raises DataError on a missing header or
    one with empty or doubled names.
    """
    csv.field_size_limit(max(cap, 1 << 17))
    feed = _Feed(read_lines(file, cap), cap)
    header, delimiter = _header(path, feed, delimiter)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.start()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (_TooLongError, csv.Error) as error:
            yield _give_up(feed, error)
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        if not cells:
            continue
        first = feed.record[0]
        if feed.faults:
            line, code, reason = feed.faults[0]
            yield line.number, None, line.excerpt(), code, reason
        elif len(cells) != len(header):
            reason = f"the row has {len(cells)} cells, the header {len(header)}"
            yield first.number, None, _joined(feed.record), "ragged", reason
        else:
            yield first.number, dict(zip(header, cells, strict=True)), _joined(feed.record), "", ""


def _header(path: Path, feed: _Feed, delimiter: str) -> tuple[list[str], str]:
    try:
        text = next(feed)
    except (StopIteration, _TooLongError):
        raise DataError(f"{path} has no header line", "its first line must name the columns") from None
    if delimiter == "," and ";" in text and "," not in text:
        delimiter = ";"
    try:
        header = [name.strip() for name in next(csv.reader([text.rstrip("\n")], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        raise DataError(
            f"{path}:1: the header can't be read as columns: {text[:80]!r}",
            "its first line must name the columns; if the file is in another encoding, set data.encoding",
        ) from None
    doubled = sorted({name for name in header if header.count(name) > 1})
    if not header or "" in header or doubled:
        what = f"names {doubled[0]!r} twice" if doubled and doubled[0] else "has an empty column name"
        raise DataError(f"{path}:1: the header {what}", "give every column one name of its own")
    return header, delimiter


def _give_up(feed: _Feed, error: Exception) -> Record:
    """Report the record and put its lines after the first back, so that a stray quote costs one row and not the
    file."""
    first, rest = feed.record[0], feed.record[1:]
    feed.again.extendleft(reversed(rest))
    if first.skipped or isinstance(error, _TooLongError):
        size = first.length if first.skipped else feed.size
        hint = "" if first.skipped else " (is a quote never closed?)"
        reason = f"the record is longer than data.max_line_mb ({feed.cap / 1e6:g}): {size / 1e6:.1f} MB{hint}"
        return first.number, None, first.excerpt(), "line_too_long", reason
    return first.number, None, _joined(feed.record[:1]), "bad_csv", f"not CSV: {error}"


def _joined(lines: list[TextLine]) -> str:
    text = ""
    for line in lines:
        text += line.excerpt() + "\n"
        if len(text) > 2000:
            break
    return text.rstrip("\n")
