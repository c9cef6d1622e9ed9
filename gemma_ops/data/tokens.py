"""Rows as tokens: what training reads, and how long rows are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.data import chat, documents, example
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.parts import media_of
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses

NO_LOSS = -100
"""Label of a token without loss: what torch's cross-entropy ignores."""


@dataclass(frozen=True)
class Manner:
    """How conversations become tokens with loss."""

    empty_thought: bool = False
    """The checkpoint's prompts end in an empty thought while thinking is off (`chat.prefills`)."""
    thinking: Literal["off", "on", "keep-empty-prefix"] = "off"
    """`train.thinking`."""
    loss_on: Literal["all", "last"] = "all"
    """`train.loss_on`."""
    texts: bool = False
    """Rows are raw texts, each token with loss (`train.method: pretrain`)."""
    senses: Senses | None = None
    """What the checkpoint takes besides text (`media.senses`), for conversations that show something."""

    def of(self, messages: Sequence[chat.Message]) -> dict[str, Any]:
        """Arguments of `chat.encode` and `chat.prompt_ids` for one conversation.

        `keep-empty-prefix` trains conversations that hold a thought as `on` does, and opens the answers of all others
        with an empty thought, without loss: a model tuned on answers alone then doesn't unlearn to think.
        """
        if self.thinking == "on":
            thinking, empty = True, False
        elif self.thinking == "off":
            thinking, empty = False, self.empty_thought
        else:
            thinking = any(message.get("reasoning") for message in messages)
            empty = not thinking
        return {"thinking": thinking, "empty_thought": empty, "senses": self.senses}


def encode_rows(
    path: Path, tokenizer: Tokenizer, manner: Manner, *, max_length: int | None
) -> Iterator[dict[str, Any]]:
    """Rows of a file of examples as `{"id", "input_ids", "labels", "truncated", "weight", "media"}`, in order, one at a
    time.

    `labels` repeats `input_ids` where there is loss and is -100 elsewhere. A row longer than `max_length` tokens is cut
    at its end, which may leave it without any loss; a raw text becomes as many rows as it needs. `media` are the images
    and sounds that are left, each its stored part with the `start` and `end` of its tokens. Raises DataError naming file
    and line of a row that can't be rendered, or whose answers were compared or judged.
    """
    for number, row in enumerate(example.read_rows(path), 1):
        example.check_kind(row, "pretrain" if manner.texts else None, f"{path}:{number}")
        try:
            if manner.texts:
                yield from _pieces(row, tokenizer, max_length)
                continue
            encoded = chat.encode(
                tokenizer,
                row["messages"],
                row.get("tools"),
                max_length=max_length,
                last_only=manner.loss_on == "last",
                **manner.of(row["messages"]),
            )
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.what}", error.fix) from error
        yield {
            "id": row["id"],
            "input_ids": encoded.ids,
            "labels": [token if loss else NO_LOSS for token, loss in zip(encoded.ids, encoded.loss, strict=True)],
            "truncated": encoded.truncated,
            "weight": row.get("weight", 1.0),
            "media": [
                {**part, "start": block.start, "end": block.end}
                for part, block in zip(media_of(row["messages"]), encoded.blocks, strict=False)
            ],
        }


def _pieces(row: dict[str, Any], tokenizer: Tokenizer, max_length: int | None) -> Iterator[dict[str, Any]]:
    for ids in documents.pieces(documents.encode(tokenizer, row["text"]).ids, max_length):
        labels = [NO_LOSS, *ids[1:]]
        weight = row.get("weight", 1.0)
        yield {"id": row["id"], "input_ids": ids, "labels": labels, "truncated": False, "weight": weight, "media": []}


def loss_flags(
    tokenizer: Tokenizer, row: dict[str, Any], *, empty_thought: bool, senses: Senses | None = None
) -> list[list[bool]]:
    """Which tokens carry loss, for each conversation in a row: of compared answers the wanted one comes first."""
    if example.kind(row) == "text":
        return [documents.encode(tokenizer, row["text"]).loss]
    if example.kind(row) == "conversation":
        manner: dict[str, Any] = {"empty_thought": empty_thought, "senses": senses}
        return [chat.encode(tokenizer, row["messages"], row.get("tools"), **manner).loss]
    encoded = encode_answers(tokenizer, row, empty_thought=empty_thought)
    return [[False] * len(encoded.prompt) + answer.loss for answer in encoded.answers.values()]


@dataclass
class Lengths:
    """Token statistics of rows, in constant memory: counts by length."""

    limits: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    prompt: dict[int, int] = field(default_factory=dict)
    completion: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)

    def add(self, loss: list[bool]) -> None:
        """Count one row by its loss flags: tokens with loss are its completion, the others its prompt."""
        with_loss = sum(loss)
        for counts, value in (
            (self.prompt, len(loss) - with_loss),
            (self.completion, with_loss),
            (self.total, len(loss)),
        ):
            counts[value] = counts.get(value, 0) + 1

    def table(self) -> dict[str, Any]:
        """Percentiles (nearest rank) and totals; `longer_than` counts rows above each limit, in tokens."""
        return {
            "tokens": sum(length * count for length, count in self.total.items()),
            "tokens_with_loss": sum(length * count for length, count in self.completion.items()),
            "prompt": _percentiles(self.prompt),
            "completion": _percentiles(self.completion),
            "row": _percentiles(self.total),
            "longer_than": {
                str(limit): sum(count for length, count in self.total.items() if length > limit)
                for limit in self.limits
            },
        }


def _percentiles(counts: dict[int, int]) -> dict[str, int]:
    rows = sum(counts.values())
    if rows == 0:
        return {"p50": 0, "p95": 0, "max": 0}
    found: dict[str, int] = {}
    seen = 0
    for length in sorted(counts):
        seen += counts[length]
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            if name not in found and seen >= share * rows:
                found[name] = length
    return {**found, "max": max(counts)}
