"""Rows compared with the evaluation tasks, and made ready to be compared with each other: many at a time.

What takes time is done for a whole chunk in arrays: words, boilerplate, shingles, MinHash. A row that shares nothing
with a task is left after a few look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import SKETCH, Texts
from gemma_ops.data.near_duplicates import asked_sets, band_keys, signatures
from gemma_ops.prepare.near_rows import AskedChunk
from gemma_ops.prepare.stored_rows import RowSpan, rows_of
from gemma_ops.prepare.task_overlap import Match, Overlap
from gemma_ops.tasks.compared_questions import asked_texts, names


class ComparedChunk(NamedTuple):
    """What was found of some rows: the question of a task that each gives away, and what near duplicates are found
    by."""

    matches: list[Match | None]
    asked: AskedChunk | None


@dataclass(frozen=True)
class Comparer:
    """Compares rows: with the tasks of `overlap`; `boilerplate` is what they share, `threshold` when rows are near
    duplicates (None: no matter)."""

    overlap: Overlap
    boilerplate: Boilerplate
    threshold: float | None

    def compare(self, rows: Sequence[dict[str, Any]]) -> ComparedChunk:
        """Compare a chunk of rows."""
        asked = [asked_texts(row) for row in rows]
        texts = Texts.of([text for some in asked for text in some])
        places = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(some) for some in asked], dtype=np.int64)])
        shown = [names(row["messages"]) for row in rows]
        matches = self.overlap.find_all(texts, places, shown)
        if self.threshold is None:
            return ComparedChunk(matches, None)
        left = self.boilerplate.residues(texts, self.boilerplate.marks_of(texts))
        values, ends = asked_sets(left, places)
        lengths = np.diff(ends)
        keys = band_keys(signatures(values, ends), self.threshold)
        inside = np.arange(len(values)) - np.repeat(ends[:-1], lengths) < SKETCH
        return ComparedChunk(matches, AskedChunk(keys, values[inside], np.minimum(lengths, SKETCH)))


def chunk_comparer(path: Path, comparer: Comparer) -> Callable[[RowSpan], ComparedChunk]:
    """Make the handler of spans of the file `path`."""
    return lambda span: comparer.compare(rows_of(path, span))
