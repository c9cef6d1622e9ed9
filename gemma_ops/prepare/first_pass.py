"""The first pass of the step `prepare`: reads and checks each row, and writes usable ones (without exact duplicates)
and rejected ones to their files."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from gemma_ops.config import DataConfig, Privacy
from gemma_ops.data.hashed_words import Hashes, hashes
from gemma_ops.data.import_rows import Importer, Teacher
from gemma_ops.data.row_files import RawRow
from gemma_ops.family.media import Senses
from gemma_ops.prepare.import_chunks import ChunkRow, chunk_importer
from gemma_ops.prepare.prepare_counts import PrepareCounts
from gemma_ops.prepare.row_workers import RowWorkers
from gemma_ops.prepare.stored_rows import AT_ONCE, StoredRows
from gemma_ops.privacy.classes import stricter
from gemma_ops.privacy.text_records import TextRecords
from gemma_ops.runs import journal
from gemma_ops.runs.durable import whole_file
from gemma_ops.tasks.compared_questions import asked_texts

LISTED = 50
"""Dropped rows listed in the report, per kind."""
_SAMPLE = 2000  # rows whose user texts tell what is boilerplate
_SAMPLE_WORDS = 1000  # words kept of each of their texts
_EVERY = 5000  # rows between progress records


def show_progress(phase: str, rows: int) -> None:
    """Record how many rows a pass has seen, now and then."""
    if rows % _EVERY == 0:
        journal.record(phase=phase, rows=rows)


class FirstPass:
    """The first pass, and what later ones need to know of it."""

    def __init__(self, settings: DataConfig, facts: PrepareCounts, rows: StoredRows, private: TextRecords) -> None:
        self.settings = settings
        self.facts = facts
        self.rows = rows
        self.private = private
        self.tightened: dict[int, Privacy] = {}
        """Strictest class among the duplicates of a kept row, by its number."""
        self.taught: dict[int, Teacher] = {}
        self.names: list[str] = []
        """Where each row of the source stands."""
        self._kept: dict[bytes, int] = {}
        self._prompts: set[bytes] = set()
        self._sample: list[tuple[int, int, list[Hashes]]] = []
        self._importer: Importer | None = None

    def run(self, out: Path, source: Path | None, senses: Senses, workers: RowWorkers) -> None:
        """Read the source. Raises what `Importer` raises."""
        importer = Importer(source, self.settings, senses, out=out)
        with whole_file(out / "rejected.jsonl") as bad, whole_file(self.rows.path) as good:
            chunks = _chunks(importer)
            first = list(islice(chunks, 1))  # which tells the importer the layout
            for chunk in workers.each(chunk_importer, (importer.rows,), chain(first, chunks)):
                self.private.add(chunk.private)
                for row in chunk.rows:
                    self.names.append(row.source)
                    self.facts.read += 1
                    show_progress("read", self.facts.read)
                    if row.code:
                        bad.write(row.line + "\n")
                        self._reject(row)
                    elif self._keep(row):
                        good.write(self.rows.added(row.line, row.group))
        self.facts.layout = importer.layout

    def _reject(self, row: ChunkRow) -> None:
        self.facts.rejected[row.code] += 1
        if len(self.facts.first_rejected) < 3:
            self.facts.first_rejected.append(f"{row.source}: {row.reason}")

    def _keep(self, row: ChunkRow) -> bool:
        """Count a usable row; False for an exact duplicate that is dropped."""
        facts = self.facts
        facts.repaired.update(row.notes)
        if row.personal:
            facts.pii.update(dict(row.personal))
            facts.pii_count += 1
            if len(facts.pii_rows) < LISTED:
                facts.pii_rows.append(f"{row.source}: {', '.join(sorted(dict(row.personal)))}")
        if row.key in self._kept and self.settings.exact_duplicates == "drop":
            facts.exact_duplicates += 1
            number = self._kept[row.key]
            self.tightened[number] = stricter(self.tightened.get(number, "any"), row.privacy)
            return False
        number = len(self.rows)
        self._kept.setdefault(row.key, number)
        if row.teacher:
            self.taught[number] = row.teacher
        if row.prompt:
            facts.conflicts += row.prompt in self._prompts
            self._prompts.add(row.prompt)
        elif row.swapped:
            facts.contradictions += row.swapped in self._kept
        self._sample_row(row, number)
        return True

    def _sample_row(self, row: ChunkRow, number: int) -> None:
        """Take a row into the sample: the rows with the smallest ids, the same in whatever order the files are."""
        if len(self._sample) == _SAMPLE and -row.number < self._sample[0][0]:
            return
        texts = [_ends(hashes(text)) for text in asked_texts(json.loads(row.line))]
        heapq.heappush(self._sample, (-row.number, number, texts))
        if len(self._sample) > _SAMPLE:
            heapq.heappop(self._sample)

    def sample(self) -> list[Hashes]:
        """Return hashed user texts of up to 2,000 rows."""
        return [text for _, _, texts in sorted(self._sample, key=lambda entry: entry[0]) for text in texts]


def _chunks(importer: Importer) -> Iterator[tuple[int, list[RawRow]]]:
    rows, first = importer.raw(), 0
    while chunk := list(islice(rows, AT_ONCE)):
        yield first, chunk
        first += len(chunk)


def _ends(text: Hashes) -> Hashes:
    """Return a text for the sample: of a long one its beginning and end, where instructions stand."""
    return (
        text
        if len(text) <= _SAMPLE_WORDS
        else np.concatenate([text[: _SAMPLE_WORDS // 2], text[-_SAMPLE_WORDS // 2 :]])
    )
