"""Lines of a file in constant memory, however long a line or large the file.

A line above the cap is skipped without being held: only its beginning and its length are kept, for the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_CHUNK = 1 << 20
_HEAD = 2000  # bytes kept of a line that is skipped: enough for 500 characters of any script


@dataclass(frozen=True)
class TextLine:
    """One line without its line break. `length` is its size in bytes; `data` is only the head when it was `skipped`."""

    number: int
    data: bytes
    length: int
    skipped: bool = False

    def text(self) -> str:
        """Return the line as UTF-8. Raises UnicodeDecodeError."""
        return self.data.decode("utf-8")

    def excerpt(self) -> str:
        """Return the line's beginning for a report, whatever it holds."""
        return self.data[:_HEAD].decode("utf-8", "replace").replace("\x00", "\\0")


def read_lines(file: BinaryIO, cap: int) -> Iterator[TextLine]:
    """Yield the lines of a binary file from its current position, numbered from 1; none is held above `cap` bytes.

    A byte order mark is taken off, `\\r\\n` counts as one line break. Memory stays below `cap` + 2 MiB.
    """
    number, held, length, skipping = 1, bytearray(), 0, False
    first = True
    while chunk := file.read(_CHUNK):
        if first:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        start = 0
        while start < len(chunk):
            end = chunk.find(b"\n", start)
            stop = end if end >= 0 else len(chunk)
            length += stop - start
            if not skipping:
                held += chunk[start:stop]
                if length > cap:
                    skipping = True
                    del held[_HEAD:]
            if end < 0:
                break
            yield _line(number, held, length, skipping)
            number, held, length, skipping, start = number + 1, bytearray(), 0, False, end + 1
    if length:
        yield _line(number, held, length, skipping)


def _line(number: int, held: bytearray, length: int, skipped: bool) -> TextLine:
    data = bytes(held)
    return TextLine(number, data if skipped else data.removesuffix(b"\r"), length, skipped)
