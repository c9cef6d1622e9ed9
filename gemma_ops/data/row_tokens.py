"""Rows as tokens: what training reads, and how long rows are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, documents, example
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.example_steps import Steps, example_steps, examples_of
from gemma_ops.data.parts import media_of
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses

AT_ONCE = 256
"""Rows whose texts are tokenized at once."""
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


def row_steps(row: dict[str, Any], tokenizer: Tokenizer, manner: Manner) -> Steps:
    """Return a row's conversation on its way to the examples that training reads, none of them cut
    (`example_steps.example_steps`)."""
    last = manner.loss_on == "last"
    messages = row["messages"]
    return example_steps(tokenizer, messages, row.get("tools"), last_only=last, **manner.of(messages))


def encode_rows(
    path: Path, tokenizer: Tokenizer, manner: Manner, *, max_length: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of examples as `{"id", "input_ids", "labels", "truncated", "weight", "media"}`, in
    order; some hundred are tokenized at once.

    `labels` repeats `input_ids` where there is loss and is -100 elsewhere. A conversation whose answers are asked for
    with prompts that no one example holds becomes several, all with the row's id and weight; a raw text becomes as many
    as it needs. An example longer than `max_length` tokens is cut at its end, which may leave it without any loss.
    `media` are the images and sounds that are left, each its stored part with the `start` and `end` of its tokens.
    Raises DataError naming file and line of a row that can't be rendered, or whose answers were compared or judged.
    """
    numbered = enumerate(example.read_rows(path), 1)
    while some := list(itertools.islice(numbered, AT_ONCE)):
        rows = [row for _, row in some]
        kinds = [_kind_error(row, manner, f"{path}:{number}") for number, row in some]
        made = iter(_examples(rows[: _first(kinds)], tokenizer, manner))
        for (number, row), wrong in zip(some, kinds, strict=True):
            if wrong:
                raise wrong
            found = next(made)
            if isinstance(found, DataError):
                raise DataError(f"{path}:{number}: {found.what}", found.fix) from found
            if manner.texts:
                yield from _pieces(row, found[0], max_length)
            else:
                yield from (_columns(row, one.cut(max_length)) for one in found)


def _examples(rows: list[dict[str, Any]], tokenizer: Tokenizer, manner: Manner) -> list[list[Encoded] | DataError]:
    if manner.texts:
        return examples_of([documents.document_steps(tokenizer, row["text"]) for row in rows], tokenizer)
    return examples_of([row_steps(row, tokenizer, manner) for row in rows], tokenizer)


def _kind_error(row: dict[str, Any], manner: Manner, where: str) -> DataError | None:
    try:
        example.check_kind(row, "pretrain" if manner.texts else None, where)
    except DataError as error:
        return error
    return None


def _first(errors: list[DataError | None]) -> int:
    """Return how many rows stand before the first error."""
    return next((index for index, error in enumerate(errors) if error), len(errors))


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


def _pieces(row: dict[str, Any], document: Encoded, max_length: int | None) -> Iterator[dict[str, Any]]:
    for ids in documents.document_pieces(document.ids, max_length):
        labels = [NO_LOSS, *ids[1:]]
        weight = row.get("weight", 1.0)
        yield {"id": row["id"], "input_ids": ids, "labels": labels, "truncated": False, "weight": weight, "media": []}


@dataclass(frozen=True)
class RowTokenCounts:
    """Tokens of a row: for each example that training makes of it how many there are, and how many of them carry loss;
    of compared answers the wanted one comes first. `error` says why there are none."""

    examples: tuple[tuple[int, int], ...]
    thinking: int | DataError | None = None
    """Number of examples with thinking on, or why there are none; None where thinking changes nothing."""
    thinks: bool = False
    """Whether an answer holds a thought."""
    error: DataError | None = None

    def modes(self) -> dict[str, int]:
        """Return how many examples training makes of the row, by `train.thinking`. Raises DataError for a row that
        can't be rendered with thinking on."""
        off = len(self.examples)
        if isinstance(self.thinking, DataError):
            raise self.thinking
        on = off if self.thinking is None else self.thinking
        return {"off": off, "on": on, "mixed": on if self.thinks else off}


def count_rows(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], manner: Manner) -> list[RowTokenCounts]:
    """Count the tokens of rows of any kind, in a manner that doesn't think; some hundred rows are worth a call."""
    steps: list[Steps] = []
    for row in rows:
        kind = example.kind(row)
        if kind == "text":
            steps.append(documents.document_steps(tokenizer, row["text"]))
        elif kind == "conversation":
            steps.append(row_steps(row, tokenizer, manner))
            if _answers_twice(row):
                steps.append(row_steps(row, tokenizer, replace(manner, thinking="on")))
    made = iter(examples_of(steps, tokenizer))
    return [_count(row, tokenizer, manner, made) for row in rows]


def _answers_twice(row: dict[str, Any]) -> bool:
    return len([message for message in row["messages"] if message["role"] == "assistant"]) > 1


def _count(
    row: dict[str, Any], tokenizer: Tokenizer, manner: Manner, made: Iterator[list[Encoded] | DataError]
) -> RowTokenCounts:
    """Return the counts of a row; its examples are taken from `made`."""
    kind = example.kind(row)
    if kind in ("pair", "judged"):
        return _count_answers(row, tokenizer, manner)
    off = next(made)
    on = next(made) if kind == "conversation" and _answers_twice(row) else None
    if isinstance(off, DataError):
        return RowTokenCounts((), error=off)
    counted = tuple((len(one.loss), sum(one.loss)) for one in off)
    thinks = any(message.get("reasoning") for message in row["messages"])
    return RowTokenCounts(counted, len(on) if isinstance(on, list) else on, thinks)


def _count_answers(row: dict[str, Any], tokenizer: Tokenizer, manner: Manner) -> RowTokenCounts:
    turns = [turn for messages in example.conversation_rows(row) for turn in messages]
    try:
        encoded = encode_answers(tokenizer, row, **manner.of(turns))
    except DataError as error:
        return RowTokenCounts((), error=error)
    prompt = len(encoded.prompt)
    return RowTokenCounts(tuple((prompt + len(one.loss), sum(one.loss)) for one in encoded.answers.values()))


@dataclass
class Lengths:
    """Token statistics of rows, in constant memory: counts by length."""

    limits: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    prompt: dict[int, int] = field(default_factory=dict)
    completion: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)

    def add(self, tokens: int, with_loss: int) -> None:
        """Count one row by its tokens: those with loss are its completion, the others its prompt."""
        for counts, value in (
            (self.prompt, tokens - with_loss),
            (self.completion, with_loss),
            (self.total, tokens),
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
