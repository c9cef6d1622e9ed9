"""Text files in any encoding, read as UTF-8."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import BinaryIO

from gemma_ops.errors import DataError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LOOK = 4096


def encoding_of(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a file show, by its byte order mark or by where its zero bytes stand
    (text that begins with Latin letters, as JSON does); None where nothing speaks against UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    even, odd = head[0:_LOOK:2].count(0), head[1:_LOOK:2].count(0)
    half = min(len(head), _LOOK) // 2
    if head[:1] != b"\0" and head[1:4] == b"\0\0\0":
        return "utf-32-le"
    if head[3:4] not in (b"\0", b"") and head[:3] == b"\0\0\0":
        return "utf-32-be"
    if odd > 0.3 * half > even:
        return "utf-16-le"
    return "utf-16-be" if even > 0.3 * half > odd else None


def open_as_utf8(path: Path, encoding: str = "auto") -> BinaryIO:
    """Open a file for reading as UTF-8 bytes without a byte order mark, whatever it is written in.

    `encoding` is `data.encoding`; with `auto` UTF-16 and UTF-32 are told by their first bytes and all else is left as
    it is. Raises DataError for an encoding that Python doesn't know.
    """
    file = path.open("rb")
    head = file.read(_LOOK)
    file.seek(0)
    found = encoding_of(head) or "utf-8" if encoding == "auto" else encoding
    try:
        name = codecs.lookup(found).name
    except LookupError as error:
        file.close()
        raise DataError(
            f"there is no encoding {encoding!r}", "set data.encoding to one of Python's, such as cp1252"
        ) from error
    if name == "utf-8":
        return file
    return io.BufferedReader(_Recoded(file, name))


class _Recoded(io.RawIOBase):
    """A file's bytes, decoded from one encoding and encoded as UTF-8 while they are read."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._ready = b""
        self._first = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            chunk = self._file.read(1 << 16)
            try:
                text = self._decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                raise DataError(
                    f"{self._file.name} can't be read as {self._encoding}: {error}", "correct data.encoding"
                ) from error
            if self._first and text:
                text, self._first = text.removeprefix("\ufeff"), False
            self._ready = text.encode("utf-8")
            if not chunk:
                break
        taken = min(len(buffer), len(self._ready))
        buffer[:taken] = self._ready[:taken]
        self._ready = self._ready[taken:]
        return taken

    def close(self) -> None:
        self._file.close()
        super().close()
