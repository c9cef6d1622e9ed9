"""Documents: what a file says, who may see it, under which licence, and the digest that rows are traced back by.

A document states its privacy class and licence in its front matter (`privacy: any`), in a `<meta>` tag, or in fields of
its JSON line. As for training rows, a document may only be stricter than the configuration, never laxer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gemma_ops.config import Privacy
from gemma_ops.data.row_files import read_file
from gemma_ops.errors import DataError
from gemma_ops.privacy.canonical import without_headings
from gemma_ops.privacy.classes import PRIVACY, stricter
from gemma_ops.runs import digest
from gemma_ops.synth import readers
from gemma_ops.synth.readers import Reading

SUFFIXES = (".md", ".markdown", ".txt", ".html", ".htm", ".jsonl", ".ndjson", ".pdf")


@dataclass(frozen=True)
class Document:
    """One document. `name` is its path below the folder, with the line where a file holds several."""

    name: str
    sha256: str
    """SHA-256 of the file; for a row of JSON Lines, of its text."""
    group: str
    """Digest of the text as group: copies of a document under two names are one group."""
    privacy: Privacy
    license: str | None
    reading: Reading
    because: str = ""
    """Name of the text it holds, where that made it stricter than it says of itself."""

    @property
    def body(self) -> str:
        """Return its text after front matter."""
        return self.reading.text[self.reading.begins :]

    @property
    def plain(self) -> str:
        """Return its text after front matter, without headings."""
        begins = self.reading.begins
        return without_headings(self.body, tuple(heading.at - begins for heading in self.reading.headings))


@dataclass(frozen=True)
class FoundDocuments:
    """Content of a folder: documents, and files of other types, which are named and left alone."""

    documents: tuple[Document, ...]
    unread: tuple[str, ...]


def document_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that are read below a path (or the path itself), and those of other types; hidden ones are
    neither.

    Raises DataError when there is nothing to read.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
        files = sorted(file for file in visible if file.is_file())
    else:
        raise DataError(f"{path} does not exist", "correct synth.documents")
    read = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not read:
        raise DataError(f"no documents in {path}", f"give a file or a folder of {', '.join(SUFFIXES)}")
    return read, [file for file in files if file not in read]


def ingest(path: Path, privacy: Privacy) -> FoundDocuments:
    """Read every document of a file or folder, in the order of their names. Raises DataError naming what can't be
    read."""
    read, unread = document_files(path)
    base = path if path.is_dir() else path.parent
    documents: list[Document] = []
    for file in read:
        name = file.relative_to(base).as_posix()
        found = list(
            _rows(file, name, privacy) if file.suffix.lower() in (".jsonl", ".ndjson") else _one(file, name, privacy)
        )
        documents += found
    if not any(document.reading.text.strip() for document in documents):
        raise DataError(f"the documents in {path} are empty", "correct synth.documents")
    return FoundDocuments(tuple(documents), tuple(file.relative_to(base).as_posix() for file in unread))


def _one(file: Path, name: str, privacy: Privacy) -> Iterator[Document]:
    suffix = file.suffix.lower()
    if suffix == ".pdf":
        yield _document(name, digest.of_file(file), readers.pdf(file), privacy)
        return
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}", "save it as UTF-8"
        ) from None
    kinds = {
        ".md": readers.markdown,
        ".markdown": readers.markdown,
        ".html": readers.read_page,
        ".htm": readers.read_page,
    }
    reading = kinds.get(suffix, readers.read_plain)(text, name)
    yield _document(name, hashlib.sha256(raw).hexdigest(), reading, privacy)


def _rows(file: Path, name: str, privacy: Privacy) -> Iterator[Document]:
    """Yield documents of JSON Lines: `text`, and if stated `privacy`, `license`, `title`."""
    for row in read_file(file):
        place = f"{name}:{row.line}"
        if row.value is None:
            raise DataError(f"{place} can't be read: {row.reason}", "correct the line")
        text = row.value.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{place} has no text", 'a document is a line {"text": "…"}; rows to imitate go to synth.seeds'
            )
        facts = {key: row.value[key] for key in ("privacy", "license", "title") if row.value.get(key) is not None}
        for value in (text, *facts.values()):
            _encodable(value, place)
        yield _document(place, hashlib.sha256(text.encode()).hexdigest(), Reading(text, (), facts), privacy)


def _encodable(value: Any, place: str) -> None:
    """Refuse lone surrogates, which JSON can spell and no file and no request can hold."""
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} is no Unicode text: \\u{ord(error.object[error.start]):04x} is half of a pair and stands alone",
            "correct the line",
        ) from None


def _document(name: str, sha256: str, reading: Reading, privacy: Privacy) -> Document:
    group = hashlib.sha256(
        " ".join(reading.text[reading.begins :].split()).encode("utf-8", "surrogatepass")
    ).hexdigest()
    stated = reading.facts.get("license")
    return Document(
        name=name,
        sha256=sha256,
        group=group,
        privacy=stricter(privacy, own_privacy(reading.facts.get("privacy"), name, privacy)),
        license=None if stated is None else str(stated),
        reading=reading,
    )


class Classed(Protocol):
    """Something with a privacy class."""

    @property
    def privacy(self) -> Privacy: ...


Kept = TypeVar("Kept", bound=Classed)


def strictest_copies(items: Iterable[Kept], text_of: Callable[[Kept], Hashable]) -> list[Kept]:
    """Return one of each text: of copies, the first that has the strictest class. A text that somebody wants to keep
    here stays here, wherever else it lies; and a refusal names the copy that says so."""
    kept: dict[Hashable, Kept] = {}
    for item in items:
        text = text_of(item)
        if text not in kept or stricter(kept[text].privacy, item.privacy) != kept[text].privacy:
            kept[text] = item
    return list(kept.values())


def own_privacy(stated: Any, name: str, default: Privacy) -> Privacy:
    """Return a stated privacy class, or the default. Raises DataError for one that isn't known."""
    if stated is None:
        return default
    if stated not in PRIVACY:
        raise DataError(f"{name}: the privacy class {stated!r} is unknown", f"use one of {', '.join(PRIVACY)}")
    return PRIVACY[PRIVACY.index(stated)]
