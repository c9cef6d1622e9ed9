"""Images and sounds that the files of a data set name, which decide what is trained on as the rows themselves do.

Asked at the start of every run, so that a changed picture counts as changed data. A file without a word that could
begin a part or a column of this kind is not parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gemma_ops.data import parts, row_files
from gemma_ops.data.rowerror import RowError

_HINTS = (b"image", b"audio", b"filedata", b"file_data")
_CHUNK = 1 << 24


def named(rows: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files on this machine that rows of these data files show, sorted. What can't be read is left to
    `prepare`."""
    found: set[Path] = set()
    for path in rows:
        if path.suffix.lower() in row_files.SUFFIXES and _may(path):
            for row in row_files.read_file(path):
                found.update(place for text in sources(row.value) if (place := _place(text, path.parent)))
    return tuple(sorted(found))


def sources(value: Any, *, outermost: bool = True) -> Iterator[str]:
    """Yield paths and addresses of images and sounds anywhere in a row, in any of the spellings that are read."""
    if isinstance(value, list):
        for item in value:
            yield from sources(item, outermost=False)
    if not isinstance(value, dict):
        return
    for item in value.values():
        yield from sources(item, outermost=False)
    given: list[parts.Part] = []
    try:
        if outermost:
            given = parts.media_columns(value)
        elif parts.is_media(value):
            given = [parts.of_part(value, "")]
    except RowError:
        return
    found = [part["source"] for part in given]
    if isinstance(data := value.get("fileData", value.get("file_data")), dict):
        found.append(data.get("fileUri", data.get("file_uri")))
    yield from (text for text in found if isinstance(text, str) and not text.startswith("data:"))


def _may(path: Path) -> bool:
    """True if a file holds one of the words that such a part or column begins with."""
    with path.open("rb") as file:
        tail = b""
        while chunk := file.read(_CHUNK):
            part = (tail + chunk).lower()  # eight times as fast as a pattern that ignores case
            if any(hint in part for hint in _HINTS):
                return True
            tail = chunk[-16:]
    return False


def _place(text: str, root: Path) -> Path | None:
    url = urlsplit(text)
    if url.scheme == "file":
        text = unquote(url.path)
    elif "://" in text:
        return None
    path = root / Path(text).expanduser()
    try:
        return path if path.is_file() else None
    except OSError:  # too long for a name: it was something else
        return None
