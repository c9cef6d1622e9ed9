"""Compared and judged answers as tokens: a prompt, and each answer with the parts that the model itself says.

The prompt is the one of inference; an answer is what stands after it in the example that training makes of the whole
conversation, so that what a tool says inside an answer carries no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data import chat
from gemma_ops.data.example import SIDES
from gemma_ops.errors import DataError


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens after the prompt, up to the last one with loss, and which of them carry loss."""

    ids: list[int]
    loss: list[bool]


@dataclass(frozen=True)
class Prompted:
    """A row's prompt and its answers by side; `truncated` when one of them was cut."""

    prompt: list[int]
    answers: dict[str, AnswerTokens]
    truncated: bool


def encode_answers(
    tokenizer: Tokenizer, row: dict[str, Any], *, max_length: int | None = None, **options: Any
) -> Prompted:
    """Return a row of compared or judged answers as tokens, prompt and answer cut at `max_length` together.

    `options` are `chat.prompt`'s `template`, `thinking` and `senses`. An answer of which nothing is left has no tokens.
    Raises DataError like `chat.prompt`, and for an answer of several turns that no one prompt leads to.
    """
    messages, tools = row["messages"], row.get("tools")
    prompt = chat.chat_prompt_ids(tokenizer, messages, tools, **options)
    answers, truncated = {}, False
    for side in SIDES:
        if row.get(side) is None:
            continue
        made = chat.examples(tokenizer, messages + row[side], tools, after=len(messages), **options)
        if len(made) > 1 or made[0].ids[: len(prompt)] != prompt:
            raise DataError(
                "an answer takes several turns, and each of them is asked for with other tokens than stand before it",
                "compare answers of one turn; with train.thinking=on the turns after a tool's result can be "
                "compared too",
            )
        whole = made[0]
        end = max((index for index, loss in enumerate(whole.loss) if loss), default=-1) + 1
        limit = min(end, max_length) if max_length else end
        truncated |= limit < end
        answers[side] = AnswerTokens(whole.ids[len(prompt) : limit], whole.loss[len(prompt) : limit])
    return Prompted(prompt, answers, truncated)
