"""Near duplicates among all rows of a set, in memory that hardly grows with it.

What tells candidates (the keys of the bands) and what decides (sketches of what users ask) is appended to files. Rows
that share a band are found by sorting band after band; only they are compared, in the order of the rows, each with the
ones that were kept before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_ops.data.hashed_words import SKETCH, Counts, Hashes, jaccard
from gemma_ops.data.near_duplicates import bands
from gemma_ops.prepare.deduplicate import answer_facts, repeats_answer

_REMEMBERED = 1 << 14
"""Rows whose sketch, and whose answer, is kept at hand."""


class AskedChunk(NamedTuple):
    """What some rows ask: keys of their bands [rows, bands], and their sketches, one behind the other, with the length
    of each; 0 is a row that asks nothing."""

    keys: Hashes
    sketches: Hashes
    lengths: Counts


class NearPair(NamedTuple):
    """A row that nearly repeats an earlier one, both by number."""

    row: int
    earlier: int
    similarity: float


class NearRows:
    """The rows of a set, to find those that nearly repeat an earlier one. `row_of` reads a row by its number."""

    def __init__(self, folder: Path, threshold: float, row_of: Callable[[int], dict[str, Any]]) -> None:
        self.threshold = threshold
        self._keys, self._sketches = folder / "bands", folder / "sketches"
        self._lengths: list[Counts] = []
        self._facts = lru_cache(maxsize=_REMEMBERED)(lambda number: answer_facts(row_of(number)))
        for file in (self._keys, self._sketches):
            file.write_bytes(b"")

    def add(self, chunk: AskedChunk) -> None:
        """Append rows, in order."""
        for file, values in ((self._keys, chunk.keys), (self._sketches, chunk.sketches)):
            with file.open("ab") as out:
                out.write(values.tobytes())
        self._lengths.append(chunk.lengths)

    def pairs(self, skipped: Collection[int]) -> Iterator[NearPair]:
        """Yield each row that nearly repeats an earlier one which is kept; rows that are `skipped` are no part of the
        set."""
        lengths = np.concatenate([*self._lengths, np.zeros(0, np.int64)])
        rows, groups = self._groups(lengths)
        if not len(rows):
            return
        sketch_of = self._sketch_reader(lengths)
        kept: dict[int, list[int]] = {}
        ends = [*np.flatnonzero(np.diff(rows) != 0).tolist(), len(rows) - 1]
        begin = 0
        for end in ends:
            row, own = int(rows[begin]), groups[begin : end + 1].tolist()
            begin = end + 1
            if row in skipped:
                continue
            candidates = {number for group in own for number in kept.get(group, ())}
            found = self._repeated(row, candidates, sketch_of) if candidates else None
            if found:
                yield found
                continue
            for group in own:
                kept.setdefault(group, []).append(row)

    def _repeated(
        self, row: int, candidates: set[int], sketch_of: Callable[[int], tuple[Hashes, frozenset[int]]]
    ) -> NearPair | None:
        """Return the pair with the most similar of the candidates, the earliest first, whose answer is repeated too."""
        mine, my_set = sketch_of(row)
        close = []
        for number in candidates:
            theirs, their_set = sketch_of(number)
            shared = len(my_set & their_set)
            union = len(my_set) + len(their_set) - shared
            similarity = shared / union if union <= SKETCH else jaccard(mine, theirs)
            if similarity >= self.threshold:
                close.append((-similarity, number))
        for similarity, number in sorted(close):
            if repeats_answer(self._facts(row), self._facts(number), self.threshold):
                return NearPair(row, number, -similarity)
        return None

    def _groups(self, lengths: Counts) -> tuple[Counts, Counts]:
        """Return rows and numbers of groups: rows of one group share a band. Sorted by row; who shares nothing isn't
        there."""
        if not len(lengths):
            return lengths, lengths
        count = bands(self.threshold)[0]
        keys = np.memmap(self._keys, np.uint64, "r", shape=(len(lengths), count))
        asking = np.flatnonzero(lengths)
        rows, groups, base = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for band in range(count):
            column = np.asarray(keys[:, band])[asking]
            order = np.argsort(column, kind="stable")
            new = np.ones(len(order), np.bool_)
            new[1:] = column[order[1:]] != column[order[:-1]]
            number = np.cumsum(new) - 1
            shared = np.bincount(number)[number] > 1
            rows.append(asking[order[shared]])
            groups.append(number[shared] + base)
            base += len(order)
        found, numbers = np.concatenate(rows), np.concatenate(groups)
        order = np.argsort(found, kind="stable")
        return found[order], numbers[order]

    def _sketch_reader(self, lengths: Counts) -> Callable[[int], tuple[Hashes, frozenset[int]]]:
        stored = np.memmap(self._sketches, np.uint64, "r")
        ends = np.cumsum(lengths)

        @lru_cache(maxsize=_REMEMBERED)
        def read(number: int) -> tuple[Hashes, frozenset[int]]:
            values = np.array(stored[ends[number] - lengths[number] : ends[number]])
            return values, frozenset(values.tolist())

        return read
