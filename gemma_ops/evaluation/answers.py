"""Stored answers: `answers.jsonl` grows line by line while targets answer, and survives a kill at any moment.

An answer's key covers who answered (target and digest of its model), what was asked (the very messages) and how
(generation settings), and nothing about scoring: when a metric changes, the answers stay valid and grading is free.
At the end the file is rewritten sorted, so that its order doesn't tell how often the run was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemma_ops import digest
from gemma_ops.answer import Answer, End
from gemma_ops.durable import write_text
from gemma_ops.errors import DataError
from gemma_ops.evaluation.metrics.base import Row

FILE = "answers.jsonl"


@dataclass(frozen=True)
class Stored:
    """One line of `answers.jsonl`. `seconds` is the batch's wall time over its rows."""

    key: str
    target: str
    task: str
    row: str
    text: str
    end: End
    prompt_tokens: int
    new_tokens: int
    seconds: float


def key(target: str, identity: str, task: str, row: Row, generation: dict[str, Any]) -> str:
    """Key of the answer of one target to one row: 32 hex digits."""
    return digest.of_json([target, identity, task, row.id, list(row.messages), generation])[:32]


def stored(key: str, target: str, task: str, row: str, answer: Answer) -> Stored:
    """An answer as it is filed."""
    return Stored(
        key, target, task, row, answer.text, answer.end, answer.prompt_tokens, answer.new_tokens, answer.seconds
    )


class AnswerFile:
    """Appends answers and knows those that are there. A half-written last line, left by a kill, is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Stored] = {}
        if path.exists():
            self._recover()

    def _recover(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    item = Stored(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise DataError(
                        f"{self.path}:{number}: not an answer: {error}", f"remove {self.path.parent} and evaluate again"
                    ) from error
                self.known[item.key] = item
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def append(self, items: Iterable[Stored]) -> None:
        """Add answers and flush them to the disk."""
        items = list(items)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(item) for item in items)
            file.flush()
            os.fsync(file.fileno())
        self.known |= {item.key: item for item in items}

    def finish(self, keys: Iterable[str]) -> list[Stored]:
        """Rewrite the file in the order of `keys`, dropping what nobody asked for, whole or not at all."""
        items = [self.known[item] for item in keys]
        write_text(self.path, "".join(map(_line, items)))
        return items


def _line(item: Stored) -> str:
    return json.dumps(asdict(item), ensure_ascii=False) + "\n"
