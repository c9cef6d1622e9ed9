"""Rows as tokens: what training reads, and how long rows are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, documents, example
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.parts import media_of
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses

NO_LOSS = -100
"""Label of a token without loss, which torch's cross-entropy ignores."""


@dataclass(frozen=True)
class Manner:
    """Settings by which conversations become tokens with loss."""

    template: str | None = None
    """Chat template that prompts are rendered with (`published.template_of`); None is ours."""
    empty_thought: bool = False
    """Whether our template, used without a `template`, is the one of the sizes whose prompts end in an empty thought
    while thinking is off."""
    thinking: Thinking = "off"
    """Mode of thinking, as `train.thinking` says it."""
    loss_on: Literal["all", "last"] = "all"
    """Turns that carry loss, as `train.loss_on` says them."""
    texts: bool = False
    """Whether rows are raw texts, each token with loss (`train.method: pretrain`)."""
    senses: Senses | None = None
    """Media that the checkpoint takes besides text (`media_files.senses`), for conversations that show something."""

    def of(self, messages: Sequence[chat.Message]) -> dict[str, Any]:
        """Return the arguments of `chat.prompt` and `chat.examples` for one conversation.

        `mixed` asks for thoughts in conversations that hold one, and not in the others: a model tuned on both kinds of
        rows keeps both ways of answering.
        """
        thinking = self.thinking == "on" or (
            self.thinking == "mixed" and any(message.get("reasoning") for message in messages)
        )
        asked: dict[str, Any] = {"thinking": thinking, "senses": self.senses}
        return asked | ({"empty_thought": self.empty_thought} if self.template is None else {"template": self.template})


def encode_row(row: dict[str, Any], tokenizer: Tokenizer, manner: Manner) -> list[Encoded]:
    """Return a row's conversation as the examples that training reads, none of them cut. Raises DataError like
    `chat.examples`."""
    last = manner.loss_on == "last"
    return chat.examples(tokenizer, row["messages"], row.get("tools"), last_only=last, **manner.of(row["messages"]))


def encode_rows(
    path: Path, tokenizer: Tokenizer, manner: Manner, *, max_length: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of examples as `{"id", "input_ids", "labels", "truncated", "weight", "media"}`, in
    order, one at a time.

    `labels` repeats `input_ids` where there is loss and is -100 elsewhere. A conversation whose answers are asked for
    with prompts that no one example holds becomes several, all with the row's id and weight; a raw text becomes as many
    as it needs. An example longer than `max_length` tokens is cut at its end, which may leave it without any loss.
    `media` are the images and sounds that are left, each its stored part with the `start` and `end` of its tokens.
    Raises DataError naming file and line of a row that can't be rendered, or whose answers were compared or judged.
    """
    for number, row in enumerate(example.read_rows(path), 1):
        example.check_kind(row, "pretrain" if manner.texts else None, f"{path}:{number}")
        try:
            if manner.texts:
                yield from _pieces(row, tokenizer, max_length)
                continue
            made = encode_row(row, tokenizer, manner)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.what}", error.fix) from error
        yield from (_columns(row, one.cut(max_length)) for one in made)


def _columns(row: dict[str, Any], encoded: Encoded) -> dict[str, Any]:
    return {
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
    for ids in documents.document_pieces(documents.encode_document(tokenizer, row["text"]).ids, max_length):
        labels = [NO_LOSS, *ids[1:]]
        weight = row.get("weight", 1.0)
        yield {"id": row["id"], "input_ids": ids, "labels": labels, "truncated": False, "weight": weight, "media": []}


def loss_flags(tokenizer: Tokenizer, row: dict[str, Any], manner: Manner) -> list[list[bool]]:
    """Return which tokens carry loss, for each example that training makes of a row: of compared answers the wanted one
    comes first."""
    kind = example.kind(row)
    if kind == "text":
        return [documents.encode_document(tokenizer, row["text"]).loss]
    if kind == "conversation":
        return [one.loss for one in encode_row(row, tokenizer, manner)]
    turns = [turn for messages in example.conversation_rows(row) for turn in messages]
    encoded = encode_answers(tokenizer, row, **manner.of(turns))
    return [[False] * len(encoded.prompt) + answer.loss for answer in encoded.answers.values()]


def examples_by_mode(tokenizer: Tokenizer, row: dict[str, Any], manner: Manner, off: int) -> dict[str, int]:
    """Return how many examples training makes of a row, by `train.thinking`; `off` is what `manner`, which doesn't
    think, makes."""
    answers = sum(message["role"] == "assistant" for message in row["messages"])
    if example.kind(row) != "conversation" or answers < 2:
        return dict.fromkeys(("off", "on", "mixed"), off)
    on = len(encode_row(row, tokenizer, replace(manner, thinking="on")))
    thinks = any(message.get("reasoning") for message in row["messages"])
    return {"off": off, "on": on, "mixed": on if thinks else off}


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
        """Return percentiles (nearest rank) and totals; `longer_than` counts rows above each limit, in tokens."""
        return {
            "count": sum(self.total.values()),
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
