"""The rows of the user that a file is fitted to, as token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.data import chat, documents, example
from gemma_ops.data.parts import media_of
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError

_LONGEST = 1024
"""Tokens of a row that are read."""


@dataclass(frozen=True)
class FitRow:
    """One row as tokens."""

    ids: list[int]
    answer: list[bool]
    """Whether each token belongs to an answer that is learned."""

    def __len__(self) -> int:
        return len(self.ids)


def fit_rows(file: Path, tokenizer: Any, manner: Manner, count: int, seed: int) -> list[FitRow]:
    """Return up to `count` training rows, drawn by the seed.

    Answers that were compared count as a conversation each; rows that show images or sounds are left out. Raises
    DataError when no row is left, or one can't be rendered.
    """
    numbers = list(range(sum(1 for _ in example.read_rows(file))))
    random.Random(seed).shuffle(numbers)
    place = {number: rank for rank, number in enumerate(numbers)}
    ranked = []
    for number, row in enumerate(example.read_rows(file)):
        if place[number] < count:
            ranked += [(place[number], made) for made in _fit_rows(row, tokenizer, manner, f"{file}:{number + 1}")]
    if not ranked:
        raise DataError(
            f"no row of {file} can be read as text, so there is nothing to fit a file to", "set quantize.fit=none"
        )
    return [row for _, row in sorted(ranked, key=lambda each: each[0])][:count]


def _fit_rows(row: dict[str, Any], tokenizer: Any, manner: Manner, where: str) -> Iterator[FitRow]:
    if example.kind(row) == "text":
        text = documents.encode_document(tokenizer, row["text"])
        yield FitRow(text.ids[:_LONGEST], text.loss[:_LONGEST])
        return
    for messages in example.conversation_rows(row):
        if media_of(messages):
            continue
        try:
            made = chat.examples(tokenizer, messages, row.get("tools"), **manner.of(messages))
        except DataError as error:
            raise DataError(f"{where}: {error.what}", error.fix) from error
        yield from (FitRow(one.ids[:_LONGEST], one.loss[:_LONGEST]) for one in made)
