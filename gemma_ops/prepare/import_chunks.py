"""The first pass over a chunk of raw rows: each imported and checked, and told as little as the step needs to know of
it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gemma_ops.config import Privacy
from gemma_ops.data import example
from gemma_ops.data.import_rows import Imported, RowImporter, Teacher, teacher_of
from gemma_ops.data.row_files import RawRow
from gemma_ops.prepare.deduplicate import exact_key, prompt_key
from gemma_ops.privacy.text_records import row_records


class ChunkRow(NamedTuple):
    """One row of a chunk. `line` is its JSON, as an example or as a rejected row; all after `reason` is a usable
    row's."""

    line: str
    source: str
    code: str = ""
    """Why the row can't be used; empty for one that can."""
    reason: str = ""
    number: int = 0
    """The row's id as a number."""
    group: str = ""
    privacy: Privacy = "any"
    key: bytes = b""
    """What exact duplicates share."""
    prompt: bytes = b""
    """What rows with the same prompt share; empty for a row whose answers were compared, and for a text."""
    swapped: bytes = b""
    """`key` of the opposite row, for a row whose answers were compared."""
    notes: tuple[str, ...] = ()
    personal: tuple[tuple[str, int], ...] = ()
    """Kinds of personal data, with the times each was found."""
    teacher: Teacher | None = None


class ImportedChunk(NamedTuple):
    """A chunk's rows, and the records of their private texts."""

    rows: list[ChunkRow]
    private: bytes


def chunk_importer(importer: RowImporter) -> Callable[[tuple[int, Sequence[RawRow]]], ImportedChunk]:
    """Make the handler of chunks: the number of the first row, counted over all rows, and the rows."""

    def handle(chunk: tuple[int, Sequence[RawRow]]) -> ImportedChunk:
        first, raws = chunk
        items = [importer.row(raw) for raw in raws]
        usable = [(first + at, item.example) for at, item in enumerate(items) if item.example is not None]
        return ImportedChunk([_told(item, item.example) for item in items], row_records(usable))

    return handle


def _told(item: Imported, row: dict[str, Any] | None) -> ChunkRow:
    if row is None:
        return ChunkRow(example.line(item.rejected()), item.raw.source, item.code, item.reason)
    kind = example.kind(row)
    return ChunkRow(
        example.line(row),
        row["source"],
        number=int(row["id"], 16),
        group=row["group"],
        privacy=row["privacy"],
        key=exact_key(row),
        prompt=prompt_key(row) if kind == "conversation" else b"",
        swapped=exact_key(example.swapped(row)) if kind in ("pair", "judged") else b"",
        notes=tuple(sorted(set(item.notes))),
        personal=tuple(item.pii.items()),
        teacher=teacher_of(item.raw.value or {}),
    )
