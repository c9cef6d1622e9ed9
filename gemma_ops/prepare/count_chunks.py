"""The last pass over a chunk of usable rows: tokens of each, and what else is counted of rows that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gemma_ops.config import Privacy
from gemma_ops.config.methods import Kind
from gemma_ops.data import chat, example
from gemma_ops.data.row_tokens import Manner, RowTokenCounts, count_rows
from gemma_ops.prepare.stored_rows import RowSpan, lines_of


class CountedRow(NamedTuple):
    """A kept row: its line, with the break, and what is counted of it. `messages` are there for a row that shows
    something."""

    line: str
    kind: Kind
    privacy: Privacy
    counts: RowTokenCounts
    messages: list[dict[str, Any]]


def chunk_counter(path: Path, model: Path, manner: Manner) -> Callable[[RowSpan], list[CountedRow]]:
    """Make the handler of spans of the file `path`; `model` is the folder whose tokenizer counts."""
    tokenizer = chat.load_tokenizer(model)

    def handle(span: RowSpan) -> list[CountedRow]:
        lines = [line for at, line in enumerate(lines_of(path, span)) if at not in span.skipped]
        rows = [json.loads(line) for line in lines]
        counted = count_rows(tokenizer, rows, manner)
        return [
            CountedRow(line, example.kind(row), row["privacy"], counts, _shown(row))
            for line, row, counts in zip(lines, rows, counted, strict=True)
        ]

    return handle


def _shown(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn for turn in row["messages"] if isinstance(turn.get("content"), list)]
