"""Compared and judged answers as tokens: a prompt, and each answer with the parts that the model itself says.

Prompt and answers are rendered and tokenized whole, by the one template, then parted where the prompt ends: tokens are
those of inference, and what a tool says inside an answer carries no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data import chat
from gemma_ops.data.example import SIDES


@dataclass(frozen=True)
class Answer:
    """The tokens after the prompt, up to the last one with loss, and which of them carry loss."""

    ids: list[int]
    loss: list[bool]


@dataclass(frozen=True)
class Prompted:
    """A row's prompt and its answers by side; `truncated` when one of them was cut."""

    prompt: list[int]
    answers: dict[str, Answer]
    truncated: bool


def encode_answers(
    tokenizer: Tokenizer, row: dict[str, Any], *, max_length: int | None = None, **options: Any
) -> Prompted:
    """A row whose answers were compared or judged as tokens, prompt and answer cut at `max_length` together.

    `options` are `chat.encode`'s `empty_thought`, `thinking` and `senses`. An answer of which nothing is left has no tokens. Raises
    DataError like `chat.encode`.
    """
    messages, tools = row["messages"], row.get("tools")
    prompt = chat.prompt_ids(tokenizer, messages, tools, **options)
    whole = {
        side: chat.encode(tokenizer, messages + row[side], tools, **options)
        for side in SIDES
        if row.get(side) is not None
    }
    # A tokenizer that merges over the prompt's end, or a thought that the prompt rules out, leaves less in common.
    shared = min(_common(prompt, encoded.ids) for encoded in whole.values())
    answers, truncated = {}, False
    for side, encoded in whole.items():
        end = max((index for index, loss in enumerate(encoded.loss) if loss), default=-1) + 1
        limit = min(end, max_length) if max_length else end
        truncated |= limit < end
        answers[side] = Answer(encoded.ids[shared:limit], encoded.loss[shared:limit])
    return Prompted(prompt[:shared], answers, truncated)


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
