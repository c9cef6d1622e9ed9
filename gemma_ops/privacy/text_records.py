"""The index of private texts of a whole data set, as records of fixed size in a file: what `PrivateTexts` holds in
memory, for a million rows.

Records are appended row by row, and sorted by digest once, when all are there. The file that is written then is the
one that `PrivateTexts.save` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config import Privacy
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.runs.durable import whole_file

_RECORD = np.dtype(
    [
        ("high", ">u8"), ("low", ">u8"), ("anchor", "<u8"), ("key", "<u8"), ("length", "<u4"), ("row", "<u4"),
        ("privacy", "u1"), ("beside", "u1"),
    ]
)  # fmt: skip
Records = np.ndarray[Any, Any]


def row_records(rows: Sequence[tuple[int, dict[str, Any]]]) -> bytes:
    """Return the records of rows, each with its number, by which it is named later."""
    made = []
    for number, row in rows:
        for text in PrivateTexts.of_row(row, ""):
            digest = int(text.digest, 16)
            privacy = PRIVACY.index(text.privacy)
            place = digest >> 64, digest & 0xFFFFFFFFFFFFFFFF
            made.append((*place, text.anchor, text.key, text.length, number, privacy, text.beside))
    return np.array(made, _RECORD).tobytes()


class TextRecords:
    """The records of a data set, in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"")
        self._classes: set[Privacy] = set()

    def __len__(self) -> int:
        return self._path.stat().st_size // _RECORD.itemsize

    def add(self, records: bytes) -> None:
        """Append the records of some rows, whose numbers grow."""
        with self._path.open("ab") as file:
            file.write(records)

    def save(self, path: Path, names: Sequence[str]) -> None:
        """Write the index as `PrivateTexts.save` does; `names` are those of the rows, by number."""
        with whole_file(path) as file:
            file.writelines(line + "\n" for line in self._lines(names))

    def index(self, names: Sequence[str]) -> PrivateTexts:
        """Return the index in memory, to search texts for it."""
        found = PrivateTexts()
        found.load_lines(self._lines(names))
        return found

    def _lines(self, names: Sequence[str]) -> Iterable[str]:
        """Yield the texts sorted by digest: of equal ones the strictest class with its name holds, the earlier one
        where classes are equal, and one that stands for itself anywhere is no side text."""
        records = np.fromfile(self._path, _RECORD)
        order = np.lexsort((records["low"], records["high"]))
        new = np.ones(len(order), np.bool_)
        for part in ("high", "low"):
            column = records[part][order]
            new[1:] &= column[1:] == column[:-1]
        new[1:] = ~new[1:]
        begins = np.flatnonzero(new)
        times = np.diff([*begins, len(order)]) if len(begins) else begins
        classes, beside = records["privacy"][order], records["beside"][order]
        strictest = np.minimum.reduceat(classes, begins) if len(begins) else classes
        side = np.bitwise_and.reduceat(beside, begins) if len(begins) else beside
        for begin, count, least, aside in zip(
            begins.tolist(), times.tolist(), strictest.tolist(), side.tolist(), strict=True
        ):
            at = begin if count == 1 else begin + int(np.argmax(classes[begin : begin + count] == least))
            high, low, anchor, key, length, row, _, _ = records[order[at]].tolist()
            yield (
                f'{{"privacy": "{PRIVACY[least]}", "name": {json.dumps(names[row])}, "length": {length}, '
                f'"anchor": {anchor}, "key": {key}, "digest": "{high:016x}{low:016x}", '
                f'"beside": {"true" if aside else "false"}, "times": {count}}}'
            )
