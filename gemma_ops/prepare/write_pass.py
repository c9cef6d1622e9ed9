"""The last pass of the step `prepare`: writes the two sides of the split, and counts what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

from gemma_ops.config import DataConfig, Privacy
from gemma_ops.data import example
from gemma_ops.data.row_tokens import Manner
from gemma_ops.family.media import Senses
from gemma_ops.prepare.count_chunks import CountedRow, chunk_counter
from gemma_ops.prepare.first_pass import FirstPass, show_progress
from gemma_ops.prepare.prepare_counts import PrepareCounts
from gemma_ops.prepare.row_workers import RowWorkers
from gemma_ops.prepare.split import Split
from gemma_ops.privacy.classes import PRIVACY, stricter
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.runs.durable import whole_file


class WritePass:
    """The rows of a first pass, written without those that are dropped."""

    def __init__(self, settings: DataConfig, facts: PrepareCounts, first: FirstPass, senses: Senses) -> None:
        self.facts = facts
        self.first = first
        self.senses = senses
        self.split = Split(settings.valid_share)

    def run(self, out: Path, model: Path, manner: Manner, drops: set[int], workers: RowWorkers) -> None:
        """Write `train.jsonl` and `valid.jsonl`. Raises DataError for a row that can't be rendered."""
        rows, facts = self.first.rows, self.facts
        for number in _kept(len(rows), drops):
            self.split.add(rows.groups[number])
        facts.groups = self.split.groups
        counted = workers.each(chunk_counter, (rows.path, model, manner), rows.spans(drops))
        with whole_file(out / "train.jsonl") as train, whole_file(out / "valid.jsonl") as valid:
            for number, row in zip(_kept(len(rows), drops), chain.from_iterable(counted), strict=True):
                privacy = self._privacy(number, row)
                side = "valid" if self.split.is_valid(rows.groups[number]) else "train"
                line = row.line if privacy == row.privacy else _reclassed(row.line, privacy)
                (valid if side == "valid" else train).write(line)
                self._count(row, privacy, side)
                if number in self.first.taught:
                    facts.teachers[self.first.taught[number]] += 1
                show_progress("write", number + 1)

    def _privacy(self, number: int, row: CountedRow) -> Privacy:
        """Return a row's class: its own, that of a dropped duplicate, or that of a stricter row whose text it holds."""
        privacy = row.privacy
        if number in self.first.tightened:
            privacy = stricter(privacy, self.first.tightened[number])
        if privacy == PRIVACY[0]:
            return privacy
        texts = " ".join(example.row_texts(json.loads(row.line)))
        found = self._private.strictest(texts, privacy)
        if found:
            self.facts.copies += 1
        return found.privacy if found else privacy

    @cached_property
    def _private(self) -> PrivateTexts:
        return self.first.private.index(self.first.names)

    def _count(self, row: CountedRow, privacy: Privacy, side: str) -> None:
        facts, counts = self.facts, row.counts
        if counts.error:
            raise counts.error
        for tokens, with_loss in counts.examples:
            facts.lengths[side].add(tokens, with_loss)
        if side == "train":
            facts.examples.update(counts.modes())
        facts.show(row.messages, self.senses)
        facts.kinds[row.kind] += 1
        facts.privacy[privacy] += 1
        facts.rows[side] += 1


def _kept(count: int, drops: set[int]) -> Iterator[int]:
    return (number for number in range(count) if number not in drops)


def _reclassed(line: str, privacy: Privacy) -> str:
    return example.line(json.loads(line) | {"privacy": privacy}) + "\n"
